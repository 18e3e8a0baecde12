"""Every example of the page about loops of one's own runs, and prints what the page says."""

import warnings

from tests.docs.pages import DOCS
from tests.docs.test_pages_run import Terminal, run_page

LIGHTNINGS_OWN = ("does not have many workers", "LeafSpec", "is deprecated")
"""What Lightning warns of: loaders without workers, and what it imports from torch."""


def test_the_examples(sapp, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        for text in LIGHTNINGS_OWN:
            warnings.filterwarnings("ignore", f".*{text}.*")
        run_page(DOCS / "howto-own-loop.md", Terminal(sapp))
