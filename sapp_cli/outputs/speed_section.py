"""Measured speed put into an output: bench.json, and a section of its card and of its page. Nothing else of them changes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from sapp_cli._version import __version__
from sapp_cli.checkpoint.damage import damaged
from sapp_cli.checkpoint.given_file import FileKind, check_given
from sapp_cli.checkpoint.output import is_output, sha256_file, write_json
from sapp_cli.checkpoint.ownership import recorded_anew
from sapp_cli.checkpoint.source import open_checkpoint
from sapp_cli.checkpoint.write import disk_errors, replacing
from sapp_cli.errors import CheckpointError, UsageError
from sapp_cli.report.html import HTML_FILE, with_speed
from sapp_cli.report.run import home_of
from sapp_cli.report.speed import BENCH_FILE, SpeedRecord, read_speed, speed_of, weight_files
from sapp_cli.report.wording import rate_text, size_text, time_text

CARD = "README.md"
BEGIN = "<!-- sapp bench: begin {} -->"
"""With a hash of what follows, by which a section that somebody edited is known."""
END = "<!-- sapp bench: end -->"
SECTION = re.compile(r"<!-- sapp bench: begin ([0-9a-f]+) -->\n(.*?)<!-- sapp bench: end -->\n", re.DOTALL)
BEFORE = "## How to load it"


def _is_speed(path: Path) -> bool:
    try:
        return read_speed(path.parent) is not None
    except CheckpointError:
        return False


SPEED = FileKind("a result of `sapp bench --save`", _is_speed)


def saving_place(path: Path) -> Path:
    """The output that `path` is, or lies in. Raises UsageError for any other checkpoint, CheckpointError for a card or a
    page in it that nothing can be put into: before minutes of measuring.
    """
    home = home_of(open_checkpoint(path))
    if home is None or not is_output(home):
        raise UsageError(
            f"{path}: --save puts the result into an output of sapp, and this is none; take --json instead"
        )
    check_given(home / BENCH_FILE, SPEED)
    for name in (CARD, HTML_FILE):
        if (home / name).is_file():
            _text(home / name)
    return path if path.resolve() == home.resolve() else home


def save_speed(folder: Path, result: Mapping[str, Any]) -> list[str]:
    """Write the JSON of a measurement into an output; a line for each file that was written or left as it is.

    The files of weights are noted with their SHA-256, so that the figures are never taken for those of others.
    """
    weights = {file: sha256_file(folder / file) for file in weight_files(folder)}
    document = {**result, "checkpoint": folder.name, "sapp_version": __version__, "weights_sha256": weights}
    speed = speed_of(document)
    with disk_errors(folder), recorded_anew(folder, [BENCH_FILE, CARD, HTML_FILE]):
        write_json(folder / BENCH_FILE, document)
        return [f"wrote {folder / BENCH_FILE}", _into_card(folder / CARD, speed), _into_page(folder / HTML_FILE, speed)]


def card_section(speed: SpeedRecord) -> str:
    """The section as it stands in the card, its marks around it."""
    environment = Environment(
        loader=PackageLoader("sapp_cli", "outputs"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters.update(rate=rate_text, size=size_text, time=time_text)
    text = environment.get_template("speed.md.j2").render(speed=speed)
    return f"{BEGIN.format(_hash(text))}\n{text}{END}\n"


def with_section(card: str, section: str) -> str | None:
    """The card with the section put in or replaced; None where the one that is there is not as it was written."""
    found = SECTION.search(card)
    if found is not None:
        return None if _hash(found[2]) != found[1] else card[: found.start()] + section + card[found.end() :]
    if "<!-- sapp bench:" in card:
        return None
    before, heading, after = card.partition(f"\n{BEFORE}\n")
    if heading:
        return f"{before}\n{section}{heading}{after}"
    return f"{card.rstrip()}\n\n{section}".lstrip()


def _into_card(path: Path, speed: SpeedRecord) -> str:
    if not path.is_file():
        return f"{path} is not there; the figures are in {BENCH_FILE}"
    card = with_section(_text(path), card_section(speed))
    if card is None:
        return f"{path} stays as it is: its section on speed was edited; remove the section to have it written again"
    with replacing(path) as write:
        write(card.encode())
    return f"wrote the section on speed of {path}"


def _into_page(path: Path, speed: SpeedRecord) -> str:
    if not path.is_file():
        return f"{path} is not there; `sapp report {path.parent} --html {path}` makes it"
    page = with_speed(_text(path), speed)
    if page is None:
        return (
            f"{path} stays as it is, it has no place for speed; `sapp report {path.parent} --html {path}` makes it anew"
        )
    with replacing(path) as write:
        write(page.encode())
    return f"wrote the section on speed of {path}"


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise damaged(path, f"is no text ({error})") from None


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
