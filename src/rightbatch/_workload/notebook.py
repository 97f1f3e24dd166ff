"""How results show themselves in notebooks: the sentence, the details, and a small table."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape


class ShownInNotebooks:
    """A result whose first line of `str` is the answer."""

    def _table(self) -> Sequence[Sequence[object]]:
        """Return the numbers that `str` leaves out, with a first row of headings."""
        return ()

    def _repr_html_(self) -> str:
        answer, *details = str(self).splitlines()
        parts = [f"<p><strong>{escape(answer)}</strong></p>"]
        if details:
            text = escape("\n".join(details))
            parts.append(f'<pre style="white-space: pre-wrap">{text}</pre>')
        headings, *rows = self._table() or [()]
        if rows:
            cells = "".join([_row("th", headings), *(_row("td", row) for row in rows)])
            parts.append(f"<table>{cells}</table>")
        return "".join(parts)


def _row(cell: str, values: Sequence[object]) -> str:
    cells = (f'<{cell} style="text-align: right">{escape(str(v))}</{cell}>' for v in values)
    return f"<tr>{''.join(cells)}</tr>"
