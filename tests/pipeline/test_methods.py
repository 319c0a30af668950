"""Every registered method is built from its name, keeps its promise, and is not taught by what runs untimed."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.union import UnionDrafter
from decoding import Sampling, SpeculativeDecoder, TargetModel
from decoding.typical import TypicalAcceptance
from pipeline.config_file import read_yaml
from pipeline.generators import GENERATORS
from pipeline.methods import build_decoder, build_peer, keeps_state, meets_shapes_anew, models_in, unlearned
from pipeline.precision import precision_of
from pipeline.registry import METHODS
from tests.pipeline.standins import requests, save_parts, save_target

ROOT = Path(__file__).resolve().parents[2]
# Those of generators need a twin and its generator: tests/shuffle/test_drafting.py has them.
DRAFTERS = [
    name for name, method in METHODS.items() if method.kind == "drafter" and not set(method.parts) & set(GENERATORS)
]
LEARNING: list[tuple[str, dict[str, Any]]] = [
    ("ouroboros_warm_start", {}),
    ("recycling", {"warm_start": True}),
    ("suffix_decoding", {"warm_start": True}),
    ("union", {"warm_start": True}),
]
PROMPTS = [request["prompt_ids"] for request in requests(3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_target(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def target(folder: Path) -> TargetModel:
    return TargetModel.from_pretrained(folder)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_parts(tmp_path_factory.mktemp("parts"))


def build(name: str, target: TargetModel, parts: dict[str, Path], options: dict[str, Any]) -> SpeculativeDecoder:
    needed = {part: parts[part] for part in METHODS[name].parts_with(options)}
    return build_decoder(name, options, target, needed, Sampling())


@pytest.mark.parametrize("file", sorted((ROOT / "config").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_drafter_of_every_configuration_can_be_built(
    target: TargetModel, parts: dict[str, Path], file: Path
) -> None:
    methods = read_yaml(file).get("methods", {})  # not loaded: a configuration may name data that is not here
    for name in set(DRAFTERS) & set(methods):
        decoder = build(name, target, parts, methods[name])
        assert decoder.generate(PROMPTS[0], max_new_tokens=4).num_new_tokens > 0, name


def steps(decoder: SpeculativeDecoder, prompt: list[int]) -> list[tuple[int, int]]:
    """What a run looks like from outside: tokens emitted and candidates verified, step by step."""
    return [(step.emitted, step.candidates) for step in decoder.generate(prompt, max_new_tokens=40).steps]


@pytest.mark.parametrize("name", DRAFTERS)
def test_every_drafter_is_built_and_a_lossless_one_emits_the_baselines_ids(
    target: TargetModel, parts: dict[str, Path], name: str
) -> None:
    baseline, decoder = build("autoregressive", target, parts, {}), build(name, target, parts, {})
    assert isinstance(decoder.verify, TypicalAcceptance) == (name == "medusa_typical")
    for prompt in PROMPTS:
        ours, theirs = (each.generate(prompt, max_new_tokens=40).output_ids for each in (decoder, baseline))
        assert len(ours) > 0
        assert ours == theirs or not METHODS[name].lossless


def test_the_options_of_a_lossy_rule_go_to_the_rule(target: TargetModel, parts: dict[str, Path]) -> None:
    decoder = build("medusa_typical", target, parts, {"epsilon": 0.5, "num_nodes": 3})
    assert decoder.verify == TypicalAcceptance(epsilon=0.5)
    assert decoder.drafter.max_width == 4


@pytest.mark.parametrize(("name", "options"), LEARNING)
def test_what_runs_unlearned_teaches_nothing(
    target: TargetModel, parts: dict[str, Path], name: str, options: dict[str, Any]
) -> None:
    first, second, _ = PROMPTS
    fresh, decoder, taught = (build(name, target, parts, options) for _ in range(3))
    assert keeps_state(decoder)
    for each in (fresh, decoder, taught):
        each.generate(first, max_new_tokens=40)
    with unlearned(decoder):
        decoder.generate(second, max_new_tokens=40)
    taught.generate(second, max_new_tokens=40)
    expected = steps(fresh, second)
    assert steps(decoder, second) == expected
    assert steps(taught, second) != expected, "it learns too little for this test to show anything"


def test_an_unlearned_run_knows_what_was_known_before(target: TargetModel, parts: dict[str, Path]) -> None:
    decoder = build("recycling", target, parts, {"warm_start": True})
    cold = steps(decoder, PROMPTS[0])
    with unlearned(decoder):
        warm = steps(decoder, PROMPTS[0])
    assert sum(emitted for emitted, _ in warm) == sum(emitted for emitted, _ in cold)
    assert len(warm) < len(cold)
    assert steps(decoder, PROMPTS[0]) == warm


def test_the_models_are_shared_and_not_copied(target: TargetModel, parts: dict[str, Path]) -> None:
    decoder = build("ouroboros_warm_start", target, parts, {})
    own = [model for model in models_in(decoder.drafter, set()) if isinstance(model, TargetModel)]
    assert own
    before = decoder.drafter
    with unlearned(decoder):
        assert decoder.drafter is not before
        inside = {id(model) for model in models_in(decoder.drafter, set())}
        assert {id(model) for model in own} <= inside
    assert decoder.drafter is before


@pytest.mark.parametrize("name", ["prompt_lookup", "ouroboros", "recycling", "union"])
def test_by_its_own_name_a_method_keeps_nothing(target: TargetModel, parts: dict[str, Path], name: str) -> None:
    decoder = build(name, target, parts, {})
    assert not keeps_state(decoder)
    alone = steps(decoder, PROMPTS[1])
    decoder.generate(PROMPTS[0], max_new_tokens=40)
    assert steps(decoder, PROMPTS[1]) == alone


def test_a_draft_of_another_vocabulary_is_refused_in_one_line(
    folder: Path, target: TargetModel, tmp_path: Path
) -> None:
    other = {"draft": save_target(tmp_path / "draft", prefix="v")}
    for build_one in (
        lambda: build_decoder("speculative", {}, target, other, Sampling()),
        lambda: build_peer(
            *("hf_assisted", {}, folder, other),
            precision=precision_of("float32"),
            device=torch.device("cpu"),
            sampling=Sampling(),
        ),
    ):
        with pytest.raises(ValueError, match=r"^the tokenizer of the draft model in [^\n]* is not the target's[^\n]*$"):
            build_one()


@pytest.mark.parametrize(
    ("drafters", "needed"),
    [
        (["prompt_lookup", "recycling"], ()),
        (["rest", "prompt_lookup"], ("datastore",)),
        (["suffix_decoding", "recycling"], ()),
        (["medusa"], ("heads",)),
        (["fasterdecodemixer", "medusa"], ("mixer", "heads")),
        (None, ("mixer",)),
    ],
)
def test_a_union_needs_what_its_drafters_need(
    target: TargetModel, parts: dict[str, Path], drafters: list[str] | None, needed: tuple[str, ...]
) -> None:
    options = {"drafters": drafters} if drafters else {}
    assert METHODS["union"].parts_with(options) == needed
    built = build("union", target, {name: parts[name] for name in needed}, options).drafter
    assert isinstance(built, UnionDrafter)
    assert list(built.drafters) == (drafters or ["prompt_lookup", "recycling", "fasterdecodemixer"])


def test_a_union_of_a_drafter_that_there_is_not_is_refused(target: TargetModel) -> None:
    with pytest.raises(ValueError, match=r"drafters: unknown 'medus'; known: prompt_lookup, .*"):
        build("union", target, {}, {"drafters": ["medus"]})


def test_a_method_names_the_modules_that_it_imports_only_when_it_is_built() -> None:
    """Else a change in one of them would run none of its cells again."""
    drafters = importlib.import_module("baselines.union").DRAFTERS
    assert {target.partition(":")[0] for target, _ in drafters.values()} <= set(METHODS["union"].modules)
    assert METHODS["medusa_typical"].modules == ("baselines.medusa", "decoding.typical")


def test_a_peer_in_int8_is_refused_in_one_line(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"^hf_greedy runs on transformers, which cannot run our weights in int8$"):
        build_peer(
            *("hf_greedy", {}, folder, {}),
            precision=precision_of("int8"),
            device=torch.device("cpu"),
            sampling=Sampling(),
        )


def test_only_what_is_wholly_on_the_compiled_engine_meets_no_shape_anew(folder: Path, parts: dict[str, Path]) -> None:
    native, eager = (TargetModel.from_pretrained(folder, engine=engine) for engine in ("native", "eager"))
    for name in ("autoregressive", "recycling", "speculative", "medusa"):
        assert not meets_shapes_anew(build(name, native, parts, {})), name
        assert meets_shapes_anew(build(name, eager, parts, {})), name
    assert meets_shapes_anew(build("fasterdecodemixer", native, parts, {}))  # its mixer runs on torch
    peer = build_peer(
        "hf_greedy", {}, folder, {}, precision=precision_of("float32"), device=torch.device("cpu"), sampling=Sampling()
    )
    assert meets_shapes_anew(peer)
