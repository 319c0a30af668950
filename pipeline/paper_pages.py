"""A table of the source systems as it is printed: figures with their digits, marks on those that are doubted, the page.

Example::

    texts = as_text(rows, published, marked)          # rows of pipeline.paper_tables.paper_table
    print(as_markdown(published, texts, marked))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from pipeline.paper_tables import Published

Doubt = tuple[int, str, str]  # row, column, why
OURS = "this run"
NONE = "-"
MARK = "*"


def as_text(rows: pd.DataFrame, published: Published, marked: list[Doubt]) -> pd.DataFrame:
    """Return the figures as they are printed; ``marked`` get their mark."""
    texts = rows.astype(object).map(shown)
    for column in published.columns:  # as published, with all their digits and no more
        digits = decimals(rows.loc[rows["from"] != OURS, column])
        texts[column] = [
            f"{value:,.{digits}f}" if whose != OURS and isinstance(value, float | int) and not pd.isna(value) else text
            for value, text, whose in zip(rows[column], texts[column], rows["from"], strict=True)
        ]
    for index, column, _ in marked:
        texts.loc[index, column] += MARK
    return texts.loc[:, (texts != NONE).any()]


def decimals(figures: pd.Series) -> int:
    """Return the decimals of the figure that has most."""
    numbers = (value for value in figures.dropna() if not isinstance(value, str))
    return max((len(f"{value:.10g}".partition(".")[2]) for value in numbers), default=0)


def shown(value: Any) -> str:
    """Return a value as it is printed: three significant digits, more before the point."""
    if pd.isna(value):
        return NONE
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 20 else f"{value:.2f}"


def as_markdown(published: Published, texts: pd.DataFrame, marked: list[Doubt]) -> str:
    """Return the page: title, source, table, what differs, what is doubted."""
    alignment = ["left" if name in ("system", "task", "algorithm", "from") else "right" for name in texts]
    body = texts.to_markdown(index=False, disable_numparse=True, colalign=alignment) if len(texts) else "No rows."
    lines = [f"# {published.title}", f"Published: {published.source}.", body, f"What differs: {published.differs}"]
    if marked:
        why = [f"- {texts.loc[index].iloc[0]}, {column}: {reason}" for index, column, reason in marked]
        lines += [f"{MARK} is doubted:", "\n".join(why)]
    return "\n\n".join(lines) + "\n"


def as_latex(name: str, published: Published, texts: pd.DataFrame) -> str:
    """Return a LaTeX table (booktabs) with its caption."""
    style = (
        texts.rename(columns=lambda column: column.replace("_", " ")).style.hide(axis="index").format(escape="latex")
    )
    source = published.source.replace("&", r"\&").replace("_", r"\_").replace("%", r"\%")
    return str(
        style.to_latex(
            caption=f"{published.title}. Published: {source}.", label=f"tab:{name}", hrules=True, position="t"
        )
    )
