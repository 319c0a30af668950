"""Real images that need no network: scikit-learn's handwritten digits, and its two sample photographs.

The digits (1,797 scans of 8 x 8 pixels, values 0 to 16, ten classes) are split once and for all: two thirds are learned
from, the rest is never shown to a generator. What judges the generators (a classifier, and the images that theirs are
compared with) is made of the rest alone, so that a generator which only repeats what it saw gains nothing by it.

Example::

    digits = read_digits()
    digits.images[digits.is_training]       # [1198, 8, 8, 1], 0..1
    photograph(0, 512)                      # [512, 512, 3], 0..1
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

DIGITS, PHOTOGRAPHS = "digits", "photographs"
DIGIT_SIDE = 8  # pixels
DIGIT_LEVELS = 16
NUM_CLASSES = 10
SPLIT_SEED = 0
HELD_OUT = 1 / 3


@dataclass(frozen=True)
class Digits:
    """The digits, their classes, and which of them may be learned from; pixel values 0..1."""

    images: Float[np.ndarray, "n 8 8 1"]
    classes: Int[np.ndarray, " n"]
    is_training: Bool[np.ndarray, " n"]


def source() -> str:
    """Return what the images come from."""
    return f"scikit-learn=={importlib.metadata.version('scikit-learn')}"


def read_digits() -> Digits:
    """Read the digits and split them, each class alike."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    found = load_digits()
    images = (found.images / DIGIT_LEVELS).astype(np.float32)[..., None]
    places = np.arange(len(images))
    training, _ = train_test_split(places, test_size=HELD_OUT, random_state=SPLIT_SEED, stratify=found.target)
    return Digits(images, found.target.astype(np.int64), np.isin(places, training))


def photographs() -> list[Float[np.ndarray, "h w 3"]]:
    """Return the sample photographs as they are, 427 x 640."""
    from sklearn.datasets import load_sample_images

    return [(image / 255).astype(np.float32) for image in load_sample_images().images]


def photograph(index: int, side: int) -> Float[np.ndarray, "side side 3"]:
    """Return a photograph's middle square, scaled to ``side`` pixels; above 427 they show no more detail."""
    from PIL import Image

    image = photographs()[index]
    short = min(image.shape[:2])
    top, left = ((length - short) // 2 for length in image.shape[:2])
    square = (image[top : top + short, left : left + short] * 255).round().astype(np.uint8)
    scaled = Image.fromarray(square).resize((side, side), Image.Resampling.LANCZOS)
    return np.asarray(scaled, dtype=np.float32) / 255
