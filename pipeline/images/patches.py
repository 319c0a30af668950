"""A tokenizer for images: a token is the nearest of K patches, which k-means found (vector quantisation).

The patch of a photograph is 16 x 16 pixels, as a VQGAN's token stands for; that of a digit may be one pixel. Example::

    tokenizer = PatchTokenizer.fit(images, patch_size=16, codebook_size=256, seed=0)
    ids = tokenizer.encode(images)          # [N, H / 16, W / 16]
    tokenizer.decode(ids)                   # [N, H, W, C]: each patch is now one of the codebook's
    tokenizer.save(folder / "tokenizer.safetensors")
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import Float, Int

from pipeline.errors import UserError
from pipeline.files import atomic_path


@dataclass(frozen=True)
class PatchTokenizer:
    """K patches, flat, ``[K, p * p * C]``, and how many pixels a side has."""

    codebook: Float[np.ndarray, "k ppc"]
    patch_size: int

    @classmethod
    def fit(
        cls, images: Sequence[Float[np.ndarray, "h w c"]], *, patch_size: int, codebook_size: int, seed: int
    ) -> Self:
        """Find the codebook of images, which may differ in size; what no whole patch covers is left out.

        Raises:
            UserError: there are fewer different patches than the codebook is to hold.
        """
        from sklearn.cluster import MiniBatchKMeans

        patches = np.concatenate([_flat(_trimmed(image, patch_size)[None], patch_size)[0] for image in images])
        different = len(np.unique(patches, axis=0))
        if codebook_size > different:
            raise UserError(f"codebook-size {codebook_size} is above the {different} different patches that there are")
        batch = max(4096, codebook_size)
        means = MiniBatchKMeans(codebook_size, random_state=seed, n_init=3, batch_size=batch).fit(patches)
        return cls(means.cluster_centers_.astype(np.float32), patch_size)

    def encode(self, images: Float[np.ndarray, "n h w c"]) -> Int[np.ndarray, "n h_p w_p"]:
        """Return the nearest code of each patch.

        Raises:
            UserError: a side of the images is no multiple of the patch's.
        """
        from sklearn.metrics import pairwise_distances_argmin

        count, height, width, _ = images.shape
        check_side(height, self.patch_size)
        check_side(width, self.patch_size)
        nearest = pairwise_distances_argmin(
            _flat(images, self.patch_size).reshape(-1, self.codebook.shape[1]), self.codebook
        )
        codes: np.ndarray = nearest.reshape(count, height // self.patch_size, width // self.patch_size).astype(np.int64)
        return codes

    def decode(self, ids: Int[np.ndarray, "n h_p w_p"]) -> Float[np.ndarray, "n h w c"]:
        """Return the images that the codes stand for, values 0..1."""
        count, down, across = ids.shape
        size = self.patch_size
        patches = self.codebook[ids].reshape(count, down, across, size, size, -1)
        images: np.ndarray = (
            patches.transpose(0, 1, 3, 2, 4, 5).reshape(count, down * size, across * size, -1).clip(0, 1)
        )
        return images

    def round_trip_rmse(self, images: Float[np.ndarray, "n h w c"]) -> float:
        """Return how far images are from themselves, encoded and decoded: root mean square over pixels of 0..1."""
        return float(np.sqrt(np.mean((self.decode(self.encode(images)) - images) ** 2)))

    def save(self, path: Path) -> None:
        """Write the codebook as safetensors, whole or not at all."""
        from safetensors.numpy import save_file

        with atomic_path(path) as temporary:
            save_file({"codebook": self.codebook}, temporary, {"patch_size": str(self.patch_size)})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: there is no such file, or it is damaged.
        """
        from safetensors import SafetensorError, safe_open

        if not path.is_file():
            raise UserError(f"there is no {path}; python -m pipeline.images.tokenise makes it")
        try:
            with safe_open(path, "numpy") as file:
                return cls(file.get_tensor("codebook"), int(file.metadata()["patch_size"]))
        except (SafetensorError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged: {error}") from error


def check_side(side: int, patch_size: int, window: int = 1) -> None:
    """Check that an image's side holds whole windows of whole patches.

    Raises:
        UserError: it does not, or one of the numbers is below 1.
    """
    for name, value in (("side", side), ("patch_size", patch_size), ("window", window)):
        if value < 1:
            raise UserError(f"{name} must be 1 or more, not {value}")
    if side % (patch_size * window):
        tokens = f"windows of {window} x {window} patches" if window > 1 else "patches"
        below = side - side % (patch_size * window)
        nearest = below or patch_size * window
        raise UserError(f"side {side} cannot be cut into {tokens} of {patch_size} pixels; did you mean {nearest}?")


def _trimmed(image: Float[np.ndarray, "h w c"], size: int) -> Float[np.ndarray, "h2 w2 c"]:
    height, width, _ = image.shape
    return image[: height - height % size, : width - width % size]


def _flat(images: Float[np.ndarray, "n h w c"], size: int) -> Float[np.ndarray, "n patches ppc"]:
    count, height, width, channels = images.shape
    cut = images.reshape(count, height // size, size, width // size, size, channels)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(count, -1, size * size * channels)
