"""Two-stream language model: any order, any grouping; the tokens of a group are predicted at once (XLNet's streams)."""

from shuffle.twostream.config import TwoStreamConfig
from shuffle.twostream.generator import TwoStreamGenerator
from shuffle.twostream.model import LlamaTwoStreamForCausalLM, TwoStreamOutput

__all__ = ["LlamaTwoStreamForCausalLM", "TwoStreamConfig", "TwoStreamGenerator", "TwoStreamOutput"]
