r"""Classifier-free guidance with a schedule: how far a step leans from "any image" towards "an image of this class".

Ho & Salimans (2022), on logits:

    guided = none + w_i (class - none)

where ``w = 1`` is the class's own logits and needs no second forward pass. Ma et al. (2025) let the scale grow along
the image, since strong guidance of its first tokens costs variety: with w the scale asked for and i of W steps,

    constant      w_i = w
    linear        w_i = 1 + (w - 1) i / (W - 1)
    half_linear   the same, twice as fast: it reaches w in the middle of the image and stays there

Example::

    scales("half_linear", 3.0, 5)       # [1.0, 2.0, 3.0, 3.0, 3.0]
"""

from __future__ import annotations

SCHEDULES = ("constant", "linear", "half_linear")


def check_guidance(schedule: str, scale: float) -> None:
    """Check a schedule's name and scale.

    Raises:
        ValueError: the schedule is unknown or the scale is not above 0.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"unknown guidance {schedule!r}: {', '.join(SCHEDULES)}")
    if not 0 < scale < float("inf"):
        raise ValueError(f"guidance_scale must be above 0 (1 is no guidance), not {scale}")


def scales(schedule: str, scale: float, num_steps: int) -> list[float]:
    """Return the scale of each step.

    Raises:
        ValueError: as :func:`check_guidance`.
    """
    check_guidance(schedule, scale)
    if schedule == "constant":
        return [scale] * num_steps
    reached = (num_steps - 1) / (2 if schedule == "half_linear" else 1)
    return [1 + (scale - 1) * min(1.0, step / reached) if reached else scale for step in range(num_steps)]
