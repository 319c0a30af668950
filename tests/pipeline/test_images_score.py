"""What judges generated digits: real ones pass, other ones do not, and a copy is seen to be one."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from pipeline.images.data import Digits, read_digits
from pipeline.images.score import Judge, frechet, nearest_distance

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def digits() -> Digits:
    return read_digits()


@pytest.fixture(scope="module")
def judge(digits: Digits) -> Judge:
    # A digit's pixels are its tokens here: levels 0 to 16.
    ids = (digits.images[..., 0] * 16).astype(np.int64)
    return Judge({"images": digits.images, "ids": ids, "classes": digits.classes, "is_training": digits.is_training})


def test_real_digits_are_recognised_by_who_never_saw_them(digits: Digits, judge: Judge) -> None:
    learned = digits.is_training
    found = judge.score(digits.images[learned], digits.classes[learned])
    assert found["images"] == 1198
    assert found["accuracy"] > 0.95
    by_class = [found[f"accuracy_{label}"] for label in range(10)]
    sizes = np.bincount(digits.classes[learned])
    assert found["accuracy"] == pytest.approx(float(np.average(by_class, weights=sizes)))
    assert found["accuracy_stderr"] == pytest.approx((found["accuracy"] * (1 - found["accuracy"]) / 1198) ** 0.5)
    assert found["frechet"] < 0.5


def test_wrong_classes_blurred_digits_and_one_digit_over_and_over_are_told(digits: Digits, judge: Judge) -> None:
    learned = digits.is_training
    images, classes = digits.images[learned], digits.classes[learned]
    real = judge.score(images, classes)
    assert judge.score(images, (classes + 1) % 10)["accuracy"] < 0.1
    assert judge.score(images.clip(0.2, 0.6), classes)["frechet"] > 10 * real["frechet"]
    same = np.stack([images[classes == label][0] for label in classes])
    assert judge.score(same, classes)["frechet"] > 10 * real["frechet"]


def test_copies_are_counted_and_lie_near(digits: Digits, judge: Judge) -> None:
    ids = (digits.images[..., 0] * 16).astype(np.int64)
    seen, unseen = digits.is_training.nonzero()[0][:50], (~digits.is_training).nonzero()[0]
    copied = judge.novelty(digits.images[seen], ids[seen])
    assert copied == {"nearest_ratio": 0.0, "copies": 1.0}
    fresh = judge.novelty(digits.images[unseen], ids[unseen])
    assert fresh["copies"] < 0.01
    assert fresh["nearest_ratio"] == pytest.approx(1)


def test_the_judge_is_the_same_each_time(digits: Digits, judge: Judge) -> None:
    again = Judge(
        {
            "images": digits.images,
            "ids": np.zeros((1797, 1, 1), dtype=np.int64),
            "classes": digits.classes,
            "is_training": digits.is_training,
        }
    )
    assert np.array_equal(judge.classifier.coefs_[0], again.classifier.coefs_[0])


def test_the_distance_is_the_formulas() -> None:
    one, other = RNG.normal(0, 1, (500, 3)), RNG.normal(1, 2, (400, 3)) @ RNG.normal(size=(3, 3))
    covariances = np.cov(one.T), np.cov(other.T)
    root = sqrtm(covariances[0] @ covariances[1]).real
    expected = ((one.mean(0) - other.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet(one, other) == pytest.approx(expected)
    assert frechet(one, one) == pytest.approx(0, abs=1e-6)
    assert frechet(one, one + 2) == pytest.approx(12)


def test_a_feature_that_is_always_zero_does_no_harm() -> None:
    one, other = RNG.normal(0, 1, (500, 3)), RNG.normal(1, 2, (400, 3))
    padded = [np.concatenate([features, np.zeros((len(features), 2))], axis=1) for features in (one, other)]
    assert frechet(*padded) == pytest.approx(frechet(one, other))


def test_the_nearest_is_found() -> None:
    one, other = RNG.random((5, 4)), RNG.random((7, 4))
    expected = [min(float(np.linalg.norm(a - b)) for b in other) for a in one]
    assert nearest_distance(one, other).tolist() == pytest.approx(expected)
