r"""Rule: say how good generated digits are, beside real ones. No model is loaded. By hand::

    python -m pipeline.images.score --tokens results/images/laptop/digits \
        --samples results/images/laptop/samples/window_1/none ... --output results/images/laptop/scores.json

- **accuracy**: the share of images that a classifier takes for the class that was asked for, over all and by class. The
  classifier is scikit-learn's MLP, fitted here, always the same, on the held-out real digits, which no generator saw.
- **frechet**: the Fréchet distance (Heusel et al. 2017, there with Inception's features) between the images and the
  held-out real ones, as normal distributions in the classifier's hidden layer::

      |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))

- **nearest_ratio**: the median distance of an image to the nearest digit that was learned from, by that of a held-out
  real digit. Far below 1, the generator repeats what it saw. **copies** is the share whose tokens are all those of one.

The row ``real`` is what can be had: the real digits that were learned from, judged in the same way (its distance is
of two samples of real digits: the floor), and once more as they come back from the tokenizer (``tokenizer``).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from pipeline.errors import command
from pipeline.files import atomic_write
from pipeline.images.patches import PatchTokenizer
from pipeline.images.records import IMAGES, SAMPLES_RECORD, TOKENIZER, TOKENS, read_arrays, read_record

HIDDEN = 64
REAL, ROUND_TRIP = "real", "tokenizer"


class Judge:
    """A classifier of real digits that no generator saw, and what it takes for granted about them.

    Args:
        arrays: of ``pipeline.images.tokenise``: real images, classes, and which were learned from.
    """

    def __init__(self, arrays: dict[str, Any]) -> None:
        from sklearn.neural_network import MLPClassifier

        learned = arrays["is_training"].astype(bool)
        self.learned, self.held_out = flat(arrays["images"][learned]), flat(arrays["images"][~learned])
        self.learned_ids = arrays["ids"][learned].reshape(learned.sum(), -1)
        self.classifier = MLPClassifier((HIDDEN,), max_iter=500, random_state=0)
        self.classifier.fit(self.held_out, arrays["classes"][~learned])
        self._features = self.features(self.held_out)
        self._usual = float(np.median(nearest_distance(self.held_out, self.learned)))

    def features(self, images: Float[np.ndarray, "n pixels"]) -> Float[np.ndarray, "n hidden"]:
        """Return the classifier's hidden layer."""
        hidden = images @ self.classifier.coefs_[0] + self.classifier.intercepts_[0]
        return np.asarray(np.maximum(hidden, 0))

    def score(self, images: Float[np.ndarray, "n h w c"], classes: Int[np.ndarray, " n"]) -> dict[str, Any]:
        """Return the figures of images that were asked to show ``classes``, but for those about the learned digits."""
        right = self.classifier.predict(flat(images)) == classes
        accuracy = float(right.mean())
        by_class = {f"accuracy_{one}": float(right[classes == one].mean()) for one in np.unique(classes)}
        return {
            "images": len(images),
            "accuracy": accuracy,
            "accuracy_stderr": float(np.sqrt(accuracy * (1 - accuracy) / len(right))),
            **by_class,
            "frechet": frechet(self.features(flat(images)), self._features),
        }

    def novelty(self, images: Float[np.ndarray, "n h w c"], ids: Int[np.ndarray, "n h w"]) -> dict[str, float]:
        """Return how near generated images are to those that were learned from."""
        seen = {row.tobytes() for row in self.learned_ids.astype(np.int64)}
        copies = [row.tobytes() in seen for row in ids.reshape(len(ids), -1).astype(np.int64)]
        distance = np.median(nearest_distance(flat(images), self.learned))
        return {"nearest_ratio": float(distance) / self._usual, "copies": float(np.mean(copies))}


def flat(images: Float[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n pixels"]:
    """Return images as rows of pixels."""
    return images.reshape(len(images), -1).astype(np.float64)


def nearest_distance(images: Float[np.ndarray, "n p"], others: Float[np.ndarray, "m p"]) -> Float[np.ndarray, " n"]:
    """Return the Euclidean distance of each image to the nearest of the others."""
    from sklearn.metrics import pairwise_distances_argmin_min

    distances: np.ndarray = pairwise_distances_argmin_min(images, others)[1]
    return distances


def frechet(one: Float[np.ndarray, "n f"], other: Float[np.ndarray, "m f"]) -> float:
    """Return the Fréchet distance of two sets of features, each taken for a normal distribution."""
    from scipy.linalg import sqrtm

    covariances = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    # tr (S1 S2)^(1/2) by the symmetric (S1^(1/2) S2 S1^(1/2))^(1/2), which has the same eigenvalues: a feature that is
    # always 0 makes S1 S2 singular, and the root of what is not symmetric then comes out complex.
    root = sqrtm(covariances[0]).real
    mixed = np.linalg.eigvalsh(root @ covariances[1] @ root).clip(min=0)
    distance = np.sum((one.mean(0) - other.mean(0)) ** 2) + np.trace(covariances[0]) + np.trace(covariances[1])
    return max(0.0, float(distance - 2 * np.sqrt(mixed).sum()))


def score_all(tokens: Path, samples: list[Path]) -> list[dict[str, Any]]:
    """Return the figures of the real digits, of the tokenizer, and of each folder of samples."""
    arrays, tokenizer = read_arrays(tokens / TOKENS, "tokenise"), PatchTokenizer.load(tokens / TOKENIZER)
    judge = Judge(arrays)
    learned = arrays["is_training"].astype(bool)
    images, ids, classes = (arrays[name][learned] for name in ("images", "ids", "classes"))
    rows = [
        {"name": REAL, **judge.score(images, classes)},
        {"name": ROUND_TRIP, **judge.score(tokenizer.decode(ids), classes)},
    ]
    for folder in samples:
        found, record = read_arrays(folder / IMAGES, "generate"), read_record(folder / SAMPLES_RECORD, "generate")
        figures = judge.score(found["images"], found["classes"]) | judge.novelty(found["images"], found["ids"])
        rows.append({"name": f"window_{record['model']['window']}", **record, **figures})
    return rows


@command
def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=Path, required=True, help="the folder of the digits' tokens")
    parser.add_argument("--samples", type=Path, nargs="*", default=[], help="folders of pipeline.images.generate")
    parser.add_argument("--output", type=Path, required=True, help="the file to write")
    given = parser.parse_args()
    rows = score_all(given.tokens, given.samples)
    atomic_write(given.output, json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
