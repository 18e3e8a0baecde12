"""Names and texts of unknown origin, as terminals, pages and files can hold them.

A file's name may have bytes that are not UTF-8. Python keeps each as half a surrogate pair, which no UTF-8 file can hold; here
it becomes `\\xff`, as `ls -b` and Python show it.
"""

from __future__ import annotations

import re

_BYTE = re.compile("[\udc80-\udcff]")
_STEERS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and line break
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # separators of lines, and signs that turn the direction of text
    "\ud800-\udfff]"  # halves of surrogate pairs
)
_PRIVATE = 0x10FF00
_STAND_IN = re.compile(f"[{chr(_PRIVATE)}-{chr(_PRIVATE + 0x7F)}]")


def printable(name: str) -> str:
    """A name on one line of any terminal: all that does not print is escaped, as in `\\x1b`."""
    return name if name.isprintable() else "".join(map(_escaped, name))


def harmless(text: str) -> str:
    """A text with its lines and tabs, in which nothing steers a terminal: control characters are escaped."""
    return text if text.isprintable() else _STEERS.sub(lambda found: _escaped(found[0]), text)


def harmless_json(text: str) -> str:
    """The same of JSON, which keeps its meaning: the escapes are those of JSON, and a byte of a name reads as `\\xff`."""
    if text.isprintable():
        return text
    text = _BYTE.sub(lambda found: "\\" + _escaped(found[0]), text)
    return _STEERS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _escaped(letter: str) -> str:
    if letter.isprintable():
        return letter
    return f"\\x{ord(letter) - 0xDC00:02x}" if _BYTE.match(letter) else ascii(letter)[1:-1]


def stand_in(text: str) -> str:
    """The text for readers of YAML and JSON: a letter for private use stands for each byte of a name that is not UTF-8."""
    return _BYTE.sub(lambda found: chr(_PRIVATE + ord(found[0]) - 0xDC80), text)


def name_again(text: str) -> str:
    """The name that `stand_in` was given."""
    return _STAND_IN.sub(lambda found: chr(ord(found[0]) - _PRIVATE + 0xDC80), text)
