"""Our pages taken apart, and what holds for all of them."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

VOID = {"meta", "img", "wbr", "br"}


class Page(HTMLParser):
    """A page taken apart: every tag must be closed, every id be there once."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.cells, self.rows = [], [], None, []
        self.text, self.of = "", {}
        self.feed(text)
        self.close()
        assert not self.open
        ids = [attributes["id"] for _, attributes in self.tags if "id" in attributes]
        assert len(ids) == len(set(ids))
        self.ids = set(ids)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data
        for tag in self.open:
            self.of[tag] = self.of.get(tag, "") + data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data.strip()

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def assert_self_contained(text, page) -> None:
    """Nothing is fetched, and only our script runs."""
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', text)
    assert "@import" not in text
    assert "url(http" not in text
    (policy,) = [tag["content"] for tag in page.all("meta") if tag.get("http-equiv") == "Content-Security-Policy"]
    script = re.search(r"<script>(.*)</script>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
