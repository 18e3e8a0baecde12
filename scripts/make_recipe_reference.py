"""Write the reference of all recipe keys into docs/recipes.md, and what Tab and editors complete, from the schema itself.

    python scripts/make_recipe_reference.py           # between the markers of docs/recipes.md; recipe_keys.json; JSON Schema
    python scripts/make_recipe_reference.py --check   # exit code 1 if one of them is not up to date

Everything outside the two markers is written by hand and stays as it is. `sapp_cli/cli/recipe_keys.json` is there because
the schema takes seconds to import, which nobody waits for after a Tab.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sapp_cli.cli.completion import KEYS_FILE
from sapp_cli.recipe.keys import section_in
from sapp_cli.recipe.schema import Recipe, recipe_schema
from sapp_cli.recipe.shipped import SCHEMA
from sapp_cli.recipe.wording import allowed, choices, meaning
from scripts.reference_page import cell, write_page

PAGE = Path(__file__).resolve().parents[1] / "docs" / "recipes.md"
SCHEMA_FILE = PAGE.parents[1] / "recipes" / SCHEMA
BEGIN = "<!-- from the schema: scripts/make_recipe_reference.py -->"
END = "<!-- end of the part from the schema -->"


def reference() -> str:
    """A heading and a table for each section of a recipe."""
    parts = []
    for name, field in Recipe.model_fields.items():
        section = section_in(field.annotation)
        assert section is not None, f"{name} is a section"
        rows = [_row(f"{name}.{key}", inner) for key, inner in _keys(section, "")]
        heading = ["| key | allowed | default | meaning |", "|---|---|---|---|"]
        parts.append("\n".join([f"### {name}", "", _paragraph(section), "", *heading, *rows]))
    return "\n\n".join(parts)


def _keys(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    """Every key under a section with its field, a section before what is in it."""
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}", field
        inner = section_in(field.annotation)
        if inner is not None:
            items = "[]" if get_origin(field.annotation) is list else ""
            yield from _keys(inner, f"{prefix}{name}{items}.")


def _row(key: str, field: FieldInfo) -> str:
    section = section_in(field.annotation)
    text = field.description or (_paragraph(section) if section else "")
    kind = allowed(field.annotation, field.metadata)
    if section is not None:  # its keys follow as rows of their own
        kind = kind.replace(f"a mapping of {', '.join(section.model_fields)}", "the keys below")
    return f"| `{key}` | {cell(kind)} | {_default(field, section)} | {cell(text)} |"


def _default(field: FieldInfo, section: type[BaseModel] | None) -> str:
    if field.is_required():
        return "needed"
    default: Any = field.get_default(call_default_factory=True)
    if isinstance(default, BaseModel):
        return ""
    assert section is None or isinstance(default, str | list), f"no default to show: {default!r}"
    return f"`{json.dumps(default, ensure_ascii=False)}`" if not isinstance(default, str) else f"`{default}`"


def _paragraph(section: type[BaseModel]) -> str:
    return " ".join((section.__doc__ or "").split())


def with_reference(page: str) -> str:
    """The page with the part between its markers made anew."""
    before, found, rest = page.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not (found and closed):
        raise SystemExit(f"{PAGE} lacks the markers '{BEGIN}' and '{END}'")
    return f"{before}{BEGIN}\n\n{reference()}\n\n{END}{after}"


def completions() -> str:
    """{key that holds a value: its meaning in a sentence, the words that it may be}, as JSON with a line for each key."""
    lines = []
    for key, field in _keys(Recipe, ""):
        if section_in(field.annotation) is None:
            values = ("true", "false") if field.annotation is bool else choices(field.annotation)
            entry = {"meaning": meaning(field), "values": values}
            lines.append(f"{json.dumps(key)}: {json.dumps(entry, ensure_ascii=False)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def schema_text() -> str:
    """As `sapp recipes schema` prints it."""
    return json.dumps(recipe_schema(), indent=2, ensure_ascii=False) + "\n"


def main(command_line: Sequence[str] | None = None) -> int:
    script = Path(__file__)
    made = {PAGE: with_reference, KEYS_FILE: lambda _: completions(), SCHEMA_FILE: lambda _: schema_text()}
    return max(write_page(file, make, script, __doc__, command_line) for file, make in made.items())


if __name__ == "__main__":
    raise SystemExit(main())
