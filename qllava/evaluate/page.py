"""A report as Markdown and as a page in one file. In: its parts in order. Names come from files, so all text is escaped.

A part is its kind and what it holds: `h1`, `h2` and `p` a text, `list` texts, `chart` the picture's words, `table` a head and
rows, `scores` the same and, for each row, what it is (`ours`, `expected` or nothing).
"""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..console import safe

Part = tuple[str, Any]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 78em; padding: 0 1em; color: #1a1a1a; }
h1, h2 { font-weight: 600; } h2 { margin-top: 2em; font-size: 1.2em; }
.wide { overflow-x: auto; font-size: 13px; } table { border-collapse: collapse; }
th, td { padding: .3em .7em; border-bottom: 1px solid #ddd;
text-align: left; vertical-align: top; } th { border-bottom: 2px solid #888; } img { max-width: 100%; }
tr.ours td { background: #eef4fb; font-weight: 600; } tr.expected td { background: #f3f3f3; }
@media (prefers-color-scheme: dark) { body { background: #16181c; color: #e6e6e6; } th, td { border-color: #444; }
tr.ours td { background: #1d2c3d; } tr.expected td { background: #26282d; } img { background: #fff; } }
"""


def replace(file: Path, content: bytes) -> None:
    """The file, whole or as it was."""
    new = file.with_name(file.name + ".new")
    try:
        new.write_bytes(content)
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)


def markdown(parts: Iterable[Part]) -> str:
    def escape(text: str) -> str:
        text = " ".join(safe(text).split())
        for sign in "\\`*_[]|<>":
            text = text.replace(sign, {"<": "&lt;", ">": "&gt;"}.get(sign, "\\" + sign))
        return text

    lines: list[str] = []
    for kind, held in parts:
        if kind in ("h1", "h2"):
            lines += [("# " if kind == "h1" else "## ") + escape(held), ""]
        elif kind == "p":
            lines += [escape(held), ""]
        elif kind == "chart":
            lines += [f"![{held}](chart.png)", ""]
        elif kind == "list":
            lines += [*(f"- {escape(item)}" for item in held), ""]
        else:
            head, rows = held[0] if kind == "scores" else held
            grid = [head, ["---"] * len(head), *rows]
            lines += ["| " + " | ".join(map(escape, row)) + " |" for row in grid] + [""]
    return "\n".join(lines)


def as_html(parts: Iterable[Part], png: bytes, title: str) -> str:
    """The page, with the chart's PNG in it."""
    escape: Callable[[str], str] = lambda text: html.escape(safe(text), quote=True)  # noqa: E731
    picture = base64.b64encode(png).decode()
    body: list[str] = []
    for kind, held in parts:
        if kind in ("h1", "h2", "p"):
            body.append(f"<{kind}>{escape(held)}</{kind}>")
        elif kind == "chart":
            body.append(f'<p><img alt="{escape(held)}" src="data:image/png;base64,{picture}"></p>')
        elif kind == "list":
            body.append("<ul>" + "".join(f"<li>{escape(item)}</li>" for item in held) + "</ul>")
        else:
            (head, rows), kinds = held if kind == "scores" else (held, [""] * len(held[1]))
            cells = "".join(f"<th>{escape(c)}</th>" for c in head)
            trs = (
                f'<tr class="{k}">' + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>"
                for row, k in zip(rows, kinds, strict=True)
            )
            body.append(f'<div class="wide"><table><tr>{cells}</tr>' + "\n".join(trs) + "</table></div>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>' + escape(title) + "</title>\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n"
    )
