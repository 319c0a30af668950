"""What a configuration says of twins' generators and of trained parts is checked before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import load
from pipeline.config_file import read_yaml
from pipeline.errors import UserError
from pipeline.generators import GENERATORS, Generator
from pipeline.registry import import_target
from shuffle.backbone import BackboneConfig

ROOT = Path(__file__).resolve().parents[2]
LAPTOP = read_yaml(ROOT / "config" / "laptop.yaml")
METHODS = {"autoregressive": {}, "diffusion_2_passes": {}, "shufflelm_no_mixer": {}}
TWIN = {"task": "verbalized_plain", "num_prompts": 2, "max_new_tokens": 8, "methods": METHODS}


def twins(**changes: Any) -> dict[str, Any]:
    return LAPTOP | {"twins": {"t": TWIN | changes}}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            twins(generators={"diffusion": {"block_lenght": 4}}),
            ["twins.t.generators.diffusion.block_lenght = 4", "did you mean 'block_length'?"],
        ),
        (twins(generators={"diffusion": {"loss_weighting": "1/s"}}), ["generators.diffusion.loss_weighting", "1/t"]),
        (twins(generators={"diffusion": {"min_mask_ratio": 1}}), ["min_mask_ratio = 1", "less than 1"]),
        (twins(generators={"diffusion": {"block_length": True}}), ["block_length = True", "number"]),
        (twins(generators={"diffusion": 3}), ["twins.t.generators.diffusion = 3", "mapping"]),
        # The backbone is the twin's, and what a name stands for stays.
        (twins(generators={"diffusion": {"num_layers": 9}}), ["diffusion.num_layers = 9", "no such option"]),
        (twins(generators={"shufflelm_no_mixer": {"num_mixer_layers": 1}}), ["num_mixer_layers = 1", "no such option"]),
        (twins(generators={"autoregressive": {}}), ["'autoregressive' is the twin itself"]),
        (twins(generators={"shufflelm": {}}), ["no method of this twin uses 'shufflelm'", "'shufflelm_no_mixer'"]),
        (twins(recipes={"diffusion": {"step": 9}}), ["twins.t.recipes.diffusion.step = 9", "did you mean 'steps'?"]),
        (twins(recipes={"shufflelm": {}}), ["recipes: no method of this twin uses 'shufflelm'"]),
        (twins(recipes={"autoregressive": {}}), ["recipes: 'autoregressive' is the twin itself"]),
        (twins(methods={"hf_assisted": {}}), ["'hf_assisted' needs trained parts (draft), which a twin has not"]),
        (twins(task="multi30k_plain"), ["'multi30k_plain' takes its data from: path"]),
        (LAPTOP | {"training": {"mixer": {"num_positions": 8}}}, ["num_positions 8 must be at most num_slots 4"]),
        # Written over a profile on the command line, a misspelt name makes an entry that is not whole.
        (
            LAPTOP | {"twins": LAPTOP["twins"] | {"verbalised-2m": {"steps": 9}}},
            ["twins.verbalised-2m.task is missing", "did you mean 'verbalized-2m'?"],
        ),
        (twins(dtype=["auto"], dtypes=None, steps=None), ["twins.t.dtype = ['auto']", "did you mean 'dtypes'?"]),
        (LAPTOP | {"methods": {"recycling": {"key_length": 3}}}, ["recycling.key_length = 3", "less than or equal"]),
    ],
)
def test_a_mistake_is_one_line(values: dict[str, Any], words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError) as caught:
        load(values)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert "hub" not in message


def test_values_from_the_command_line_come_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    given = twins(generators={"diffusion": {"block_length": "4", "placed_masks": "false"}, "shufflelm_no_mixer": None})
    found = load(given | {"methods": {"recycling": {"key_length": "2"}}})
    expected = {"diffusion": {"block_length": 4, "placed_masks": False}, "shufflelm_no_mixer": {}}
    assert found.twins["t"].generators == expected
    assert found.methods == {"recycling": {"key_length": 2}}


@pytest.mark.parametrize("entry", GENERATORS.values(), ids=GENERATORS)
def test_the_registry_knows_each_generators_own_settings(entry: Generator) -> None:
    fields = import_target(entry.config).__dataclass_fields__
    assert set(entry.settings) == set(fields) - set(BackboneConfig.__dataclass_fields__)
    assert set(entry.training) <= set(entry.settings)
    name = next(name for name, other in GENERATORS.items() if other is entry)
    defaults = {key: fields[key].default for key in entry.options}
    read = load(twins(methods={name: {}}, generators={name: defaults})).twins["t"].generators[name]
    assert {key: tuple(value) if isinstance(value, list) else value for key, value in read.items()} == defaults


def test_a_misspelt_model_is_told_of_the_one_that_it_is_like(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for name, hint in (("smollm-135m", r"'path'; did you mean 'smollm2-135m'\?$"), ("other", r"'path'$")):
        with pytest.raises(UserError, match=hint):
            load(LAPTOP | {"models": LAPTOP["models"] | {name: {"dtypes": ["float32"]}}})
