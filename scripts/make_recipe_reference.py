"""Write the reference of all recipe keys into docs/recipes.md, from the schema itself.

    python scripts/make_recipe_reference.py           # between the markers of docs/recipes.md
    python scripts/make_recipe_reference.py --check   # exit code 1 if the page is not up to date

Everything outside the two markers is written by hand and stays as it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sapp_cli.recipe.keys import section_in
from sapp_cli.recipe.schema import Recipe
from sapp_cli.recipe.wording import allowed
from scripts.reference_page import cell, write_page

PAGE = Path(__file__).resolve().parents[1] / "docs" / "recipes.md"
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


def main(command_line: Sequence[str] | None = None) -> int:
    return write_page(PAGE, with_reference, Path(__file__), __doc__, command_line)


if __name__ == "__main__":
    raise SystemExit(main())
