"""HTML of a chat's page as Markdown: what ShareGPT's older files hold where people saw an answer."""

from __future__ import annotations

import re
from html.parser import HTMLParser

PAGE = re.compile(
    r"\s*<(?:div|p|pre|ol|ul|h[1-6]|table|blockquote)\b[^<>]*>", re.I
)  # how an answer taken from the page begins
FENCE = "```"  # of code in Markdown, which may hold any tags
COPY = re.compile(r"^(?:[\w+#.-]{0,20})?Copy code", re.M)  # what the page's button said, after the code's language
BREAKS = {"div": 1, "ol": 1, "ul": 1, "table": 1, "tr": 1} | dict.fromkeys(
    ("p", "blockquote", "h1", "h2", "h3", "h4", "h5", "h6"), 2
)
WRAPS = {"strong": "**", "b": "**", "em": "*", "i": "*"}


def markdown(text: str) -> str:
    """The text with HTML as Markdown; as it is where it does not begin as a page's answer, or has Markdown's code."""
    if not PAGE.match(text) or FENCE in text:
        return text
    reader = _Reader()
    reader.feed(text)
    reader.close()
    made = "".join(reader.out)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", made)).strip()


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.out: list[str] = []
        self._lists: list[int | None] = []  # the next number of each open list, None of one with points
        self._code: list[str] | None = None  # what stands in an open block of code
        self._links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        match tag:
            case "pre":
                self._code = []
            case _ if self._code is not None:
                return
            case "code":
                self.out.append("`")
            case "br":
                self.out.append("\n")
            case "ol" | "ul":
                self._break(1)
                self._lists.append(1 if tag == "ol" else None)
            case "li":
                self._item()
            case "td" | "th":
                self.out.append("| ")
            case "a":
                self._links.append(dict(attrs).get("href") or "")
                self.out.append("[")
            case _ if tag in WRAPS:
                self.out.append(WRAPS[tag])
            case _ if tag in BREAKS:
                self._break(0 if tag == "p" and self._lists else BREAKS[tag])
                if tag[0] == "h" and tag[1:].isdigit():
                    self.out.append("#" * int(tag[1]) + " ")

    def handle_endtag(self, tag: str) -> None:
        match tag:
            case "pre" if self._code is not None:
                self._block("".join(self._code))
                self._code = None
            case _ if self._code is not None:
                return
            case "code":
                self.out.append("`")
            case "ol" | "ul":
                self._lists = self._lists[:-1]
                self._break(1 if self._lists else 2)
            case "a" if self._links:
                self.out.append(f"]({self._links.pop()})")
            case _ if tag in WRAPS:
                self.out.append(WRAPS[tag])
            case _ if tag in BREAKS:
                self._break(1 if tag == "p" and self._lists else BREAKS[tag])

    def handle_data(self, data: str) -> None:
        if self._code is not None:
            self._code.append(data)
        elif data.strip() or (data and self.out and not self.out[-1].endswith("\n") and "\n" not in data):
            self.out.append(data)

    def _item(self) -> None:
        self._break(1)
        depth, number = "  " * max(len(self._lists) - 1, 0), self._lists[-1] if self._lists else None
        self.out.append(f"{depth}{'-' if number is None else f'{number}.'} ")
        if number is not None:
            self._lists[-1] = number + 1

    def _block(self, code: str) -> None:
        """A block of code; before it stands its language and what the button said."""
        found = COPY.match(code)
        language = "" if not found else found[0].removesuffix("Copy code")
        self._break(2)
        body = code[found.end() :] if found else code
        self.out.append(f"```{language}\n{body.strip(chr(10))}\n```\n\n")

    def _break(self, lines: int) -> None:
        """At least so many line ends before what follows."""
        text = "".join(self.out[-3:])
        if text.strip() or self.out:
            self.out.append("\n" * max(0, lines - (len(text) - len(text.rstrip("\n")))))
