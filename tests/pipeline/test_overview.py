"""What the figures of the whole table, of the traces and of training draw is what the figures say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.container import BarContainer, ErrorbarContainer

from pipeline.errors import UserError
from pipeline.overview import FIGURES, panels
from pipeline.schemas import benchmark
from pipeline.traces import figure_of, read_steps, shares, steps_of
from pipeline.training_curves import figure_of as training_figure
from pipeline.training_curves import read_losses
from tests.pipeline.benchmark_rows import METRIC, failed, row, table

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def cells() -> pd.DataFrame:
    times = {"decode_s": 10.0, "draft_s": 2.0, "verify_s": 7.0}
    lookup = [row("prompt_lookup", task, speedup=1.4, **times) for task in METRIC]
    peer = [row("hf_greedy", task, speedup=0.3, decode_s=40.0, draft_s=None, cache_bytes=None) for task in METRIC]
    return table(*(row(task=task) for task in METRIC), *lookup, *peer, failed("union"))


def test_each_cell_is_a_point_beside_its_method() -> None:
    draw, label, note = FIGURES["speedup_by_task"]
    (panel,) = panels(cells(), draw, label, note).axes
    assert [tick.get_text() for tick in panel.get_yticklabels()] == ["hf_greedy", "autoregressive", "prompt_lookup"]
    groups = [container for container in panel.containers if isinstance(container, ErrorbarContainer)]
    assert sorted(group.get_label() for group in groups) == sorted(METRIC)
    for group in groups:
        line, _, (bars,) = group.lines
        assert sorted(line.get_xdata()) == [0.3, 1.0, 1.4]
        assert [round(height) for height in sorted(line.get_ydata())] == [0, 1, 2]
        low, high = bars.get_segments()[-1][:, 0]
        assert any((low, high) == pytest.approx((speedup / 1.107, speedup * 1.107)) for speedup in (1.4, 0.3))


def test_the_parts_of_a_step_add_up_to_it() -> None:
    draw, label, note = FIGURES["time_per_step"]
    (panel,) = panels(cells(), draw, label, note).axes
    bars = {container.get_label(): container for container in panel.containers if isinstance(container, BarContainer)}
    steps = 1052 - 6
    index = [tick.get_text() for tick in panel.get_yticklabels()].index("prompt_lookup")
    widths = {name: container[index].get_width() for name, container in bars.items()}
    assert widths == pytest.approx({"draft": 2000 / steps, "verify": 7000 / steps, "rest": 1000 / steps})
    peer = [tick.get_text() for tick in panel.get_yticklabels()].index("hf_greedy")
    assert bars["rest"][peer].get_width() == pytest.approx(40_000 / steps)
    assert bars["draft"][peer].get_width() == bars["verify"][peer].get_width() == 0


def test_passes_before_the_first_token_are_no_decode_steps() -> None:
    """Of a parallel generator there may be many; where a table does not tell, nothing is drawn for it."""
    told = {"decode_s": 10.0, "draft_s": None, "target_forwards": 1052, "num_prompts": 6}
    draw, label, note = FIGURES["time_per_step"]
    for steps, widths in ((40, [250.0]), (0, []), (None, [])):
        cells = table(row("diffusion", decode_steps=steps, **told))
        (panel,) = panels(cells, draw, label, note).axes
        (rest,) = [container for container in panel.containers if container.get_label() == "rest"]
        assert [bar.get_width() for bar in rest] == widths


def test_a_model_in_the_processors_cache_has_no_share_of_the_memorys_speed() -> None:
    figure = panels(table(row(mbu=None), row("medusa", mbu=None), row(model="large")), *FIGURES["mbu"])
    large, small = figure.axes
    assert "fit into the processor's cache" in small.texts[0].get_text()
    assert len(large.containers) == 1


def test_memory_adds_up_to_its_peak() -> None:
    draw, label, note = FIGURES["memory"]
    (panel,) = panels(cells(), draw, label, note).axes
    bars = [container for container in panel.containers if isinstance(container, BarContainer)]
    assert len(bars) == 4
    for index in range(3):
        assert sum(container[index].get_width() for container in bars) == pytest.approx(700)


def test_a_table_without_a_good_cell_says_so() -> None:
    for draw, label, note in FIGURES.values():
        figure = panels(table(failed("medusa")), draw, label, note)
        assert "no cell ended well" in figure.texts[0].get_text()


def write_cell(folder: Path, method: str, *prompts: list[int], dtype: str = "bfloat16") -> Path:
    cell = folder / "laptop" / "m" / dtype / "humaneval" / method / "0"
    cell.mkdir(parents=True)
    lines = [json.dumps({"method": {"tokens_by_step": steps}}) for steps in prompts]
    (cell / "records.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return cell


def test_steps_are_counted_over_all_prompts(tmp_path: Path) -> None:
    cells = [write_cell(tmp_path, "medusa", [1, 1, 3], [12]), write_cell(tmp_path, "autoregressive", [1, 1], [])]
    table = shares(read_steps([*cells, tmp_path / "laptop" / "m" / "bfloat16" / "humaneval" / "failed" / "0"]))
    assert table.loc[("m (bfloat16)", "medusa"), [1, 3, 8]].tolist() == [0.5, 0.25, 0.25]
    assert table.loc[("m (bfloat16)", "medusa"), "mean"] == 17 / 4
    assert table.loc[("m (bfloat16)", "autoregressive"), 1] == 1
    (panel,) = figure_of(read_steps(cells)).axes
    assert [text.get_text() for text in panel.texts] == ["1.00", "4.25"]


def test_one_model_in_two_dtypes_has_two_panels(tmp_path: Path) -> None:
    cells = [write_cell(tmp_path, "medusa", [1]), write_cell(tmp_path, "medusa", [3], dtype="float32")]
    assert [panel.get_title() for panel in figure_of(read_steps(cells)).axes] == ["m (bfloat16)", "m (float32)"]


def test_the_first_pass_of_a_parallel_generator_is_a_step_of_its_own() -> None:
    run = {"tokens_by_step": [2], "num_new_tokens": 9, "target_forwards": 3}
    assert steps_of("diffusion", run) == [7, 0, 2]
    assert steps_of("shufflelm", {"tokens_by_step": [], "num_new_tokens": 9, "target_forwards": 1}) == [9]
    assert steps_of("shufflelm_draft", run) == [2]


@pytest.mark.parametrize("separator", ["\u2028", "\u0085"])
def test_only_a_newline_ends_a_record(tmp_path: Path, separator: str) -> None:
    cell = write_cell(tmp_path, "medusa", [1])
    record = {"text": f"one{separator}line", "method": {"tokens_by_step": [2, 2]}}
    (cell / "records.jsonl").write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_steps([cell])[["tokens", "steps"]].to_numpy().tolist() == [[2, 2]]


def test_damaged_records_are_named(tmp_path: Path) -> None:
    cell = write_cell(tmp_path, "medusa", [1])
    (cell / "records.jsonl").write_text('{"method": {}}\n')
    with pytest.raises(UserError, match=r"records\.jsonl is damaged"):
        read_steps([cell])


def test_learning_curves_stand_with_those_they_compare_with(tmp_path: Path) -> None:
    for place, text in {
        "models/twin": "step,epoch,loss,eval_loss\n1,0,5.0,\n2,0,4.0,\n2,0,,4.5\n",
        "twins/twin/shufflelm": "step,epoch,loss,eval_loss\n1,0,6.0,\n2,0,,5.5\n",
        "parts/model/default/heads": "step,epoch,loss\n1,0,9.0\n2,0,8.0\n",
        "parts/other/default/heads": "step,epoch,loss\n1,0,7.0\n2,0,6.0\n",
    }.items():
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "loss.csv").write_text(text)
    names = ("models/twin", "twins/twin/shufflelm", "parts/model/default/heads", "parts/other/default/heads")
    folders = [tmp_path / name for name in names]
    losses = read_losses([*folders, tmp_path / "failed"])
    assert losses.groupby("group")["model"].unique().map(sorted).to_dict() == {
        "model, default": ["heads"],
        "other, default": ["heads"],
        "twin": ["autoregressive", "shufflelm"],
    }
    panels_ = {panel.get_title(): panel for panel in training_figure(losses).axes}
    marks = {
        line.get_label(): line.get_ydata().tolist() for line in panels_["twin"].lines if line.get_marker() != "None"
    }
    assert marks == {"autoregressive": [4.5], "shufflelm": [5.5]}
    assert "nothing was trained" in training_figure(read_losses([])).texts[0].get_text()


def test_the_figures_are_drawn_without_torch(tmp_path: Path) -> None:
    benchmark.write(cells(), tmp_path / "benchmark.csv")
    code = "import sys; from pipeline.overview import main; main(); sys.exit('torch' if 'torch' in sys.modules else 0)"
    words = ["--benchmark", str(tmp_path / "benchmark.csv"), "--output", str(tmp_path / "figures")]
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(path.stem for path in (tmp_path / "figures").iterdir()) == sorted(FIGURES)
