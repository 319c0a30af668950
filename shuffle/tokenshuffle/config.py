"""The shape of a class-conditional image transformer, and how many tokens share one of its rows.

Example::

    config = TokenShuffleConfig(vocab_size=16, grid_size=8, window=2, num_classes=10)
    config.num_windows    # 16 rows in place of 64
"""

from __future__ import annotations

from typing import Any

from shuffle.backbone import BackboneConfig


class TokenShuffleConfig(BackboneConfig):
    """A backbone over windows of image tokens, with a special token for each class, for no class, and for each place.

    Attributes:
        vocab_size: V, codes of the image tokenizer.
        grid_size: tokens along a side of the image, H = W.
        window: tokens along a side of a window, s; 1 is plain next-token prediction, without the two added layers.
        shuffle_blocks: residual MLP blocks in each of the two added layers.
        num_classes: what an image can be asked to show.
        class_dropout: share of the training images whose class is hidden, from which guidance learns what "no class"
            looks like (Ho & Salimans 2022).
    """

    model_type = "shufflebench-tokenshuffle"

    vocab_size: int = 16
    hidden_size: int = 128
    grid_size: int = 8
    window: int = 2
    shuffle_blocks: int = 1
    num_classes: int = 10
    class_dropout: float = 0.1

    def __post_init__(self, **kwargs: Any) -> None:
        if self.window < 1:
            raise ValueError(f"window must be 1 or more, not {self.window}")
        if self.grid_size < 1 or self.grid_size % self.window:
            raise ValueError(f"grid_size {self.grid_size} is no multiple of window {self.window}")
        if self.hidden_size % self.window**2:
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of window x window {self.window**2}")
        if self.shuffle_blocks < 0:
            raise ValueError(f"shuffle_blocks must be 0 or more, not {self.shuffle_blocks}")
        if self.num_classes < 1:
            raise ValueError(f"num_classes must be 1 or more, not {self.num_classes}")
        if not 0 <= self.class_dropout < 1:
            raise ValueError(f"class_dropout must be at least 0 and below 1, not {self.class_dropout}")
        self.max_position_embeddings = max(self.max_position_embeddings, self.num_windows)
        super().__post_init__(**kwargs)

    @property
    def num_windows(self) -> int:
        """Rows that the backbone reads for a whole image, n / s^2, and forward passes that generate it."""
        return self.windows_a_side**2

    @property
    def windows_a_side(self) -> int:
        """Lines of windows in an image, and columns."""
        return self.grid_size // self.window

    @property
    def num_special_tokens(self) -> int:
        """The classes, no class, and the lines and columns of windows."""
        return self.num_classes + 1 + 2 * self.windows_a_side
