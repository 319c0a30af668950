"""``python -m pipeline``: what it lists, shows and compares."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

from decoding import SpeculativeDecoder, TargetModel
from pipeline.cli.choices import TRAINED, models_of, read_profile
from pipeline.generators import GENERATORS
from pipeline.registry import METHODS, TASKS, import_target
from tests.pipeline.conftest import Run
from tests.pipeline.standins import requests

ROOT = Path(__file__).resolve().parents[2]
IDS = requests(1)[0]["prompt_ids"]
PROMPT = " ".join(f"w{token}" for token in IDS)
PLAIN = ["--dtype=float32", "--device=cpu", "--num-threads=1", "--max-new-tokens=30"]


@pytest.fixture(scope="module")
def truth(home: Path) -> list[str]:
    """What the model writes, word by word, the end token left out."""
    target = TargetModel.from_pretrained(home / "results/models/smollm2-135m")
    decoder = SpeculativeDecoder(target, import_target(METHODS["autoregressive"].target)())
    return [f"w{token}" for token in decoder.generate(IDS, max_new_tokens=30).output_ids if token != 2]


def words_of(text: str) -> list[str]:
    return re.findall(r"w\d+", text)


@pytest.mark.parametrize("what", ["models", "methods", "options", "tasks"])
def test_lists_are_drawn_without_torch(what: str) -> None:
    code = (
        f"import sys; sys.argv = ['pipeline', 'list', {what!r}]\n"
        "from pipeline.__main__ import main\n"
        "try: main()\n"
        "except SystemExit as ended: sys.exit(ended.code or ('torch' in sys.modules) * 3)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = [line.split("\t")[0] for line in done.stdout.splitlines()[1:]]
    known = {"methods": METHODS, "options": METHODS, "tasks": TASKS, "models": models_of(read_profile("laptop"))}
    assert names == list(known[what])


def test_a_list_on_a_terminal_is_a_table_with_nothing_cut_off(
    run: Run, at_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    assert run("list", "models") == 0
    shown = capsys.readouterr().out
    assert "─" in shown
    assert "…" not in shown
    assert run("list", "tasks") == 0


def test_the_places_of_models_and_parts_are_those_of_the_rules() -> None:
    rules = (ROOT / "pipeline/rules/common.smk").read_text()
    for place in (
        "results/parts/{model}/{SETTINGS.training.name}/{part}/{part}.json",
        "results/twins/{model}/{part}/generator.json",
        "results/models/{model}.draft/source.json",
    ):
        assert place in rules
    models = models_of(read_profile("laptop"))
    assert str(models["smollm2-135m"].parts["draft"]) == "results/parts/smollm2-135m/laptop/draft/draft.json"
    assert str(models["verbalized-2m"].parts["diffusion"]) == "results/twins/verbalized-2m/diffusion/generator.json"


@pytest.mark.parametrize(
    "method", ["autoregressive", "recycling", "medusa", "speculative", "fasterdecodemixer", "hf_greedy"]
)
def test_a_method_writes_the_models_text_with_the_parts_that_the_dag_trained(
    run: Run, at_home: Path, truth: list[str], capsys: pytest.CaptureFixture[str], method: str
) -> None:
    assert run("generate", PROMPT, "--method", method, "--mark", "|", *PLAIN) == 0
    shown = capsys.readouterr()
    assert words_of(shown.out) == truth
    steps = int(re.search(r"tokens in (\d+) steps: ", shown.err)[1])  # type: ignore[index]
    assert shown.out.count("|") in (steps, steps - 1)  # nothing is seen of a step that emits the end token alone
    given = read_profile("laptop").methods[method]
    options = f" ({', '.join(f'{name}={value}' for name, value in given.items())})" if given else ""
    assert shown.err.startswith(f"{method}{options}: ")


def test_a_parallel_generator_runs_beside_its_twin_and_each_pass_counts_as_a_step(
    run: Run, at_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--model=verbalized-2m", "-o", "num_refinement_steps=2", "--max-new-tokens=8", *PLAIN[:3]]
    assert run("generate", PROMPT, "-m", "diffusion", *more) == 0
    told = capsys.readouterr().err
    tokens, passes, per_pass = re.search(r": (\d+) tokens in (\d+) steps?: ([\d.]+) tokens/step", told).groups()  # type: ignore[union-attr]
    assert float(per_pass) == pytest.approx(int(tokens) / int(passes), abs=0.01)
    assert run("compare", "autoregressive", "diffusion", PROMPT, "--repeats=1", *more[:1], *more[3:]) == 0
    assert capsys.readouterr().out.splitlines()[2].startswith("diffusion\t")


def test_each_step_has_the_next_colour_and_none_where_none_is_wanted(
    run: Run, at_home: Path, truth: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert run("generate", PROMPT, "-m", "autoregressive", *PLAIN) == 0
    coloured = re.findall(r"\x1b\[(\d+)m *(w\d+)", capsys.readouterr().out)
    assert [word for _, word in coloured] == truth
    assert [colour for colour, _ in coloured] == [("36", "33")[i % 2] for i in range(len(truth))]
    monkeypatch.setenv("NO_COLOR", "1")
    assert run("generate", PROMPT, "-m", "autoregressive", *PLAIN) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_a_prompt_may_come_from_a_file_or_from_standard_input(
    run: Run,
    at_home: Path,
    truth: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text(PROMPT)
    monkeypatch.setattr(sys, "stdin", io.StringIO(PROMPT))
    for prompt in (["--file", str(file)], ["-"]):
        assert run("generate", *prompt, *PLAIN) == 0
        assert words_of(capsys.readouterr().out) == truth


def test_a_stop_string_ends_the_text_and_a_seed_draws_it_again(
    run: Run, at_home: Path, truth: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("generate", PROMPT, "--stop", truth[3], *PLAIN) == 0
    assert words_of(capsys.readouterr().out) == truth[: truth.index(truth[3]) + 1]
    drawn = []
    for seed in ("1", "1", "2"):
        assert run("generate", PROMPT, "--temperature=1.5", "--seed", seed, *PLAIN) == 0
        drawn.append(capsys.readouterr().out)
    assert drawn[0] == drawn[1] != drawn[2]


def test_two_lossless_methods_agree_and_both_are_told(
    run: Run, at_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("compare", "autoregressive", "recycling", PROMPT, "--repeats=2", "-b", "num_nodes=5", *PLAIN) == 0
    head, first, second, ids, speedup = capsys.readouterr().out.splitlines()
    assert head.split("\t")[:4] == ["method", "tokens", "steps", "tokens/step"]
    name, tokens, steps, per_step, *_ = first.split("\t")
    assert (name, int(tokens) - 1, per_step) == ("autoregressive", int(steps), "1.00")
    assert second.split("\t")[:2] == ["recycling (num_nodes=5)", tokens]
    assert ids == "ids: equal"
    assert re.fullmatch(r"speed-up of recycling \(num_nodes=5\) over autoregressive: [\d.]+ \[.*\], 2 repeats", speedup)


def test_where_two_methods_part_is_told(
    run: Run, at_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        "".join(f'{{"prompt": "{" ".join(f"w{i}" for i in each["prompt_ids"])}"}}\n' for each in requests(3))
    )
    options = ["-b", "epsilon=0.01", "-b", "delta=0.01", "--file", str(file), "--repeats=1"]
    assert run("compare", "medusa", "medusa_typical", *options, *PLAIN) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"ids: differ on [123] of 3 prompts", lines[3])
    assert re.search(
        r"first at prompt \d, new token \d+, where the target's two best logits are [\d.e-]+ apart", lines[4]
    )
    assert lines[5].endswith(", 3 prompts")


@pytest.mark.parametrize("command", [[], ["list"], ["generate"], ["compare"], ["rows"]])
def test_help_says_what_it_is_for(run: Run, capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    assert run(*command, *(["--help"] if command else [])) == 0
    assert "Usage: python -m pipeline" in capsys.readouterr().out


def test_every_part_that_a_method_needs_is_made_for_some_model() -> None:
    needed = {part for method in METHODS.values() for part in method.parts}
    assert needed <= {*TRAINED, *GENERATORS}
