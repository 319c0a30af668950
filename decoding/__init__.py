"""The engine: propose a candidate tree, read it in one forward pass, keep what the target model itself would have said.

    target = TargetModel.from_pretrained("results/models/smollm2-135m", dtype=torch.bfloat16)
    decoder = SpeculativeDecoder(target, drafter)
    generation = decoder.generate(prompt_ids, max_new_tokens=64)

Every lossless method is a :class:`Drafter` on this one loop, so exactness and speed each live in one place.
"""

from decoding.decoder import Drafter, SpeculativeDecoder
from decoding.sampling import Sampling
from decoding.stopping import StopStrings
from decoding.target import TargetModel
from decoding.trace import Generation, Step
from decoding.tree import CandidateTree
from decoding.verify import Verdict

__all__ = [
    "CandidateTree",
    "Drafter",
    "Generation",
    "Sampling",
    "SpeculativeDecoder",
    "Step",
    "StopStrings",
    "TargetModel",
    "Verdict",
]
