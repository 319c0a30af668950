"""Masked diffusion: a text is denoised block by block, several tokens in each forward pass."""

from shuffle.diffusion.config import DiffusionConfig
from shuffle.diffusion.generator import DiffusionGenerator
from shuffle.diffusion.model import DiffusionTransformer

__all__ = ["DiffusionConfig", "DiffusionGenerator", "DiffusionTransformer"]
