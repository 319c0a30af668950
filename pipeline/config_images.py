"""The configuration's section of images: Token-Shuffle on digits, and what it costs as an image grows.

Without the section a profile has no ``results/image.csv``. Example::

    images:
      windows: [1, 2]
      patch_size: 2
      guidances: [none, half_linear]
      cost: {sides: [256, 512], windows: [1, 2]}
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from pipeline.config_sections import Count, Differing, Positive, Sampling, Section, Seed, no_boolean
from pipeline.config_twins import BackboneSettings, Rate
from pipeline.errors import UserError
from pipeline.images.data import DIGIT_SIDE
from pipeline.images.patches import check_side
from pipeline.images.records import BASELINE

Guidance = Literal["none", "constant", "linear", "half_linear"]
Windows = Annotated[list[Positive], Field(min_length=1), Differing]
Scale = Annotated[float, BeforeValidator(no_boolean), Field(gt=0, allow_inf_nan=False)]
CodebookSize = Annotated[Positive, Field(ge=2)]


def _fits(side: int, patch_size: int, windows: list[int], backbone: BackboneSettings) -> None:
    """Check that an image can be cut into each of the windows, and a row of the backbone shared by their tokens."""
    if BASELINE not in windows:
        raise ValueError(f"windows {windows}: {BASELINE}, which the others are held against, is missing")
    for window in windows:
        try:
            check_side(side, patch_size, window)
        except UserError as error:
            raise ValueError(str(error)) from None
        if backbone.hidden_size % window**2:
            raise ValueError(
                f"windows: {window} x {window} tokens cannot share hidden_size {backbone.hidden_size} evenly"
            )


class ImageCostSettings(Section):
    """What is read, by windows of which size, to see what an image costs.

    Attributes:
        sides: of the image, in pixels.
        windows: tokens along a side of a window; 1, which the ratios are over, among them.
        patch_size: pixels along a side of a token.
        repeats: rounds that are timed.
    """

    sides: Annotated[list[Positive], Field(min_length=1), Differing] = Field(default=[256, 512, 1024, 2048])
    windows: Windows = Field(default=[1, 2, 4])
    patch_size: Positive = 16
    codebook_size: CodebookSize = 512
    backbone: BackboneSettings = BackboneSettings(hidden_size=256, intermediate_size=768, num_layers=4, num_heads=4)
    shuffle_blocks: Count = 1
    repeats: Positive = 5

    @model_validator(mode="after")
    def _belongs_together(self) -> ImageCostSettings:
        for side in self.sides:
            _fits(side, self.patch_size, self.windows, self.backbone)
        return self


class ImageSettings(Section):
    """What the digits' transformers are, how they are trained, and what is drawn with them.

    Attributes:
        windows: tokens along a side of a window; 1, plain next-token prediction, among them.
        patch_size: pixels along a side of a token, of the digits' 8.
        codebook_size: different tokens.
        shuffle_blocks: residual MLP blocks in each of the added layers.
        guidances: none, or a schedule of classifier-free guidance up to ``guidance_scale``.
        timed_images: rounds of one image each.
    """

    windows: Windows = Field(default=[1, 2])
    patch_size: Positive = 2
    codebook_size: CodebookSize = 64
    backbone: BackboneSettings = BackboneSettings(hidden_size=96, intermediate_size=384, num_layers=6, num_heads=4)
    shuffle_blocks: Count = 1
    steps: Positive = 300
    batch_size: Positive = 64
    learning_rate: Rate = 2e-3
    seed: Seed = 0
    guidances: Annotated[list[Guidance], Field(min_length=1), Differing] = Field(default=list(get_args(Guidance)))
    guidance_scale: Scale = 2.0
    sampling: Sampling = Sampling(temperature=1.0)
    images_per_class: Positive = 120
    timed_images: Positive = 31
    cost: ImageCostSettings = ImageCostSettings()

    @model_validator(mode="after")
    def _belongs_together(self) -> ImageSettings:
        _fits(DIGIT_SIDE, self.patch_size, self.windows, self.backbone)
        return self
