"""Tables for people, and for programs: boxes and colours on a terminal, tab-separated lines where nobody looks.

Example::

    show_table(["method", "tokens/s"], [["prompt_lookup", "95.3"]])
"""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[str] = ()) -> None:
    """Print a table, the columns ``numbers`` aligned to the right."""
    console = Console()
    if not console.is_terminal:
        for row in (columns, *rows):
            print("\t".join(row))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(
            column,
            justify="right" if column in numbers else "left",
            style="bold" if number == 0 else None,
            no_wrap=number == 0,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
