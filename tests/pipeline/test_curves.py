"""The picture of what a pass less costs: which cells are in it, and where."""

from __future__ import annotations

from typing import Any

from pipeline.curves import curves, points
from tests.pipeline.benchmark_rows import row, table


def generator(method: str, quality: float, passes: int, **changes: Any) -> dict[str, Any]:
    batch = {"batch_size": 32, "batch_tokens_per_second": 9.0, "batch_baseline_tokens_per_second": 3.0}
    own = {"model": "twin", "lossless": False, "batch_speedup": 3.0, "num_prompts": 10, "target_forwards": 10 * passes}
    return row(method, "verbalized", quality=quality, **(batch | own | changes))


def cells() -> list[dict[str, Any]]:
    return [
        row(task="verbalized", model="twin", num_prompts=10, target_forwards=90, quality=98.0),
        row("prompt_lookup", task="verbalized", model="twin"),
        row(task="humaneval"),
        generator("diffusion_4_passes", 97.0, 4, speedup=2.0),
        generator("diffusion_1_passes", 60.0, 1, speedup=6.0),
        generator("shufflelm", 95.0, 1, speedup=5.0),
        generator("twostream_groups_of_2", 96.0, 5, speedup=1.5),
    ]


def test_only_twins_and_what_is_held_against_them_are_drawn() -> None:
    found = points(table(*cells())).set_index("method")
    assert sorted(found.index) == [
        *("autoregressive", "diffusion_1_passes", "diffusion_4_passes", "shufflelm", "twostream_groups_of_2")
    ]
    assert found.loc["autoregressive", "passes"] == 9
    assert found.loc["diffusion_4_passes", ["family", "setting", "passes"]].tolist() == ["diffusion", "4", 4]
    assert found.loc["twostream_groups_of_2", ["family", "setting"]].tolist() == ["twostream", "2"]
    assert found.loc["shufflelm", ["family", "setting"]].tolist() == ["shufflelm", ""]


def test_a_family_is_one_line_in_the_order_of_its_passes() -> None:
    figure = curves(table(*cells()))
    passes, speed = figure.axes
    lines = {container.get_label(): container.lines[0] for container in passes.containers}
    assert sorted(lines) == ["autoregressive", "diffusion", "shufflelm", "twostream"]
    assert lines["diffusion"].get_xdata().tolist() == [1, 4]
    assert lines["diffusion"].get_ydata().tolist() == [60.0, 97.0]
    fast = {container.get_label(): container.lines[0] for container in speed.containers}
    assert fast["diffusion"].get_xdata().tolist() == [6.0, 2.0]
    assert sorted(text.get_text() for text in passes.texts) == ["1", "2", "4"]


def test_a_table_without_them_says_so() -> None:
    figure = curves(table(row()))
    assert not figure.axes
    assert "no cell" in figure.texts[0].get_text()
