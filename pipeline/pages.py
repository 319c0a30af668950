"""Rule: Markdown pages as HTML, for Snakemake's report, which shows HTML as it is and Markdown as source.

Example::

    python -m pipeline.pages --pages results/report.md results/tables/benchmark.md --output results/pages
"""

from __future__ import annotations

import argparse
from pathlib import Path

from markdown_it import MarkdownIt

from pipeline.errors import UserError, command
from pipeline.files import atomic_write

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; color: #222; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto; }}
th, td {{ padding: 0.25em 0.7em; border-bottom: 1px solid #ddd; white-space: nowrap; }}
th {{ border-bottom: 2px solid #888; }}
code {{ background: #f3f3f3; padding: 0 0.2em; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def as_html(markdown: str) -> str:
    """Return a page of its own, with no file beside it."""
    title = next((line.lstrip("# ") for line in markdown.splitlines() if line.startswith("#")), "")
    # Raw HTML in a text is shown and not run: what a model wrote can stand in a reason.
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    return PAGE.format(title=title, body=body)


@command
def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=Path, nargs="+", required=True, help="Markdown files")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write, a page a file")
    given = parser.parse_args()
    for path in given.pages:
        if not path.is_file():
            raise UserError(f"there is no {path}")
        atomic_write(given.output / f"{path.stem}.html", as_html(path.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
