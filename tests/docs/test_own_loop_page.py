"""Every example of the page about loops of one's own runs, and prints what the page says."""

import warnings

import pytest

from tests.docs.pages import DOCS
from tests.docs.test_pages_run import Terminal, run_page


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torchmetrics", "ignore::DeprecationWarning:pytorch_lightning")
def test_the_examples(sapp, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*does not have many workers.*")  # Lightning's advice on loaders
        warnings.filterwarnings("ignore", r".*smaller than the logging interval.*")
        run_page(DOCS / "howto-own-loop.md", Terminal(sapp))
