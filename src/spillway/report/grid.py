"""A table of short texts, and its three forms: plain text, a terminal's, and HTML.

What stands in a table is decided elsewhere (`tables.py`, `explain.py`); the three forms show the
same cells, so a number cannot differ between the terminal and the page.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, NamedTuple, TextIO

if TYPE_CHECKING:
    from rich.table import Table

_GAP = " "


class Cell(NamedTuple):
    """One text. marked: the best of its column, or the row that was chosen."""

    text: str
    marked: bool = False


class Grid(NamedTuple):
    """A table.

    head: one title per column, its lines separated by newlines, a word broken by "-\\n".
    left: how many leading columns hold words, flush left; the others hold figures, flush right.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    left: int = 1


def plain(grid: Grid) -> str:
    """Return the table as aligned text, marked cells with a star, no line longer than it must."""
    head = [title.split("\n") for title in grid.head]
    depth = max(map(len, head), default=0)
    head = [[""] * (depth - len(lines)) + lines for lines in head]
    body = [[cell.text + ("*" if cell.marked else " ") for cell in row] for row in grid.rows]
    widths = [
        max([len(line) + 1 for line in head[i]] + [len(row[i]) for row in body])
        for i in range(len(head))
    ]
    lines = [[title[at] + " " for title in head] for at in range(depth)]
    lines += [["-" * (width - 1) + " " for width in widths], *body]
    return "\n".join(
        _GAP.join(
            text.ljust(width) if i < grid.left else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def rich_table(grid: Grid) -> Table:
    """Return the table for a terminal, marked cells bold and green."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for i, title in enumerate(grid.head):
        table.add_column(
            Text(title),
            justify="left" if i < grid.left else "right",
            no_wrap=True,
            vertical="bottom",
        )
    for row in grid.rows:
        table.add_row(*(Text(cell.text, "bold green" if cell.marked else "") for cell in row))
    return table


def print_grid(grid: Grid, stream: TextIO) -> None:
    """Print the table: with colour to a terminal that is wide enough, else as plain text."""
    text = plain(grid)
    if stream.isatty():
        from rich.console import Console

        console = Console(file=stream)
        # A terminal's table would cut figures short to fit; the plain one lets the lines wrap.
        if max(map(len, text.splitlines())) <= console.width:
            console.print(rich_table(grid))
            return
    print(text, file=stream)


def html(grid: Grid) -> str:
    """Return the table as HTML, marked cells with the class `marked`."""
    head = "".join(
        f'<th scope="col"{_left(i, grid)}>{_title(title)}</th>' for i, title in enumerate(grid.head)
    )
    rows = "\n".join(
        "<tr>" + "".join(_td(cell, i, grid) for i, cell in enumerate(row)) + "</tr>"
        for row in grid.rows
    )
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>"


def _title(title: str) -> str:
    """Return a title for a page, which has room for whole words."""
    return escape(title.replace("-\n", "")).replace("\n", "<br>")


def _td(cell: Cell, column: int, grid: Grid) -> str:
    text = escape(cell.text)
    if cell.marked:
        return f"<td{_left(column, grid, 'marked')}>{text}</td>"
    return f"<td{_left(column, grid)}>{text}</td>"


def _left(column: int, grid: Grid, *classes: str) -> str:
    names = [*(["words"] if column < grid.left else []), *classes]
    return f' class="{" ".join(names)}"' if names else ""
