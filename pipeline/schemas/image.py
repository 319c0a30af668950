"""The columns of ``results/image.csv``: their units, their meaning, and what a value must be.

A row is a way to make digits (``subject`` digits: a window with a guidance), what it is held against (``real``,
``tokenizer``), or what it costs to read a photograph of one size (``subject`` photograph). A figure that does not apply
is empty. The column-by-column document is printed from here::

    python -m pipeline.schemas.image > docs/image_columns.md
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pandera.pandas as pa
from pandera.errors import SchemaErrors

from pipeline.errors import UserError
from pipeline.images.data import NUM_CLASSES
from pipeline.images.records import GUIDANCES
from pipeline.schemas.columns import NOT_EMPTY, SHA256, SHARE, real, text, whole
from pipeline.schemas.common import (
    check_names,
    column_complaint,
    columns_as_markdown,
    filled,
    read_csv,
    text_columns,
    write_csv,
)

DIGITS, PHOTOGRAPH = "digits", "photograph"
KEY = ["profile", "hardware", "subject", "method", "guidance", "side"]

INTERVAL = "lower end of its 95 % interval: Student's over rounds, and what runs differ by"

COLUMNS: dict[str, pa.Column] = {
    # which row this is
    "profile": text("configuration profile of the run", str_matches=NOT_EMPTY),
    "hardware": text("processor that the row was timed on", str_matches=NOT_EMPTY),
    "device": text("where the model ran", isin=["cpu"]),
    "dtype": text("type of the weights and of the arithmetic", isin=["float32"]),
    "subject": text(
        "`digits`: generated, judged and timed; `photograph`: read once, for the cost alone", isin=[DIGITS, PHOTOGRAPH]
    ),
    "method": text(
        "`window_<s>`: s x s tokens a row, 1 is plain next-token prediction; `real`: the digits that were learned "
        "from; `tokenizer`: the same, encoded and decoded",
        str_matches=NOT_EMPTY,
    ),
    "window": whole("tokens", "s, tokens along a side of a window", ge=1),
    "guidance": text("schedule of classifier-free guidance", isin=[*GUIDANCES, ""]),
    "guidance_scale": real("ratio", "the scale that the schedule ends with; 1 is none", gt=0.0),
    "sampling": text("how codes were drawn, JSON"),
    "seed": whole("number", "seed of training and of drawing", ge=0),
    "weights": text("`trained` here, or `untrained`, which cost the same", isin=["trained", "untrained", ""]),
    "weights_sha256": text("SHA-256 of the trained weights", str_matches=SHA256),
    "num_parameters": whole("weights", "weights of the transformer, the added layers among them", ge=1),
    "data_source": text("where the images came from", str_matches=NOT_EMPTY),
    "codebook_sha256": text("SHA-256 of the image tokenizer's codebook", str_matches=SHA256),
    "codebook_size": whole("codes", "different tokens", ge=2),
    "round_trip_rmse": real(
        "of 0..1",
        "error of encoding and decoding alone, root mean square over pixels; of digits: held-out ones",
        ge=0.0,
    ),
    "side": whole("pixels", "side of the image", ge=1),
    "patch_size": whole("pixels", "side of the patch that a token stands for", ge=1),
    # how many, beside the formula
    "tokens": whole("tokens", "n, tokens of an image", ge=1),
    "rows": whole("rows", "rows that the transformer reads, and passes that generate the image", ge=1),
    "predicted_rows": whole("rows", "n / s^2", ge=1),
    "attention_flops": whole(
        "operations", "counted in the pass that reads the image: all rows by all rows, in all layers", ge=0
    ),
    "predicted_attention_flops": whole("operations", "those of window 1, by s^4", ge=0),
    "flops": whole("operations", "all matrix products of that pass", ge=0),
    # how good
    "images": whole("images", "images that were judged", ge=1),
    "accuracy": real(
        "share", "images that a classifier of held-out real digits takes for the class that was asked for", **SHARE
    ),
    "accuracy_stderr": real("share", "standard error of `accuracy` over images", ge=0.0),
    **{
        f"accuracy_{one}": real("share", f"`accuracy` of the images that were to be a {one}", **SHARE)
        for one in range(NUM_CLASSES)
    },
    "frechet": real(
        "distance",
        "Fréchet distance to held-out real digits in the classifier's hidden layer; lower is better; the row `real` is "
        "the floor",
        ge=0.0,
    ),
    "nearest_ratio": real(
        "ratio",
        "median distance to the nearest digit that was learned from, by that of held-out real digits; well below 1 the "
        "generator repeats what it saw",
        ge=0.0,
    ),
    "copies": real("share", "images all of whose tokens are those of a digit that was learned from", **SHARE),
    # what it took to learn
    "steps": whole("steps", "training steps", ge=1),
    "batch_size": whole("images", "images a training step", ge=1),
    "training_images": whole("images", "different images that were learned from", ge=1),
    "training_seconds": real("s", "time of the training", ge=0.0),
    "validation_loss": real("nats/token", "loss on held-out digits at the end of training", ge=0.0),
    # how fast: generating
    "image_s": real("s", "time to generate one digit's codes, one at a time; median over rounds", gt=0.0),
    "speedup": real("ratio", "images/s over all rounds, by that of window 1 with the same guidance in turn", gt=0.0),
    "speedup_low": real("ratio", INTERVAL, gt=0.0),
    "speedup_high": real("ratio", "upper end of that interval", gt=0.0),
    "images_at_once": whole("images", "images generated at once for the two figures that follow", ge=1),
    "batch_images_per_second": real("images/s", "images by the seconds for them together; median of trials", gt=0.0),
    "batch_speedup": real("ratio", "that by window 1's, timed in turn", gt=0.0),
    # what it costs: reading
    "prefill_s": real("s", "time to read the image into a cache; median over rounds", gt=0.0),
    "prefill_ratio": real("ratio", "seconds of all rounds by those of window 1 in turn; lower is better", gt=0.0),
    "prefill_ratio_low": real("ratio", INTERVAL, gt=0.0),
    "prefill_ratio_high": real("ratio", "upper end of that interval", gt=0.0),
    "peak_memory_bytes": whole(
        "bytes", "peak resident set above the process's floor: weights, cache and the rest", ge=0
    ),
    "memory_ratio": real("ratio", "`peak_memory_bytes` by that of window 1", gt=0.0),
    "weight_bytes": whole("bytes", "bytes of the weights among them", ge=0),
    # how it was measured
    "repeats": whole("rounds", "timed rounds", ge=1),
    "num_threads": whole("threads", "CPU threads that computed", ge=1),
    "load": real(
        "processes", "load average of the machine just before the timing; well above 0 it was not alone", ge=0.0
    ),
}
TEXT = text_columns(COLUMNS)
SCHEMA = pa.DataFrameSchema(COLUMNS, unique=KEY, strict=True, ordered=True, coerce=True)


def validate(table: pd.DataFrame, name: str = "image.csv") -> pd.DataFrame:
    """Return ``table`` in the schema's types; raise ``UserError`` naming the first wrong column and value."""
    check_names(table, COLUMNS, name)
    try:
        return SCHEMA.validate(table, lazy=True)
    except SchemaErrors as error:
        wrong = error.failure_cases.iloc[0]
        if wrong["schema_context"] != "Column":
            raise UserError(f"{name}: two rows of the same {', '.join(KEY)}") from error
        raise UserError(f"{name}: {column_complaint(wrong, COLUMNS)}") from error


def frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Return the table of ``rows``, checked; text that a row leaves out is ``""``, a figure is missing."""
    return validate(filled(rows, COLUMNS))


def read(path: Path) -> pd.DataFrame:
    """Read and check a table of images. Empty text is ``""``, an empty figure is missing."""
    figures = [name for name in COLUMNS if name not in TEXT]
    return validate(read_csv(path, TEXT, figures, "pipeline.images.collect"), path.name)


def write(table: pd.DataFrame, path: Path) -> None:
    """Check ``table`` and write it to ``path``, whole or not at all; floats with six significant digits."""
    write_csv(validate(table, path.name), path)


def as_markdown() -> str:
    """Return the column-by-column document."""
    title = "# The columns of results/image.csv\n\nMade by `python -m pipeline.schemas.image`; do not edit."
    note = (
        "One row is a way to generate digits (`subject` digits), what that is held against (`real`, `tokenizer`), or "
        "the cost of reading a photograph of one size (`subject` photograph). A figure that does not apply is empty. "
        "What is measured, and how, is in [Images](images.md)."
    )
    lines = [title, "", note, "", *columns_as_markdown(COLUMNS)]
    return "\n".join([*lines, "", f"{', '.join(KEY)} together name one row only.", ""])


if __name__ == "__main__":
    print(as_markdown(), end="")
