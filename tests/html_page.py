"""HTML as a reader sees it."""

import html.parser
from collections import defaultdict

from etils import epath

from cfinet_jax.report.page import to_html


class Reader(html.parser.HTMLParser):
    """Collects the text inside each element, and the attributes of those that stand alone."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: dict[str, list[str]] = defaultdict(list)
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.attributes.append((tag, dict(attributes)))
        self.texts[tag].append("")
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in set(self.open):
            self.texts[tag][-1] += data


def parse(page: str) -> Reader:
    """A page whose elements are closed in order."""
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert not reader.open
    return reader


def read(text: str, folder: str = ".") -> dict[str, list[str]]:
    """The texts of the page that Markdown becomes, by element."""
    return parse(to_html(text, "title", epath.Path(folder))).texts
