"""The reference pages name what the code has, all of it and nothing else."""

from __future__ import annotations

import contextlib
import re
import shlex
from pathlib import Path

import pytest
import typer.main

from sapp_cli.cli.main import app
from sapp_cli.core.schedule import PRESETS
from sapp_cli.errors import SappError
from sapp_cli.recipe.keys import all_keys, section_at
from sapp_cli.recipe.load import load_recipe
from sapp_cli.recipe.names import key_path
from sapp_cli.recipe.prune_section import PruneSection
from sapp_cli.recipe.shipped import shipped_recipes
from scripts import make_cli_reference, make_recipe_reference
from scripts.make_recipe_reference import SCHEMA_FILE, schema_text
from tests.docs.commands import bare, is_usage
from tests.docs.pages import DOCS, PAGES, README, REPOSITORY, blocks, inline, names, section, table

CLI, METHOD, RECIPES = DOCS / "cli.md", DOCS / "method.md", DOCS / "recipes.md"
VERBS = dict(make_cli_reference.verbs())


def test_the_page_of_the_command_line_is_up_to_date() -> None:
    page = CLI.read_text(encoding="utf-8")
    assert make_cli_reference.with_reference(page) == page, "run python scripts/make_cli_reference.py"


def test_a_flag_shows_its_values_its_meaning_and_its_default() -> None:
    lines = make_cli_reference.section("sapp prune", VERBS["sapp prune"]).splitlines()
    assert "| `--layout` | `both`, `dense`, `bsr` | Which weight files to write. Default: `both`. |" in lines
    assert "| `--overwrite` |  | Replace an output of sapp that is there. |" in lines
    assert any(line.startswith("| `--recipe`, `-r` | `RECIPE` |") and line.endswith(" Needed. |") for line in lines)


def test_a_verb_without_a_heading_is_refused() -> None:
    page = CLI.read_text(encoding="utf-8").replace("### sapp eval", "### sapp evaluate")
    with pytest.raises(SystemExit, match="lacks the heading '### sapp eval'"):
        make_cli_reference.with_reference(page)


FILLED = {"LAYOUT": "both", "N": "16"}
"""What stands for a placeholder that is no path."""


def shown_commands(page: Path) -> list[str]:
    """The sapp commands of a page, those that no test runs and those with placeholders included."""
    lines = [line for block in (*blocks(page), *inline(page)) for line in block.commands if line.startswith("sapp ")]
    filled = (" ".join(FILLED.get(word, word) for word in bare(line).split()) for line in lines)
    return [line for line in filled if not is_usage(line) or re.search(r" [A-Z]", line)]


EXAMPLES = [line for verb in VERBS.values() for line in make_cli_reference.examples(verb)]


def test_every_verb_that_takes_a_path_has_an_example() -> None:
    assert [name for name, verb in VERBS.items() if not make_cli_reference.examples(verb)] == [
        "sapp recipes ls",
        "sapp recipes schema",
    ]


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_can_be_quiet_talkative_and_a_document(name: str) -> None:
    flags = {flag for option in VERBS[name].params for flag in option.opts}
    assert {"--quiet", "-q", "--verbose", "-v", "--json"} <= flags


@pytest.mark.parametrize(
    "command", [*dict.fromkeys([*map(bare, EXAMPLES), *(line for page in PAGES for line in shown_commands(page))])]
)
def test_shown_commands_are_understood(command: str) -> None:
    """Parsed, not run: every flag exists, takes such a value, and nothing needed is missing."""
    words = shlex.split(command)[1:]
    verb = typer.main.get_command(app)
    while hasattr(verb, "commands") and words and words[0] in verb.commands:
        verb = verb.commands[words.pop(0)]
    if words and words[0] in ("--version", "--install-completion", "--show-completion", "--help"):
        return
    with contextlib.suppress(typer.Exit):  # of a flag that prints something and stops
        verb.make_context("sapp", words)


def test_the_table_of_verbs() -> None:
    rows = table(CLI.read_text(encoding="utf-8"), "verb")
    shown = [usage.split() for row in rows for usage in names(row[0])]
    assert {" ".join(words[: 3 if words[1] == "recipes" else 2]) for words in shown} == set(VERBS)


def test_the_exit_codes() -> None:
    def codes(error: type[SappError]) -> set[int]:
        return {error.exit_code}.union(*map(codes, error.__subclasses__()))

    text = section(CLI, "## Exit codes")
    assert {int(row[0]) for row in table(text, "code")} == codes(SappError) | {0, 130, 143}


