"""The one kind of error a user can cause, and how it is told: one line on stderr, exit status 2.

Example::

    raise UserError(f"unknown method 'lookahed'; {nearest('lookahed', METHODS)}")
"""

from __future__ import annotations

import difflib
import functools
import sys
from collections.abc import Callable, Iterable


class UserError(Exception):
    """Bad input. The message is one line that names the key, the value and, if there is one, the nearest valid one."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``did you mean 'x'?`` for the closest of ``known``, or the list of all of them if none is close."""
    choices = sorted(known)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(choices)}"


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Wrap a ``main``: a ``UserError`` becomes one line on stderr and exit status 2, Ctrl-C exit status 130."""

    @functools.wraps(main)
    def run() -> None:
        try:
            main()
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except OSError as error:
            # A full disk, a folder that cannot be written: the operating system's own words are clear enough.
            place = f" ({error.filename})" if error.filename else ""
            print(f"error: {error.strerror or error}{place}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted; run the same command again to go on", file=sys.stderr)
            sys.exit(130)

    return run
