"""Mistakes on the command line in words about what was typed: what typer finds, with what to write instead.

Known by what they can do: typer carries a click of its own, whose classes have no public name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from sapp_cli.cli.completion import KEYS_FILE
from sapp_cli.recipe.trainer_names import TRAINER_NAMES
from sapp_cli.visible import harmless

_NO_NUMBER = re.compile(r"Input should be a valid (number|integer)")
_CARD = re.compile(r"'cuda:(\d+)'")
_BEYOND = re.compile(r"Input should be (greater|less) than or equal to (\S+)$")


def say_plainly(error: Any, typed: Sequence[str]) -> None:
    """Change the message of a mistake that typer found in the words `typed` behind the program's name."""
    message = getattr(error, "message", None)
    if not isinstance(message, str):
        return
    message = message.replace("Value error, ", "")  # pydantic's words, which newer versions of typer pass on
    verb = getattr(getattr(error, "ctx", None), "command", None)
    flag = getattr(error, "option_name", None)
    if flag and message.startswith("No such option"):
        if advice := _instead_of(flag, verb, typed):
            message, error.possibilities = f"{message}; {advice}", None
    elif message.startswith("No such command") and "Did you mean" not in message:
        message += f" There are {', '.join(getattr(verb, 'commands', {}))}."
    elif values := list(_given(getattr(getattr(error, "param", None), "opts", ()), typed)):
        if match := _NO_NUMBER.match(message):
            message = _no_number(values[-1], whole=match[1] == "integer")
        elif match := _BEYOND.match(message):
            wrong, bound = ("small", "least") if match[1] == "greater" else ("large", "most")
            message = f"{values[-1]} is too {wrong}; write {match[2]} at {bound}"
    if "--device" in getattr(getattr(error, "param", None), "opts", ()) and (card := _CARD.search(message)):
        message = (
            f"'cuda:{card[1]}' is not a device; write CUDA_VISIBLE_DEVICES={card[1]} before sapp, and --device cuda"
        )
    error.message = harmless(message)


def _instead_of(flag: str, verb: Any, typed: Sequence[str]) -> str:
    """What to write in place of a flag that is none: the key of a recipe, or an argument without a flag."""
    name = flag.lstrip("-").replace("-", "_")
    parameters = getattr(verb, "params", [])
    flags = {opt for parameter in parameters for opt in parameter.opts if opt.startswith("--")}
    meant = f"--{name.replace('_', '-')}"
    if meant in flags:
        return f"write {meant}"
    form = f"--{next(_given([flag], typed), '')}"
    if name in ("format", "output", "output_format") and form in flags & {"--json", "--csv", "--markdown", "--html"}:
        return f"write {form}"
    argument = next(
        (p.metavar for p in parameters if p.param_type_name == "argument" and p.metavar == name.upper()), None
    )
    if argument:
        return f"{argument} stands by itself, without a flag"
    if not any("--set" in parameter.opts for parameter in parameters):
        return ""
    known = json.loads(KEYS_FILE.read_text(encoding="utf-8"))
    keys = [key for key in known if "[" not in key and name == key.rpartition(".")[2]]
    keys = keys or [key for theirs, key in TRAINER_NAMES.items() if theirs == name]
    return f"the recipe has it: --set {' or --set '.join(f'{key}=…' for key in keys[:3])}" if keys else ""


def _given(flags: Sequence[str], typed: Sequence[str]) -> Iterator[str]:
    """The values that the flags were given: the word behind one, or what stands behind its equals sign."""
    for word, following in zip(typed, [*typed[1:], ""], strict=False):
        flag, sign, value = word.partition("=")
        if flag in flags:
            yield value if sign else following


def _no_number(value: str, *, whole: bool) -> str:
    """What is wrong with the value, and the number that is meant where it can be told."""
    text = value.strip()
    try:
        number = float(text.removesuffix("%").replace(",", ".")) / (100 if text.endswith("%") else 1)
    except ValueError:
        meant = ""
    else:
        meant = f"; write {number:.10g}" if math.isfinite(number) and (number.is_integer() or not whole) else ""
    return f"'{value}' is no {'whole number' if whole else 'number'}{meant}"
