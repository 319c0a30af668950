"""The one kind of error a user can cause, and how it is told: one line on stderr, exit status 2.

Example::

    raise UserError(f"unknown method 'lookahed'; {nearest('lookahed', METHODS)}")
"""

from __future__ import annotations

import difflib
import functools
import gc
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

MOST_LISTED = 8
BETWEEN_COLLECTIONS = 50_000  # new objects that are still there


class UserError(Exception):
    """Bad input. The message is one line that names the key, the value and, if there is one, the nearest valid one."""


def nearest(word: object, known: Iterable[object]) -> str:
    """Return ``did you mean 'x'?`` for the closest of ``known``; if none is close, list them, or the first of many."""
    choices = sorted(map(str, known))
    if close := difflib.get_close_matches(str(word), choices, n=1, cutoff=0.5):
        return f"did you mean {close[0]!r}?"
    more = f" and {len(choices) - MOST_LISTED} more" if len(choices) > MOST_LISTED else ""
    return f"known: {', '.join(choices[:MOST_LISTED])}{more}"


def made_by(folder: object) -> str:
    """Return what makes a model folder that is not there."""
    return f"snakemake --cores all -- {folder}/source.json makes a profile's"


def tell(error: object) -> None:
    """Print an error as one line on stderr, however many its text has."""
    print("error:", " ".join(line.strip() for line in str(error).splitlines()), file=sys.stderr)


@contextmanager
def written_down(wanted: bool, write: Callable[[str], None]) -> Iterator[None]:
    """Where ``wanted``, let a step that cannot be done end well: its reason is written where its result would be.

    The cells that need the result are then rows with that reason. So is what a machine cannot do: too little memory,
    which torch tells as a RuntimeError. Of that the whole traceback goes to stderr.
    """
    try:
        yield
    except (UserError, RuntimeError, MemoryError) as error:
        if not wanted:
            raise
        reason = str(error)
        if not isinstance(error, UserError):
            traceback.print_exc()
            reason = f"{type(error).__name__}: {reason.strip().partition(chr(10))[0]}".removesuffix(": ")
        tell(reason)
        write(reason)


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Wrap a ``main``: a ``UserError`` becomes one line on stderr and exit status 2, Ctrl-C exit status 130.

    Garbage is looked for less often than Python does by itself: torch, transformers and lm-eval make a million objects
    when they are imported, of which next to none is garbage, and looking through them took a fifth of that time.
    """

    @functools.wraps(main)
    def run() -> None:
        gc.set_threshold(BETWEEN_COLLECTIONS, *gc.get_threshold()[1:])
        try:
            main()
        except UserError as error:
            tell(error)
            sys.exit(2)
        except OSError as error:
            # A full disk, a folder that cannot be written: the operating system's own words are clear enough.
            place = f" ({error.filename})" if error.filename else ""
            tell(f"{error.strerror or error}{place}")
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted; run the same command again to go on", file=sys.stderr)
            sys.exit(130)

    return run
