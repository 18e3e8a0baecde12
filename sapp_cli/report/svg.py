"""A drawing of matplotlib as an element of a page, which gives it typeface and colours, light and dark."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from xml.etree import ElementTree

from matplotlib.figure import Figure

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
NO_NAMES: Mapping[str, str] = MappingProxyType({})
COLOUR = re.compile(r"#[0-9a-f]{6}")


def lay_out(figure: Figure) -> None:
    """Find the place of everything in it once and for all; saving a figure would draw it twice for that."""
    engine = figure.get_layout_engine()
    assert engine is not None, "a figure is made with a layout"
    engine.execute(figure)
    figure.set_layout_engine(None)


def themed(
    svg: str, key: str, title: str, description: str, variables: Mapping[str, str], names: Mapping[str, str] = NO_NAMES
) -> str:
    """The document as an element: named, described, without sizes or a typeface of its own, all ids beginning with `key`.

    `variables` {colour, as in "#00ff00": variable of the page's style}; other colours stay as they are. `names` {id of an
    element: what browsers show while the pointer is on it}.
    """
    for prefix, uri in (("", SVG), ("xlink", XLINK)):
        ElementTree.register_namespace(prefix, uri)
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag.endswith("metadata")]:
            parent.remove(child)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.set("role", "img")
    root.set("aria-labelledby", f"{key}-title {key}-text")
    for element in [element for element in root.iter() if element.attrib.get("id") in names]:
        hint = ElementTree.Element(f"{{{SVG}}}title")
        hint.text = names[element.attrib["id"]]
        element.insert(0, hint)
    ids = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
    # Some of matplotlib's are made of memory addresses; numbers are the same in every run.
    new = {old: f"{key}-{number}" for number, old in enumerate(dict.fromkeys(ids))}
    for element in root.iter():
        for name, value in list(element.attrib.items()):
            element.set(name, _rewritten(name, value, new, variables))
    for index, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(f"{{{SVG}}}{tag}", {"id": f"{key}-{'title' if index == 0 else 'text'}"})
        element.text = text
        root.insert(index, element)
    return ElementTree.tostring(root, encoding="unicode")


def _rewritten(name: str, value: str, ids: Mapping[str, str], variables: Mapping[str, str]) -> str:
    """An attribute with the new ids, the page's colours and the page's typeface."""
    if name == "id":
        return ids[value]
    if name.endswith("href"):
        return "#" + ids[value.removeprefix("#")]
    value = re.sub(r"url\(#([^)]*)\)", lambda match: f"url(#{ids[match.group(1)]})", value)
    value = COLOUR.sub(lambda match: _colour(match.group(), variables), value)
    return re.sub(r"font-family:[^;]*", "font-family: inherit", value)


def _colour(code: str, variables: Mapping[str, str]) -> str:
    return f"var(--{variables[code]})" if code in variables else code
