"""What the model hub's errors mean, in one line that says what to do; its own say an HTTP status and a request id.

Example::

    except Exception as error:
        raise UserError(f"hub: {name!r} cannot be read: {reason_of(error)}") from error
"""

from __future__ import annotations

from collections.abc import Iterator

TOKEN = "give your token, as HF_TOKEN or by `hf auth login`"


def reason_of(error: BaseException) -> str:
    """Return why something could not be had from the hub; of an error of another kind, its own first line."""
    from huggingface_hub import errors

    for cause in _chain(error):
        # The hub answers a name that it does not know as one that needs a token. A gated repository is a subclass.
        if isinstance(cause, errors.GatedRepoError):
            return f"it is gated: accept its licence on its page of the hub, then {TOKEN}"
        if isinstance(cause, errors.RepositoryNotFoundError):
            return f"there is none of this name; see how it is spelt, or, if it is private, {TOKEN}"
        if isinstance(cause, errors.RevisionNotFoundError):
            return "it has no such revision; take a branch, a tag or a commit of it"
    first = str(error).strip().partition("\n")[0] or type(error).__name__
    # What `datasets` says of a data set whose licence was not accepted.
    return f"{first} ({TOKEN})" if "gated dataset" in first else first


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
