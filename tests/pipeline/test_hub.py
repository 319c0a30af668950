"""The hub, without one: what its errors say, and a download that becomes a model folder."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import errors

from pipeline import dataset, fetch
from pipeline.errors import UserError
from pipeline.hub import reason_of
from tests.pipeline.test_fetch import arguments

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
