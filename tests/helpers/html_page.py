"""A page of HTML, read as a browser would: its tags, which are open at its end, and its text."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "link", "img", "br", "wbr", "path", "circle", "i", "td", "th", "tr", "dt", "dd"}
"""Tags that the pages need not close."""


class Page(HTMLParser):
    """Collects the parts that a browser would see: tags with their attributes, and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record a tag."""
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record a tag that closes itself."""
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """Close the tag that is open."""
        if tag in self.open:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Collect text."""
        self.text += data

    @property
    def names(self) -> list[str]:
        """The tags without those that depend on the length of texts: places to break, and labels of charts."""
        return [tag for tag, _ in self.tags if tag not in {"wbr", "span", "text", "path"}]
