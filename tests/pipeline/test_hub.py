"""The hub, without one: what its errors say, and a download that becomes a model folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from pipeline import dataset, fetch
from pipeline.errors import UserError
from pipeline.hub import reason_of
from tests.pipeline.test_fetch import arguments, make_model, nothing_left

STATUS = "401 Client Error. (Request ID: Root=1-66f)\n\nRepository Not Found for url."


def refused(kind: type[Exception]) -> Exception:
    """An error of the hub's client, without the answer that it is made from."""
    error = kind.__new__(kind)
    Exception.__init__(error, STATUS)
    return error


REASONS = {
    errors.GatedRepoError: "accept its licence on its page of the hub, then give your token, as HF_TOKEN",
    errors.RepositoryNotFoundError: "there is none of this name; see how it is spelt",
    errors.RevisionNotFoundError: "it has no such revision",
    OSError: "401 Client Error. (Request ID: Root=1-66f)",
}


@pytest.mark.parametrize("kind", REASONS)
def test_what_the_hub_refuses_is_told_with_what_to_do(
    kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise refused(kind)

    for name in ("model_info", "dataset_info"):
        monkeypatch.setattr(huggingface_hub.HfApi, name, refuse)
    for read in (
        lambda: fetch.fetch(arguments(tmp_path / "tiny", hub="org/nmae")),
        lambda: dataset.from_hub("wmt14", "org/nmae", None),
    ):
        with pytest.raises(UserError) as caught:
            read()
        assert REASONS[kind] in str(caught.value)
        assert "'org/nmae'" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_cause_of_an_error_counts() -> None:
    error = OSError("cannot find the file on the hub")
    error.__cause__ = refused(errors.GatedRepoError)
    assert "HF_TOKEN" in reason_of(error)
    assert "HF_TOKEN" in reason_of(ValueError("Dataset 'a/b' is a gated dataset on the Hub."))


@pytest.mark.parametrize("same_disk", [True, False])
def test_a_download_goes_through_the_hubs_cache_and_outlives_it(
    same_disk: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs, snapshot, output = tmp_path / "blobs", tmp_path / "snapshot", tmp_path / "models" / "tiny"
    make_model(blobs)
    (blobs / "source.json").write_text("{}")  # theirs, not ours
    snapshot.mkdir()
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(file)
    weights = (blobs / "model.safetensors").read_bytes()
    tries: list[dict[str, Any]] = []

    def download(name: str, **asked: Any) -> str:
        tries.append({"name": name, **asked})
        if len(tries) == 1:
            raise ConnectionError("the line went dead")
        return str(snapshot)

    def no_link(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    info = SimpleNamespace(sha="c0ffee", card_data={"license": "mit"})
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    if not same_disk:
        monkeypatch.setattr(os, "link", no_link)
    with pytest.raises(UserError, match="the line went dead"):
        fetch.fetch(arguments(output, hub="org/name"))
    assert nothing_left(output)
    fetch.fetch(arguments(output, hub="org/name"))
    assert tries[0] == tries[1]
    assert tries[0]["revision"] == "c0ffee"
    assert not {"local_dir", "force_download"} & set(tries[0])  # so that what was downloaded is kept
    assert (output / "model.safetensors").samefile(blobs / "model.safetensors") == same_disk
    assert (blobs / "source.json").read_text() == "{}"
    shutil.rmtree(blobs)
    assert (output / "model.safetensors").read_bytes() == weights
    assert '"source": "hub:org/name@c0ffee"' in (output / "source.json").read_text()
