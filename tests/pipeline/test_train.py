"""Training a twin and what is held against it: whole folders, mistakes in one line, a kill, two processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline import train
from pipeline.distill import distilled
from pipeline.errors import UserError
from pipeline.generators import GENERATORS
from pipeline.registry import import_target
from pipeline.training_work import is_whole, last_checkpoint, spent_seconds
from tests.pipeline.test_pairs import given, write_pairs

BACKBONE = {"hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 96}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(given(folder, num_pairs=400))
    return folder


def command(generator: str, pairs: Path, output: Path, /, **changes: Any) -> list[str]:
    values = {"backbone": json.dumps(BACKBONE), "steps": 4, "batch-size": 8, "output": output} | changes
    words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    return ["-m", "pipeline.train", "--generator", generator, "--pairs", str(pairs), *words]


def run(*arguments: Any, status: int = 0, **changes: Any) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command(*arguments, **changes)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == status, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def twin(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("twins") / "tiny"
    run("autoregressive", pairs, folder)
    return folder


def test_a_twin_is_a_model_folder_like_any_other(twin: Path, pairs: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(twin), AutoTokenizer.from_pretrained(twin)
    record = json.loads((twin / "source.json").read_text())
    assert model.config.hidden_size == 32
    assert model.config.vocab_size == len(tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert record["source"] == "trained:tiny"
    assert record["steps"] == 4
    curve = (twin / "loss.csv").read_text().splitlines()
    assert curve[0] == "step,epoch,loss,eval_loss,learning_rate"
    assert len(curve) > 4


@pytest.mark.parametrize("name", ["shufflelm", "shufflelm_slot_order", "diffusion", "twostream"])
def test_each_kind_of_generator_is_trained_and_loads(name: str, pairs: Path, twin: Path, tmp_path: Path) -> None:
    run(name, pairs, tmp_path / name)
    entry = GENERATORS[name]
    record = json.loads((tmp_path / name / "generator.json").read_text())
    assert record["definition"] == entry.definition
    assert record["pairs_sha256"] == json.loads((twin / "source.json").read_text())["pairs_sha256"]
    generator = import_target(entry.generator).from_pretrained(tmp_path / name)
    for key, value in entry.training.items():
        assert getattr(generator.model.config, key) == value
    prompt = AutoTokenizer.from_pretrained(pairs)("two hundred")["input_ids"]
    assert 0 < len(generator.generate(prompt, max_new_tokens=12).output_ids) <= 12


def test_a_generator_begins_with_its_twins_weights_and_says_which(pairs: Path, twin: Path, tmp_path: Path) -> None:
    run("twostream_from_twin", pairs, tmp_path / "out", **{"start-from": twin, "learning-rate": 1e-9})
    begun = load_file(tmp_path / "out/model.safetensors")["backbone.layers.0.mlp.up_proj.weight"]
    theirs = load_file(twin / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    torch.testing.assert_close(begun, theirs, atol=1e-6, rtol=0)
    record = json.loads((tmp_path / "out/generator.json").read_text())
    assert record["start_from"] == str(twin)
    assert record["start_from_sha256"] == json.loads((twin / "source.json").read_text())["weights_sha256"]


@pytest.mark.parametrize(
    ("generator", "backbone", "options", "said"),
    [
        ("autoregressive", {}, {"glancing": 0.5}, "--options {'glancing': 0.5}: the twin has none"),
        ("shufflelm", {"num_layers": 9}, {}, "--backbone num_layers = 9: --start-from .* has 2"),
        (
            "shufflelm",
            {},
            {"max_parallel_tokens": 92},
            "backbone.max_position_embeddings = 96: a prompt of .* exceed it",
        ),
    ],
)
def test_what_cannot_be_trained_is_told_before_training(
    pairs: Path, twin: Path, generator: str, backbone: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(pairs)
    texts = train.read_examples(pairs, None)["train"]
    with pytest.raises(UserError, match=f"^{said}"):
        train.fitted(train.make_model(generator, backbone, options, tokenizer, 20, str(twin)), texts)


def test_a_text_of_more_tokens_than_slots_is_learned_block_by_block(pairs: Path, twin: Path, tmp_path: Path) -> None:
    options = {"max_parallel_tokens": 4}
    model = train.make_model("shufflelm", {}, options, AutoTokenizer.from_pretrained(pairs), 20, str(twin))
    texts = train.read_examples(pairs, None)["train"]
    blocks = train.fitted(model, texts)
    assert max(len(block.target_ids) for block in blocks) == 4
    rest = iter(blocks)
    for prompt, target in texts:
        before = prompt
        while before != (*prompt, *target):
            block = next(rest)
            assert block.prompt_ids == before
            before = (*before, *block.target_ids)
    assert next(rest, None) is None
    run("shufflelm", pairs, tmp_path / "short", options=json.dumps(options))
    generator = import_target(GENERATORS["shufflelm"].generator).from_pretrained(tmp_path / "short")
    assert len(generator.generate(texts[0].prompt_ids, max_new_tokens=12).output_ids) <= 12


def test_a_model_of_another_tokenizer_is_no_start(pairs: Path, twin: Path, tmp_path: Path) -> None:
    """Its embeddings are those of other words, and its end token is none here."""
    other = tmp_path / "pairs"
    write_pairs(given(other, num_pairs=400, vocab_size=300))
    with pytest.raises(UserError, match=r"its tokenizer has .* tokens and is not that of the pairs \(300 tokens\)"):
        train.make_model("shufflelm", {}, {}, AutoTokenizer.from_pretrained(other), 20, str(twin))
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match="its tokenizer cannot be read"):
        train.make_model("shufflelm", {}, {}, AutoTokenizer.from_pretrained(pairs), 20, str(tmp_path / "bare"))


def test_a_source_that_leaves_no_room_for_an_answer_keeps_its_reference(
    twin: Path, pairs: Path, tmp_path: Path
) -> None:
    shutil.copytree(twin, tmp_path / "twin")
    file = tmp_path / "twin" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_position_embeddings": 8}))
    rows = [json.loads(line) for line in (pairs / "pairs.jsonl").read_text().splitlines()]
    references = {row["source"]: row["target"] for row in rows if row["split"] == "train"}
    tokenizer = AutoTokenizer.from_pretrained(twin)
    found = {row["source"]: row["target"] for row in distilled(tmp_path / "twin", pairs)}
    long = [source for source in references if len(tokenizer(source)["input_ids"]) >= 8]
    assert found.keys() == references.keys()
    assert 0 < len(long) < len(references)
    assert all(found[source] == references[source] for source in long)


def test_the_twins_answers_are_its_greedy_ones_and_what_has_no_end_is_none(
    twin: Path, pairs: Path, tmp_path: Path
) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(twin), AutoModelForCausalLM.from_pretrained(twin)
    # After four steps of training it hardly ever ends by itself: half of its tokens end a text here.
    ends = list(range(len(tokenizer) // 2, len(tokenizer)))
    shutil.copytree(twin, tmp_path / "twin")
    model.generation_config.eos_token_id = ends
    model.generation_config.save_pretrained(tmp_path / "twin")
    rows = [json.loads(line) for line in (pairs / "pairs.jsonl").read_text().splitlines()]
    references = {row["source"]: row["target"] for row in rows if row["split"] == "train"}
    longest = max(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in references.values())
    answers = {row["source"]: row["target"] for row in distilled(tmp_path / "twin", pairs)}
    assert answers.keys() == references.keys()
    kept = 0
    for source in list(answers)[:40]:
        ids = torch.tensor([tokenizer(source)["input_ids"]])
        output = model.generate(ids, do_sample=False, max_new_tokens=longest + 1)[0, ids.shape[1] :].tolist()
        finished = output[-1] in ends
        expected = tokenizer.decode(output, skip_special_tokens=True) if finished else references[source]
        assert answers[source] == expected
        kept += finished
    assert 0 < kept < 40


def test_a_training_that_goes_astray_is_one_line_and_no_model(pairs: Path, tmp_path: Path) -> None:
    said = run("autoregressive", pairs, tmp_path / "astray", status=2, **{"learning-rate": 1e30})
    (line,) = (line for line in said.splitlines() if "the loss is no number any more at step" in line)
    assert "(now 1e+30)" in line
    assert "Traceback" not in said
    assert not (tmp_path / "astray").exists()


def test_a_checkpoint_that_a_kill_left_in_parts_is_not_gone_on_with(tmp_path: Path) -> None:
    states = {10: '{"global_step": 10}', 20: None, 30: "", 40: '{"global_step": 4'}
    for step, state in states.items():
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_text("")
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert [folder.name for folder in tmp_path.iterdir()] == ["checkpoint-10"]
    assert last_checkpoint(tmp_path / "nothing") is None


def test_a_killed_training_goes_on_and_ends_as_if_it_had_not_been(pairs: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run("diffusion", pairs, whole, steps=30)
    process = subprocess.Popen(
        [sys.executable, *command("diffusion", pairs, killed, steps=30)],
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    checkpoints = tmp_path / ".killed.work" / "checkpoints"
    deadline = time.monotonic() + 120
    while not any(is_whole(checkpoint) for checkpoint in checkpoints.glob("checkpoint-*")):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not killed.exists()
    first_part = spent_seconds(tmp_path / ".killed.work")
    assert first_part > 0
    run("diffusion", pairs, killed, steps=30)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (killed, whole))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-5, rtol=1e-4)
    assert json.loads((killed / "generator.json").read_text())["training_seconds"] > first_part
    assert not list(tmp_path.glob(".*.work"))


def test_two_processes_train_one_model(pairs: Path, tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, *command("shufflelm", pairs, tmp_path / "two", steps=3)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "two" / "generator.json").read_text())
    assert record["num_processes"] == 2


@pytest.mark.parametrize(
    ("generator", "changes", "words"),
    [
        ("shufflml", {}, "unknown generator 'shufflml'; did you mean 'shufflelm'?"),
        ("shufflelm", {"options": '{"matchng": "identity"}'}, "no such key; did you mean 'matching'?"),
        ("shufflelm", {"options": '{"matching": "identiti"}'}, "matching='identiti' is unknown"),
        ("autoregressive", {"backbone": '{"hidden_sise": 8}'}, "did you mean 'hidden_size'?"),
        ("autoregressive", {"steps": 0}, "--steps must be above 0, not 0"),
        ("autoregressive", {"dropout": 1.0}, "--dropout must be at least 0 and below 1, not 1.0"),
        ("autoregressive", {"pairs": "nowhere"}, "no pairs here"),
    ],
)
def test_a_mistake_is_one_line(
    pairs: Path,
    tmp_path: Path,
    run_rule: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    generator: str,
    changes: dict[str, Any],
    words: str,
) -> None:
    assert run_rule(train, *command(generator, pairs, tmp_path / "out", **changes)[2:]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert words in lines[0]
    assert not (tmp_path / "out").exists()


def test_a_failed_training_becomes_a_record_where_cells_look_for_it(pairs: Path, tmp_path: Path) -> None:
    arguments = command("shufflelm", tmp_path / "nowhere", tmp_path / "out")
    done = subprocess.run([sys.executable, *arguments, "--errors-as-rows"], capture_output=True, check=False)
    assert done.returncode == 0
    assert "no pairs here" in json.loads((tmp_path / "out" / "generator.json").read_text())["error"]
