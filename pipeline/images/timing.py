r"""Rule: how long a digit takes, for every window and guidance, in turn in one process. By hand::

    python -m pipeline.images.timing --models results/images/laptop/window_1 results/images/laptop/window_2 \
        --images 20 --guidances none constant --guidance-scale 2.0 --output results/images/laptop/timing.json

One image at a time, as someone who waits for it would see it, and then ``--batch-size`` at once. A round draws the same
class with every model and guidance, each once uncounted and then timed, and the order of them turns from round to
round; a first round is not counted. The speed-up of a window is over window 1 with the same guidance: the ratio of
images/s over all rounds, with a 95 % interval over rounds (``pipeline.statistics``). All run the same loop on the
same module of transformers; the codes are drawn, not decoded to pixels, which is a look-up.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from pipeline.arguments import json_object
from pipeline.errors import UserError, command
from pipeline.files import atomic_write
from pipeline.images.data import NUM_CLASSES
from pipeline.images.generate import load_generator
from pipeline.images.records import BASELINE, MODEL_RECORD, NO_GUIDANCE, read_record
from pipeline.machine import processor_name
from pipeline.statistics import RUN_TO_RUN, once_each, paired_speedup

if TYPE_CHECKING:
    from shuffle.tokenshuffle.generator import ImageGenerator

BATCH_TRIALS = 3
Method = tuple[int, str]  # window, guidance


def seconds_of(generator: ImageGenerator, classes: list[int], seed: int) -> float:
    """Return the seconds that images of ``classes`` take together, drawn right after the same were drawn uncounted.

    What another model left in the processor's caches would else be a larger part of a short call than of a long one.
    """
    import torch

    from pipeline.clock import quiet

    generator.generate(classes, torch.Generator().manual_seed(seed))
    draws = torch.Generator().manual_seed(seed)
    with quiet(generator.model.device):
        started = time.perf_counter()
        generator.generate(classes, draws)
        return time.perf_counter() - started


def in_turn(
    generators: dict[Method, ImageGenerator], rounds: int, classes_of: dict[int, list[int]]
) -> dict[Method, list[float]]:
    """Return the seconds of each generator in each round; ``classes_of`` says what a round draws."""
    seconds: dict[Method, list[float]] = {method: [] for method in generators}
    order = list(generators)
    for index in range(-1, rounds):  # the first one warms up
        for method in order:
            taken = seconds_of(generators[method], classes_of[max(index, 0)], seed=index + 1)
            if index >= 0:
                seconds[method].append(taken)
        order = [*order[1:], order[0]]
    return seconds


def rows_of(
    alone: dict[Method, list[float]], together: dict[Method, list[float]], batch_size: int
) -> list[dict[str, Any]]:
    """Return a row of figures for each window and guidance."""
    rows = []
    for (window, guidance), seconds in alone.items():
        base = alone[BASELINE, guidance]
        faster = paired_speedup(once_each(seconds), once_each(base), 0.0 if window == BASELINE else RUN_TO_RUN)
        batch, batch_base = median(together[window, guidance]), median(together[BASELINE, guidance])
        rows.append(
            {
                "window": window,
                "guidance": guidance,
                "image_s": median(seconds),
                "speedup": faster.ratio,
                "speedup_low": faster.low,
                "speedup_high": faster.high,
                "repeats": len(seconds),
                "batch_size": batch_size,
                "batch_images_per_second": batch_size / batch,
                "batch_speedup": batch_base / batch,
            }
        )
    return rows


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Time everything and return the figures, and what they were measured on."""
    import torch

    from pipeline.clock import machine_lock, settle
    from pipeline.machine import available_cores

    torch.set_num_threads(given.num_threads or available_cores())
    generators = {}
    for folder in given.models:
        window = read_record(folder / MODEL_RECORD, "train")["window"]
        for guidance in given.guidances:
            generators[window, guidance] = load_generator(folder, guidance, given.guidance_scale, given.sampling)
    if BASELINE not in {window for window, _ in generators}:
        raise UserError(f"models: none has window {BASELINE}, which speed-ups are over")
    settle()
    load = os.getloadavg()[0]
    with machine_lock():
        alone = in_turn(generators, given.images, {i: [i % NUM_CLASSES] for i in range(given.images)})
        batch = [i % NUM_CLASSES for i in range(given.batch_size)]
        together = in_turn(generators, BATCH_TRIALS, dict.fromkeys(range(BATCH_TRIALS), batch))
    return {
        "hardware": processor_name(),
        "num_threads": torch.get_num_threads(),
        "load_before": load,
        "rows": rows_of(alone, together, given.batch_size),
    }


@command
def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, nargs="+", required=True, help="folders of pipeline.images.train")
    parser.add_argument("--guidances", nargs="+", default=[NO_GUIDANCE], help="none, constant, linear, half_linear")
    parser.add_argument("--guidance-scale", type=float, default=2.0, help="above 0; 1 is none")
    parser.add_argument("--sampling", type=json_object, default={}, help="temperature, top_k, top_p, JSON")
    parser.add_argument("--images", type=int, default=20, help="timed rounds of one image each")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--num-threads", type=int, default=0, help="0: all cores, or OMP_NUM_THREADS")
    parser.add_argument("--output", type=Path, required=True, help="the file to write")
    given = parser.parse_args()
    for name in ("images", "batch_size"):
        if getattr(given, name) < 1:
            raise UserError(f"{name.replace('_', '-')} must be 1 or more, not {getattr(given, name)}")
    atomic_write(given.output, json.dumps(measure(given), indent=2) + "\n")


if __name__ == "__main__":
    main()
