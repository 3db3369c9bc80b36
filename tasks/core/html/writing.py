"""The smallest pieces of a page. Whatever comes from outside goes through `text`."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from prefect_cytotable.tasks.core.redact import redact

Cell = str | int | float | None
UNSEEN = "\N{REPLACEMENT CHARACTER}"
"""Stands for control characters and those that turn the direction of a text."""


def text(value: object) -> str:
    """A value as a browser shows it letter by letter; credentials hidden, control characters made visible.

    >>> text('<b>"x"</b>'), text(12345), text(1.5)
    ('&lt;b&gt;&quot;x&quot;&lt;/b&gt;', '12,345', '1.5')
    """
    if isinstance(value, bool):
        value = "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.1f}"
    shown = redact(str(value)).encode("utf-8", "replace").decode()
    return html.escape("".join(letter if letter.isprintable() else UNSEEN for letter in shown))


@dataclass(frozen=True)
class Html:
    """Markup that is known to be safe, in the place of a text."""

    markup: str


def cell(value: Cell | Html) -> str:
    """A cell of a table; numbers to the right, a null as a dash."""
    if isinstance(value, Html):
        return f"<td>{value.markup}</td>"
    if value is None:
        return "<td>–</td>"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f'<td class="n" data-v="{value}">{text(value)}</td>'
    return f"<td>{text(value)}</td>"


def table(caption: str, names: Sequence[str], rows: Sequence[Sequence[Cell | Html]], sortable: bool = True) -> str:
    """A table with a caption; the first cell of each row is its heading, numbers stand to the right."""
    if not rows:
        return ""
    numbers = [all(isinstance(row[at], int | float | None) for row in rows) for at in range(len(names))]
    head = "".join(
        f'<th scope="col"{" class=n" if number else ""}>{text(name)}</th>'
        for name, number in zip(names, numbers, strict=True)
    )
    body = "".join(
        f'<tr><th scope="row">{text(row[0])}</th>{"".join(cell(value) for value in row[1:])}</tr>' for row in rows
    )
    kind = ' class="sort"' if sortable and len(rows) > 2 else ""
    named = text(caption)
    return (
        f'<div class="wide" role="region" aria-label="{named}" tabindex="0"><table{kind}><caption>{named}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def more(count: int, what: str) -> str:
    """A line that tells how many are not shown."""
    return f'<p class="more">{count:,} more {text(what)} not shown.</p>' if count > 0 else ""


def section(key: str, title: str, body: str) -> str:
    """A section with a heading that links can lead to."""
    return f'<section id="{key}" aria-labelledby="{key}-t"><h2 id="{key}-t">{text(title)}</h2>{body}</section>'


def paragraph(words: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{text(words)}</p>"


def facts(pairs: Sequence[tuple[str, Cell]]) -> str:
    """Names and values."""
    inside = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in pairs)
    return f'<dl class="facts">{inside}</dl>'


def bar(share: float) -> Html:
    """A bar of that share, from 0 to 1, for the eye alone: the number stands beside it."""
    width = round(100 * min(max(share, 0.0), 1.0), 1)
    return Html(
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true" focusable="false">'
        f'<rect width="{width}" height="10"/></svg>'
    )


def duration(seconds: float) -> str:
    """Time for people.

    >>> duration(0.26), duration(75), duration(4000)
    ('0.3 s', '1 min 15 s', '1 h 6 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600):,} h {int(seconds % 3600 // 60)} min"
