"""``python -m pipeline``: every mistake is one line and status 2, and what is missing is told with its command."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from decoding import SpeculativeDecoder
from tests.pipeline.conftest import Run

PLAIN = ["--dtype=float32", "--device=cpu", "--num-threads=1", "--max-new-tokens=30"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["list", "mehods"], r"list: unknown 'mehods'; did you mean 'methods'\?"),
        (["list", "models", "--profile", "laptp"], r"config: no file .*; did you mean 'laptop.yaml'\?"),
        (["generat"], r"no such command 'generat'.*'generate'.*"),
        (["generate", "--metod", "x"], r"no such option: --metod .*--method.*"),
        (["generate"], r"prompt: give a text, - for standard input, or --file"),
        (["generate", "w3", "--file", "x"], r"prompt: .*, not both"),
        (["generate", ""], r"prompt: is empty"),
        (["generate", "w3", "-m", "prompt_lokup"], r"unknown method 'prompt_lokup'; did you mean 'prompt_lookup'\?"),
        (["generate", "w3", "-o", "max_ngrm=3"], r"methods.prompt_lookup.max_ngrm = 3: .*; did you mean 'max_ngram'\?"),
        (["generate", "w3", "-o", "max_ngram=0"], r"methods.prompt_lookup.max_ngram = 0: .*"),
        (["generate", "w3", "-o", "max_ngram"], r"option: 'max_ngram' is not NAME=VALUE"),
        (["generate", "w3", "--model", "smolm2"], r"model: 'smolm2' is no folder .*; did you mean 'smollm2-135m'\?"),
        (["generate", "w3", "-m", "diffusion"], r"method 'diffusion' runs on a twin, which 'smollm2-135m' is not; .*"),
        (["generate", "w3", "-m", "medusa", "--part", "head=x"], r"part: .* takes no 'head'; did you mean 'heads'\?"),
        (["generate", "w3", "-m", "medusa", "--part", "heads"], r"part: 'heads' is not NAME=FOLDER"),
        (["generate", "w3", "--dtype", "bf16"], r"dtype: unknown 'bf16'; did you mean 'bfloat16'\?"),
        (["generate", "w3", "--device", "gpu"], r"device: unknown 'gpu'; did you mean 'cpu'\?"),
        (["generate", "w3", "--top-p", "2"], r"top_p must be above 0 and at most 1, not 2.0"),
        (["generate", "w3", "--max-new-tokens", "0"], r"invalid value for '--max-new-tokens': .*"),
        (["generate", "w3", "--max-new-tokens", "900"], r"prompt: has 1 tokens; .* more than the 512 .*"),
        (["generate", "w3", "--chat"], r"chat: .* has no chat template; use --no-chat"),
        (["compare", "autoregressive"], r"missing argument 'B'"),
        (["compare", "autoregressive", "medsa", "w3"], r"unknown method 'medsa'; did you mean 'medusa'\?"),
        (["compare", "medusa", "medusa", "w3", "--part", "draft=x"], r"part: neither method takes 'draft'; .*"),
        (
            ["compare", "recycling", "union", "w3", "-b", "drafters=[medusa]", "--part", "mixer=x"],
            r"part: neither method takes 'mixer'; known: heads",
        ),
        (
            ["compare", "recycling", "union", "w3", "-b", "drafters=[medusa]", "--part", "heads=x"],
            r"part: 'x' is no .*",
        ),
        (["compare", "medusa", "recycling", "--file", "nowhere"], r"No such file or directory \(nowhere\)"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    run: Run, at_home: Path, capsys: pytest.CaptureFixture[str], arguments: Sequence[str], line: str
) -> None:
    assert run(*arguments) == 2
    shown = capsys.readouterr()
    assert re.fullmatch(f"error: {line}\n", shown.err)
    assert not shown.out


def test_what_is_not_there_is_told_with_the_command_that_gets_it(
    run: Run, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("generate", "w3") == 2
    assert capsys.readouterr().err.endswith("snakemake --cores all results/models/smollm2-135m/source.json\n")
    assert run("generate", "w3", "--profile", "smoke") == 2
    assert capsys.readouterr().err.endswith("/source.json --config profile=smoke\n")
    smoke = (Path(__file__).resolve().parents[2] / "config" / "smoke.yaml").read_text()
    (tmp_path / "my.yaml").write_text(smoke.replace("profile: smoke", "profile: mine"))
    assert run("generate", "w3", "--profile", "my.yaml") == 2
    assert capsys.readouterr().err.endswith("/source.json --configfile my.yaml\n")
    (tmp_path / "results").mkdir()
    (tmp_path / "results/models").symlink_to(home / "results/models")
    assert run("generate", "w3", "-m", "medusa") == 2
    told = capsys.readouterr().err
    assert "snakemake --cores all results/parts/smollm2-135m/laptop/heads/heads.json" in told
    assert "--part heads=FOLDER" in told
    model = str(home / "results/models/smollm2-135m")
    assert run("generate", "w3", "-m", "medusa", "--model", model) == 2
    assert "needs --part heads=FOLDER" in capsys.readouterr().err


def test_a_part_that_could_not_be_made_is_told_as_its_rule_wrote_it(
    run: Run, at_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "heads.json").write_text('{"error": "no text to learn from"}')
    assert run("generate", "w3", "-m", "medusa", f"--part=heads={tmp_path}", *PLAIN) == 2
    assert capsys.readouterr().err == "error: no text to learn from\n"


def test_ctrl_c_is_status_130(run: Run, at_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SpeculativeDecoder, "generate", interrupted)
    assert run("generate", "w3 w4", *PLAIN) == 130
