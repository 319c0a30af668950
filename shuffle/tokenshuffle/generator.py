"""Generation a window at a time, with a cache: n / s^2 forward passes an image, whatever the number of images.

Under guidance each image has two rows in a pass, one that knows the class and one that does not; both read the tokens
that were drawn from the two together (``guidance.py``). The tokens of a window are drawn independently of each other.

Example::

    generator = ImageGenerator.from_pretrained(folder, guidance="constant", guidance_scale=2.0, temperature=0.9)
    ids = generator.generate([0, 1, 2], generator=torch.Generator().manual_seed(0))      # [3, H, W]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from decoding import Sampling
from decoding.sampling import draw_each
from shuffle.tokenshuffle.guidance import check_guidance, scales
from shuffle.tokenshuffle.layers import from_windows
from shuffle.tokenshuffle.model import TokenShuffleTransformer, check_classes


class ImageGenerator:
    """An image transformer laid out for generation.

    Args:
        model: the model; it is put into evaluation mode, and into ``dtype`` and on ``device``, in place.
        dtype: of the weights and the arithmetic.
        device: where it runs.
        guidance: the schedule, one of ``guidance.SCHEDULES``.
        guidance_scale: 1 is none, and takes no second row.
        temperature: 0 takes the most likely code of each token.
        top_k: draw from the k most likely codes; 0: from all.
        top_p: draw from the most likely codes whose mass reaches p.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        model: TokenShuffleTransformer,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        guidance: str = "constant",
        guidance_scale: float = 1.0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> None:
        check_guidance(guidance, guidance_scale)
        self.model = model.eval()
        nn.Module.to(model, device=device, dtype=dtype)
        self.guidance, self.guidance_scale = guidance, guidance_scale
        self.sampling = Sampling(temperature, top_k, top_p)
        with torch.inference_mode():  # the same for every image
            self._places, self._codes = model.embed_places(), model.compressed_codes()

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        **options: Any,
    ) -> Self:
        """Load a local folder; ``options`` are those of the class."""
        model = TokenShuffleTransformer.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa", local_files_only=True
        )
        return cls(model, dtype=dtype, device=device, **options)

    @property
    def is_guided(self) -> bool:
        """Whether a pass has a second row for each image."""
        return self.guidance_scale != 1

    @torch.inference_mode()
    def generate(self, classes: Sequence[int], generator: torch.Generator | None = None) -> Int[Tensor, "b h w"]:
        """Generate an image of each class.

        Raises:
            ValueError: a class is unknown, or there is none.
        """
        config, device = self.model.config, self.model.device
        check_classes(list(classes), config.num_classes)
        if not classes:
            raise ValueError("no class is asked for")
        asked = torch.tensor(classes, device=device)
        if self.is_guided:
            asked = torch.cat([asked, torch.full_like(asked, self.model.no_class_id)])
        cache, told = DynamicCache(), self.model.embed_classes(asked)
        drawn: list[Tensor] = []
        for k, scale in enumerate(scales(self.guidance, self.guidance_scale, config.num_windows)):
            row = (told + self._places[k])[:, None]
            if drawn:
                before = torch.cat([drawn[-1]] * 2) if self.is_guided else drawn[-1]
                row = row + self.model.embed_windows(before[:, None], self._codes)
            logits = self.model.window_logits(self.model.read_rows(row, cache))[:, 0]
            drawn.append(self._draw(self._guided(logits, scale), generator))
        return from_windows(torch.stack(drawn, dim=1), config.window)

    def _guided(self, logits: Float[Tensor, "r s_s v"], scale: float) -> Float[Tensor, "b s_s v"]:
        if not self.is_guided:
            return logits
        asked, none = logits.chunk(2)
        return none + scale * (asked - none)

    def _draw(self, logits: Float[Tensor, "b s_s v"], generator: torch.Generator | None) -> Int[Tensor, "b s_s"]:
        if self.sampling.is_greedy:
            return logits.argmax(-1)
        return draw_each(self.sampling.probabilities(logits), generator)
