r"""Rule: let an image transformer draw digits of every class under one guidance. Untimed, many at once. By hand::

    python -m pipeline.images.generate --model results/images/laptop/window_2 --tokens results/images/laptop/digits \
        --guidance half_linear --guidance-scale 2.0 --output results/images/laptop/samples/window_2/half_linear

``--guidance none`` asks the class alone. Writes ``images.safetensors`` (``ids``, ``images`` 0..1, ``classes``) and,
last, ``samples.json``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.arguments import json_object
from pipeline.errors import UserError, command, nearest
from pipeline.files import atomic_write
from pipeline.images.data import NUM_CLASSES
from pipeline.images.patches import PatchTokenizer
from pipeline.images.records import (
    GUIDANCES,
    IMAGES,
    MODEL_RECORD,
    NO_GUIDANCE,
    SAMPLES_RECORD,
    TOKENIZER,
    read_record,
    write_arrays,
)

if TYPE_CHECKING:
    from shuffle.tokenshuffle.generator import ImageGenerator

AT_ONCE = 240  # images; their number changes which of them are drawn, so it is no option


def load_generator(model: Path, guidance: str, scale: float, sampling: dict[str, Any]) -> ImageGenerator:
    """Return the generator; ``guidance`` is one of :data:`GUIDANCES`.

    Raises:
        UserError: there is no model, or an option is not valid.
    """
    from shuffle.tokenshuffle.generator import ImageGenerator

    if guidance not in GUIDANCES:
        raise UserError(f"guidance: unknown {guidance!r}; {nearest(guidance, GUIDANCES)}")
    if not (model / MODEL_RECORD).is_file():
        raise UserError(f"{model} holds no model; python -m pipeline.images.train makes it")
    asked: dict[str, Any] = {"guidance": guidance, "guidance_scale": scale}
    if guidance == NO_GUIDANCE:
        asked = {"guidance": "constant", "guidance_scale": 1.0}
    try:
        return ImageGenerator.from_pretrained(model, **asked, **sampling)
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error


def generate(given: argparse.Namespace) -> None:
    """Do all that the command line asks for.

    Raises:
        UserError: the model or the tokenizer is missing, or an option is not valid.
    """
    import torch

    generator = load_generator(given.model, given.guidance, given.guidance_scale, given.sampling)
    tokenizer = PatchTokenizer.load(given.tokens / TOKENIZER)
    asked = given.classes if given.classes is not None else list(range(NUM_CLASSES))
    classes = [label for label in asked for _ in range(given.images_per_class)]
    draws = torch.Generator().manual_seed(given.seed)
    try:
        parts = [generator.generate(classes[i : i + AT_ONCE], draws) for i in range(0, len(classes), AT_ONCE)]
    except ValueError as error:
        raise UserError(str(error)) from error
    ids = torch.cat(parts).numpy()
    arrays = {"ids": ids, "images": tokenizer.decode(ids), "classes": np.array(classes)}
    write_arrays(given.output / IMAGES, arrays)
    record = {
        "model": read_record(given.model / MODEL_RECORD, "train"),
        "guidance": given.guidance,
        "guidance_scale": given.guidance_scale if given.guidance != NO_GUIDANCE else 1.0,
        "sampling": given.sampling,
        "seed": given.seed,
        "images": len(classes),
    }
    atomic_write(given.output / SAMPLES_RECORD, json.dumps(record, indent=2) + "\n")


@command
def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="the folder that pipeline.images.train wrote")
    parser.add_argument("--tokens", type=Path, required=True, help="the folder of the digits' tokens")
    parser.add_argument("--guidance", default=NO_GUIDANCE, help=", ".join(GUIDANCES))
    parser.add_argument("--guidance-scale", type=float, default=2.0, help="above 0; 1 is none")
    parser.add_argument("--sampling", type=json_object, default={}, help="temperature, top_k, top_p, JSON")
    parser.add_argument("--classes", type=int, nargs="+", help="default: all")
    parser.add_argument("--images-per-class", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="the folder to write in")
    given = parser.parse_args()
    if given.images_per_class < 1:
        raise UserError(f"images-per-class must be 1 or more, not {given.images_per_class}")
    if not given.guidance_scale > 0:
        raise UserError(f"guidance-scale must be above 0 (1 is no guidance), not {given.guidance_scale}")
    generate(given)


if __name__ == "__main__":
    main()
