"""A few lines of SVG: boxes, texts, arrows and matrices, on a white ground. Equal calls give equal files."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from html import escape

#: Of one line of text, and the width of an average letter.
LINE, LETTER = 17, 6.9
_STYLE = (
    "text{fill:#33415c}.h{font-weight:bold;fill:#1b2a49}.n{fill:#5b6b86;font-size:11px}"
    ".blue{fill:#f4f7fb;stroke:#37517e}.green{fill:#eaf6ee;stroke:#2d7a4b}.sand{fill:#fbf6ea;stroke:#8a6d2f}"
    ".plain{fill:#ffffff;stroke:#9aa7bd}rect{stroke-width:1.4}.a{stroke:#37517e;stroke-width:1.5;fill:none}"
    ".g{stroke:#dfe5ee;stroke-width:1}"
)


class Drawing:
    """``width`` in pixels; the height follows from what is drawn."""

    def __init__(self, title: str, width: int) -> None:
        self._title, self._width, self._bottom = title, width, 0.0
        self._parts: list[str] = []

    def box(
        self,
        x: float,
        y: float,
        width: float,
        title: str,
        lines: Sequence[str] = (),
        *,
        colour: str = "blue",
        height: float = 0.0,
    ) -> float:
        """A box with a title and wrapped lines; where its bottom is."""
        letters = max(8, int((width - 20) / LETTER))
        wrapped = [part for line in lines for part in (textwrap.wrap(line, letters) or [""])]
        height = max(height, 14 + LINE * (len(wrapped) + bool(title)))
        self._parts.append(f'<rect class="{colour}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6"/>')
        at = y + 19
        if title:
            self.text(x + 10, at, title, "h")
            at += LINE
        for line in wrapped:
            self.text(x + 10, at, line)
            at += LINE
        self._grow(y + height)
        return y + height

    def text(self, x: float, y: float, text: str, style: str = "", *, anchor: str = "", turn: float = 0.0) -> None:
        more = f' class="{style}"' if style else ""
        more += f' text-anchor="{anchor}"' if anchor else ""
        more += f' transform="rotate({turn:g} {x:g} {y:g})"' if turn else ""
        self._parts.append(f'<text x="{x:g}" y="{y:g}"{more}>{escape(text)}</text>')
        self._grow(y + 6)

    def arrow(self, *points: tuple[float, float], both: bool = False) -> None:
        path = "M" + " L".join(f"{x:g},{y:g}" for x, y in points)
        start = ' marker-start="url(#s)"' if both else ""
        self._parts.append(f'<path class="a" d="{path}" marker-end="url(#m)"{start}/>')
        self._grow(max(y for _, y in points))

    def matrix(
        self,
        x: float,
        y: float,
        rows: Sequence[str],
        columns: Sequence[str],
        cells: Mapping[tuple[str, str], str],
        cell: float = 22,
    ) -> None:
        """Rows with their names at the left, columns with theirs above, turned. ``cells``: (row, column) → what stands there."""
        top = y + max(map(len, columns)) * LETTER * 0.75 + 14
        left = x + max(map(len, rows)) * LETTER + 14
        for i, name in enumerate(columns):
            self.text(left + (i + 0.62) * cell, top - 8, name, turn=-50)
        for j in range(len(rows) + 1):
            self._line(left, top + j * cell, left + len(columns) * cell, top + j * cell)
        for i in range(len(columns) + 1):
            self._line(left + i * cell, top, left + i * cell, top + len(rows) * cell)
        for j, row in enumerate(rows):
            self.text(left - 8, top + (j + 0.7) * cell, row, anchor="end")
            for i, column in enumerate(columns):
                if said := cells.get((row, column)):
                    self.text(left + (i + 0.5) * cell, top + (j + 0.7) * cell, said, anchor="middle")
        self._grow(top + len(rows) * cell)

    def note(self, *lines: str) -> None:
        """Small lines below everything."""
        self._bottom += 8
        for line in lines:
            self.text(16, self._bottom + 12, line, "n")

    def _line(self, x1: float, y1: float, x2: float, y2: float) -> None:
        self._parts.append(f'<path class="g" d="M{x1:g},{y1:g} L{x2:g},{y2:g}"/>')

    def _grow(self, y: float) -> None:
        self._bottom = max(self._bottom, y)

    def render(self) -> str:
        width, height = self._width, round(self._bottom + 16)
        head = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12.5">',
            f"<title>{escape(self._title)}</title><style>{_STYLE}</style>",
            '<defs><marker id="m" markerWidth="9" markerHeight="9" refX="8" refY="4.5" orient="auto">'
            '<path d="M0,0 L9,4.5 L0,9 z" fill="#37517e"/></marker>'
            '<marker id="s" markerWidth="9" markerHeight="9" refX="1" refY="4.5" orient="auto">'
            '<path d="M9,0 L0,4.5 L9,9 z" fill="#37517e"/></marker></defs>',
            f'<rect x="0" y="0" width="{width}" height="{height}" fill="#ffffff"/>',
        ]
        return "\n".join([*head, *self._parts, "</svg>"]) + "\n"
