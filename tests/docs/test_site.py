"""The pages as a site: every page, link and heading is there, it opens from disk, nothing is fetched from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, REPOSITORY


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a warning fails the build."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    ran = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return folder


def test_every_page_is_built(site: Path) -> None:
    built = {path.stem for path in site.glob("*.html")}
    assert {page.stem for page in DOCS.glob("*.md")} <= built


def test_the_python_reference_has_every_public_name_with_its_text(site: Path) -> None:
    import sapp_cli
    from sapp_cli import errors

    page = (site / "api.html").read_text(encoding="utf-8")
    public = [f"sapp_cli.{name}" for name in sapp_cli.__all__ if not name.startswith("__")]
    public += [f"sapp_cli.errors.{name}" for name in vars(errors) if name.endswith(("Error", "Interrupted"))]
    assert [name for name in public if f'id="{name}"' not in page] == []
    assert "All tensors of a checkpoint of any kind, dense, in their own dtypes" in page


def test_links_open_from_disk(site: Path) -> None:
    """A browser shows the listing of a folder, and may not fetch the index of the search."""
    pages = {page: page.read_text(encoding="utf-8") for page in site.glob("*.html") if page.name != "404.html"}
    links = {
        (page, link) for page, text in pages.items() for link in re.findall(r"<a\b[^>]*\bhref=\"?([^\"#\s>]+)", text)
    }
    own = {(page, link) for page, link in links if not re.match(r"[a-z]+:", link)}
    assert len(own) > len(pages)
    assert {(page.name, link) for page, link in own if not (page.parent / link).is_file()} == set()
    assert (site / "search/search_index.js").read_text(encoding="utf-8").startswith("var __index = ")


def test_the_menu_leads_readers_to_results_and_not_to_the_log(site: Path) -> None:
    menu = re.findall(
        r'class="md-nav__link"[^>]*href="?([^">\s]+)|href="?([^">\s]+)"? class="md-nav__link"', read_index(site)
    )
    pages = {one or other for one, other in menu}
    assert "results.html" in pages
    assert "log.html" not in pages
    assert 'href="log.html"' in (site / "results.html").read_text(encoding="utf-8")


def read_index(site: Path) -> str:
    return (site / "index.html").read_text(encoding="utf-8")


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    """Scripts, styles, fonts and pictures lie in the site itself."""
    loaded = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=\"?((?:https?:)?//[^\"\s>]+)")
    found = {page.name: loaded.findall(page.read_text(encoding="utf-8")) for page in site.rglob("*.html")}
    assert not any(found.values()), found
