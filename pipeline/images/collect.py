r"""Rule: gather what was judged, timed and counted in ``results/image.csv``, a row each. By hand::

    python -m pipeline.images.collect --digits results/images/laptop/digits --scores results/images/laptop/scores.json \
        --timing results/images/laptop/timing.json --photographs results/images/laptop/photographs \
        --cost results/images/laptop/cost.json --profile laptop --output results/image.csv

A quality and a speed belong together: digits that were timed and not judged are no row, and those that were judged and
not timed end the command.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, command
from pipeline.images.data import DIGIT_SIDE
from pipeline.images.records import TOKENIZER_RECORD, read_record
from pipeline.schemas import image
from pipeline.schemas.image import COLUMNS, DIGITS, PHOTOGRAPH

Row = dict[str, Any]


def rows_of_digits(tokenizer: Row, scores: list[Row], timing: Row) -> list[Row]:
    """Return a row for what is real, and one for each window and guidance."""
    tokens = (DIGIT_SIDE // tokenizer["patch_size"]) ** 2
    same = about(tokenizer, "held_out") | {"subject": DIGITS, "side": DIGIT_SIDE, "tokens": tokens}
    same |= {"hardware": timing["hardware"]}
    timed = {(row["window"], row["guidance"]): row for row in timing["rows"]}
    rows = []
    for score in scores:
        figures = {name: score[name] for name in COLUMNS if name in score}
        row = same | figures | {"method": score["name"]}
        if "model" in score:
            window, guidance = score["model"]["window"], score["guidance"]
            if (window, guidance) not in timed:
                raise UserError(f"timing: window {window} with guidance {guidance!r} was judged and not timed")
            row |= {name: score["model"][name] for name in COLUMNS if name in score["model"]}
            speed = dict(timed[window, guidance])
            speed["images_at_once"] = speed.pop("batch_size")  # of training there is one of this name
            row |= speed | {"weights": "trained", "sampling": json.dumps(score["sampling"], sort_keys=True)}
            row |= {"rows": tokens // window**2, "predicted_rows": tokens // window**2}
            row |= {"num_threads": timing["num_threads"], "load": timing["load_before"]}
        rows.append(row)
    return rows


def rows_of_cost(tokenizer: Row, cost: Row) -> list[Row]:
    """Return a row for each side and window."""
    return [
        about(tokenizer, str(row["side"]))
        | {"subject": PHOTOGRAPH, "weights": "untrained", "method": f"window_{row['window']}"}
        | {"hardware": cost["hardware"], "num_threads": cost["num_threads"], "load": cost["load_before"]}
        | row
        for row in cost["rows"]
    ]


def about(tokenizer: Row, part: str) -> Row:
    """Return what a row says of its images."""
    return {
        "device": "cpu",
        "dtype": "float32",
        "data_source": tokenizer["source"],
        "codebook_sha256": tokenizer["codebook_sha256"],
        "codebook_size": tokenizer["codebook_size"],
        "patch_size": tokenizer["patch_size"],
        "round_trip_rmse": tokenizer["round_trip_rmse"][part],
    }


@command
def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits", type=Path, required=True, help="the folder of the digits' tokens")
    parser.add_argument("--scores", type=Path, required=True, help="of pipeline.images.score")
    parser.add_argument("--timing", type=Path, required=True, help="of pipeline.images.timing")
    parser.add_argument("--photographs", type=Path, required=True, help="the folder of the photographs' tokens")
    parser.add_argument("--cost", type=Path, required=True, help="of pipeline.images.cost")
    parser.add_argument("--profile", required=True)
    parser.add_argument("--output", type=Path, required=True, help="the table to write")
    given = parser.parse_args()
    digits, photographs = (
        read_record(folder / TOKENIZER_RECORD, "tokenise") for folder in (given.digits, given.photographs)
    )
    rows = rows_of_digits(digits, read_record(given.scores, "score"), read_record(given.timing, "timing"))
    rows += rows_of_cost(photographs, read_record(given.cost, "cost"))
    image.write(image.frame([row | {"profile": given.profile} for row in rows]), given.output)


if __name__ == "__main__":
    main()