def test_editors_find_the_schema_of_every_shipped_recipe() -> None:
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_text(), "run python scripts/make_recipe_reference.py"
    for recipe in shipped_recipes():
        first = recipe.path.read_text(encoding="utf-8").splitlines()[0]
        assert first == f"# yaml-language-server: $schema={SCHEMA_FILE.name}"
        assert recipe.path.parent == SCHEMA_FILE.parent


def test_the_page_of_recipe_keys_is_up_to_date() -> None:
    page = RECIPES.read_text(encoding="utf-8")
    assert make_recipe_reference.with_reference(page) == page, "run python scripts/make_recipe_reference.py"
    rows = [row for part in page.split("\n### ")[1:] for row in table(part, "key")]
    documented = [names(row[0]).pop() for row in rows]
    assert documented == [key for key in all_keys() if "." in key]
    assert all(all(row[i] for i in (1, 3)) for row in rows), "a key without its type or its meaning"


def test_a_key_shows_what_it_allows_its_default_and_its_meaning() -> None:
    line = next(line for line in make_recipe_reference.reference().splitlines() if "`prune.sparsity`" in line)
    assert line.startswith(
        "| `prune.sparsity` | a number from 0 to below 1 | `0.9` | Share of the blocks of all pruned layers that is removed. "
    )


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(SystemExit, match="lacks the markers"):
        make_recipe_reference.with_reference("# Recipes\n")


SHOWN_RECIPES = [
    pytest.param(block, id=f"{page.stem}:{block.line}")
    for page in PAGES
    for block in blocks(page)
    if block.language == "yaml" and not block.commands
]


@pytest.mark.parametrize("block", SHOWN_RECIPES)
def test_shown_recipes_load(block, tmp_path: Path) -> None:
    """All YAML but what is for CI, whose commands are run; whole recipes, and parts of one."""
    path = tmp_path / "recipe.yaml"
    path.write_text(block.text, encoding="utf-8")
    rest = [] if "\ntrain:" in block.text else ["train.steps=1000"]
    if "source: criteo" in block.text:
        rest.append("objective.task=binary")
    train = load_recipe(path, rest).recipe.train
    assert train.steps or train.epochs


def test_the_presets_in_the_method() -> None:
    rows = table(section(METHOD, "## Phases"), "`prune.phases`")
    assert {names(row[0]).pop() for row in rows} == set(PRESETS)
    for name, dense, rounds, final in rows:
        timetable = PRESETS[names(name).pop()]
        assert dense == f"{float(timetable.dense):.0%}".replace("%", " %")
        assert final == f"{float(timetable.final_sparse):.0%}".replace("%", " %")
        assert f"{float(timetable.last_round):.0%}".replace("%", " %") in rounds


def test_the_methods_in_the_method_and_the_readme() -> None:
    known = set(PruneSection.model_fields["method"].annotation.__args__)
    for text, column in ((METHOD.read_text(encoding="utf-8"), "method"), (README.read_text("utf-8"), "`--method`")):
        assert {names(row[0]).pop() for row in table(text, column)} == known


def test_the_symbols_of_the_method_are_in_their_files() -> None:
    for symbol, here, place in table(section(METHOD, "## Symbols"), "paper"):
        sources = "".join(
            (REPOSITORY / file).read_text(encoding="utf-8") for file in re.findall(r"`(\w+/[\w/]+\.py)`", place)
        )
        assert sources, symbol
        for name in {word for code in names(here) for word in re.findall(r"[A-Za-z_]{4,}", code)}:
            assert re.search(rf"\b{name}\b", sources), f"{symbol}: {name} is not in {place}"


def test_the_keys_of_open_choices_exist() -> None:
    rows = table(section(METHOD, "## What the paper leaves open"), "choice")
    for key in {key for row in rows for key in names(row[1])}:
        assert key in all_keys() or section_at(key_path(key)), key


def test_the_lemmas_are_tested_where_the_method_says() -> None:
    source = (REPOSITORY / "tests/core/test_masks.py").read_text(encoding="utf-8")
    found = [names(row[2]).pop() for row in table(METHOD.read_text(encoding="utf-8"), "lemma")]
    assert len(found) == 3
    assert all(f"def {test}(" in source for test in found)


def anchors(page: Path) -> set[str]:
    """The headings of a page as links name them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"https?:", link):
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.is_file(), f"{page.name} links to {link}, which is not there"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_of_the_repository_that_a_page_names_exist(page: Path) -> None:
    for path in re.findall(r"`((?:sapp_cli|scripts|tests|recipes)/[\w./-]+)`", page.read_text(encoding="utf-8")):
        assert (REPOSITORY / path).exists(), f"{page.name} names {path}"
