"""What our pages share: one file each, no network, readable without its script, light and dark, on a phone and on paper."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sapp_cli._version import __version__
from sapp_cli.checkpoint.given_file import FileKind, head, write_given
from sapp_cli.report.texts import comparison_cells
from sapp_cli.report.wording import by, count_text, metric_text, percent, printable, rate_text, size_text, time_text

GENERATOR = b'<meta name="generator" content="sapp '
PAGE = FileKind("a page that sapp wrote", lambda path: GENERATOR in head(path))
NO_BREAK = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Headline:
    """One of the figures at the top."""

    label: str
    value: str
    note: str = ""
    tone: str = ""  # good, bad or nothing
    pair: bool = False  # two figures and an arrow, which need more room


def templates(room: str = "report") -> Environment:
    """The templates of a room, which may extend `page.html.j2`; figures are written as `report.wording` does."""
    rooms = dict.fromkeys((room, "report"))
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("sapp_cli", folder) for folder in rooms]),
        autoescape=True,
        undefined=StrictUndefined,
    )
    environment.filters.update(
        breakable=_breakable,
        by=by,
        cells=comparison_cells,
        count=count_text,
        metric=metric_text,
        percent=percent,
        printable=printable,
        rate=rate_text,
        size=size_text,
        thousands=lambda count: f"{count:,}",
        time=time_text,
    )
    return environment


def render(environment: Environment, template: str, **content: Any) -> str:
    """The page of a template that extends `page.html.j2`; `content` has at least its `name`, `subtitle` and `headline`."""
    style, script = (_source(environment, file) for file in ("report.css", "report.js"))
    return environment.get_template(template).render(
        version=__version__,
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **content,
    )


def write_page(path: Path, page: str) -> None:
    """Write the page, whole or not at all. Raises UsageError if another file is there than a page of sapp."""
    write_given(path, page.encode(), PAGE)


def _breakable(name: str) -> Markup:
    """A name that may be broken after each of its parts."""
    return Markup(".<wbr>").join(printable(name).split("."))


def _source(environment: Environment, file: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, file)[0]
