"""Every command and every block of code on every page is run by a test, or says why nothing here can run it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from sapp_cli.cli.main import app
from tests.docs.commands import ELSEWHERE, NOT_HERE, RUN_PAGES, bare, beginning, has_test, is_usage
from tests.docs.pages import PAGES, REPOSITORY, blocks, inline, is_command

PYTHON_BY = {
    "api": "tests/docs/test_site.py::test_the_python_reference_has_every_public_name_with_its_text",
    "format": "tests/checkpoint/test_format_doc.py::test_the_reader_reads_what_sapp_writes",
}
"""Page that no test runs from top to bottom -> the test of its Python."""
LANGUAGES = {"sh", "console", "python", "yaml", "text"}


def commands(page: Path) -> Iterator[tuple[int, str]]:
    """(line, command) of all that a page has somebody type, in blocks and in sentences."""
    for block in (*blocks(page), *inline(page)):
        yield from ((block.line, command) for command in block.commands if is_command(command))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_is_run_or_says_why_not(page: Path) -> None:
    unknown = [
        f"{page.name}:{line}: {command}"
        for line, command in commands(page)
        if not (page.stem in RUN_PAGES or beginning(command) or is_usage(command) or bare(command) in run_somewhere())
    ]
    assert not unknown, "\n".join(unknown)


def run_somewhere() -> set[str]:
    """The commands that the run of a page runs."""
    return {bare(command) for page in PAGES if page.stem in RUN_PAGES for _, command in commands(page)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_is_of_a_kind_that_is_run_or_compared(page: Path) -> None:
    for block in blocks(page):
        place = f"{page.name}:{block.line}"
        assert block.language in LANGUAGES, f"{place}: a block of language '{block.language}'"
        hidden = [line for line in block.text.splitlines() if block.language == "text" and is_command(line)]
        assert not hidden, (
            f"{place}: commands are written in a block of sh, or of console with what they print: {hidden}"
        )
        if block.language == "sh":
            assert all(map(is_command, block.commands)), f"{place}: {block.commands}"
        if block.language == "python" and page.stem not in RUN_PAGES:
            assert has_test(PYTHON_BY[page.stem]), place


@pytest.mark.parametrize("page", RUN_PAGES)
def test_the_run_of_a_page_is_a_test_that_opens_it(page: str) -> None:
    file, _, name = RUN_PAGES[page].partition("::")
    found = [
        node
        for node in ast.parse((REPOSITORY / file).read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name == name
    ]
    assert found, RUN_PAGES[page]
    assert ("README" if page == "README" else f"'{page}.md'") in ast.unparse(found[0])


def test_the_tables_name_tests_that_are_there_and_commands_that_are_shown() -> None:
    assert [node for node in ELSEWHERE if not has_test(node)] == []
    shown = {beginning(command) for page in PAGES for _, command in commands(page)}
    assert {*NOT_HERE}.union(*ELSEWHERE.values()) - shown == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_targets_of_make_and_flags_in_sentences_exist(page: Path) -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for line, command in commands(page):
        words = command.partition(" |")[0].split()
        place = f"{page.name}:{line}: {command}"
        if words[0] == "make":
            assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in words[1:]), place
        if words[0] == "sapp":
            assert {word for word in words if re.match("--?[a-z]", word)} <= flags_of(words[1:]), place


def flags_of(words: list[str]) -> set[str]:
    """The flags of the verb that the words begin with."""
    command = typer.main.get_command(app)
    found = {"-h", "--help", "--install-completion", "--show-completion"}
    while hasattr(command, "commands") and words and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    return found.union(*(option.opts for option in command.params))
