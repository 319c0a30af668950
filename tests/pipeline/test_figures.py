from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pytest

mpl.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from pipeline.figures import ACROSS, front_of, looks_of, speed_quality
from pipeline.labels import overlap
from pipeline.schemas import benchmark
from tests.pipeline.benchmark_rows import METRIC, failed, row, table

SPEEDUPS = {
    "autoregressive": 1.0,
    "hf_greedy": 0.85,
    "prompt_lookup": 1.31,
    "hf_prompt_lookup": 1.05,
    "lookahead": 1.12,
    "medusa": 1.9,
    "ouroboros": 2.05,
    "mixer_raw": 2.3,
}


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def laptop() -> pd.DataFrame:
    """Eight methods on four tasks; the lossless ones have, as they should, all the same quality."""
    lossy = {"lossless": False, "quality": 0.08}
    return table(
        *(
            row(method, task, speedup=speedup, **(lossy if method == "mixer_raw" else {}))
            for task in METRIC
            for method, speedup in SPEEDUPS.items()
        )
    )


def names_of(figure: Figure) -> list[list[str]]:
    return [[text.get_text() for text in panel.texts] for panel in figure.axes]


def test_every_task_is_a_panel_and_every_method_is_named_in_it() -> None:
    figure = speed_quality(laptop())
    assert [panel.get_title().split(" · ")[0] for panel in figure.axes] == sorted(METRIC)
    assert all(sorted(names) == sorted(SPEEDUPS) for names in names_of(figure))
    assert [panel.get_ylabel() for panel in figure.axes] == [METRIC[task] for task in sorted(METRIC)]


def test_no_name_covers_another_and_none_leaves_its_panel() -> None:
    figure = speed_quality(laptop())
    figure.draw_without_rendering()
    for panel in figure.axes:
        boxes = [text.get_window_extent() for text in panel.texts]
        assert all(overlap(one, other) == 0 for one, other in itertools.combinations(boxes, 2))
        frame = panel.get_window_extent()
        assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)
        assert all(frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes)


def test_the_bars_are_the_speedups_interval_and_the_standard_error() -> None:
    figure = speed_quality(table(row(speedup=1.5, speedup_low=1.2, speedup_high=1.6, tokens_per_second=90.0)))
    (container,) = [one for one in figure.axes[0].containers if isinstance(one, ErrorbarContainer)]
    across, up = (bar.get_segments()[0] for bar in container.lines[2])
    assert across[:, 0] == pytest.approx([1.2, 1.6])
    assert up[:, 1] == pytest.approx([0.20, 0.30])


def test_the_front_is_of_paired_figures_and_not_of_tokens_per_second() -> None:
    """A cell that ran in the machine's good hour has more tokens/s, and so has its baseline."""
    drifted = row("lookahead", speedup=1.1, tokens_per_second=90.0, baseline_tokens_per_second=82.0)
    worse = {"lossless": False, "quality": 0.1}
    good = table(row(), drifted, row("medusa", speedup=1.5), row("medusa_typical", speedup=2.0, **worse))
    assert front_of(good)["method"].tolist() == ["medusa_typical", "medusa"]
    lines = speed_quality(good).axes[0].containers
    assert [one.lines[0].get_xdata()[0] for one in lines] == pytest.approx([1.0, 1.1, 1.5, 2.0])


def test_a_bar_that_reaches_far_does_not_press_the_points_together() -> None:
    figure = speed_quality(table(row(), row("medusa", speedup=1.5, speedup_low=0.02, speedup_high=120.0)))
    assert figure.axes[0].get_xlim()[1] < 4


def test_lossless_marks_are_filled_and_lossy_ones_hollow() -> None:
    figure = speed_quality(table(row(), row("raw", lossless=False, speedup=2.0)))
    faces = [one.lines[0].get_markerfacecolor() for one in figure.axes[0].containers]
    assert faces[0] != "white"
    assert faces[1] == "white"


def test_methods_differ_in_colour_and_in_marker() -> None:
    looks = looks_of(list(SPEEDUPS))
    assert len({colour for colour, _ in looks.values()}) == len({marker for _, marker in looks.values()}) == len(looks)


@pytest.mark.parametrize(
    "cells",
    [
        [row()],
        [row(quality=0.0, quality_stderr=0.0)],
        [row(quality=1.0, quality_stderr=None)],
        [row(quality_stderr=None), row("b", quality_stderr=None), row("c", speedup=1.001)],
        [row(speedup_low=None, speedup_high=None)],
        [row(seed=0), row(seed=1, speedup=1.01)],
        [row(tokens_per_second=90.0)],
    ],
    ids=["one cell", "all wrong", "all right", "equal", "no interval", "two seeds", "point outside its interval"],
)
def test_odd_tables_make_a_figure(cells: list[dict]) -> None:
    figure = speed_quality(table(*cells))
    assert len(figure.axes[0].texts) == len(cells)
    low, high = figure.axes[0].get_ylim()
    assert high - low > 0.05


def test_cells_without_a_point_are_named_below_their_panel() -> None:
    figure = speed_quality(table(row(), failed("lookahead"), failed("medusa", task="docstrings")))
    below = {panel.get_title().split(" · ")[0]: panel.get_xlabel() for panel in figure.axes}
    assert below["humaneval"] == f"{ACROSS}\nno point: lookahead (failed)"
    assert below["docstrings"] == f"{ACROSS}\nno point: medusa (failed)"


def test_the_same_table_gives_the_same_image_without_torch(tmp_path: Path) -> None:
    benchmark.write(laptop(), tmp_path / "benchmark.csv")
    root = Path(__file__).parents[2]
    images = [tmp_path / "a" / "one.png", tmp_path / "b" / "two.png"]
    for image in images:
        command = [sys.executable, "-X", "importtime", "-m", "pipeline.figures", "--output", str(image)]
        command += ["--benchmark", str(tmp_path / "benchmark.csv")]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
        assert "| torch\n" not in done.stderr
    assert images[0].read_bytes() == images[1].read_bytes()
    assert images[0].read_bytes().startswith(b"\x89PNG")
