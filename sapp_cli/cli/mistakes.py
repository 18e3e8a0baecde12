"""Mistakes on the command line in words about what was typed: what typer finds, with what to write instead.

Known by what they can do: typer carries a click of its own, whose classes have no public name.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from sapp_cli.cli.completion import KEYS_FILE
from sapp_cli.recipe.trainer_names import TRAINER_NAMES
from sapp_cli.visible import harmless

_NO_NUMBER = re.compile(r"Input should be a valid (number|integer)")
_CARD = re.compile(r"'cuda:(\d+)'")
_MISSING = "MissingParameter"
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
    elif "extra argument" in message:
        message += f"; write {advice}" if (advice := _with_flags(verb, typed)) else ""
    elif _misses_a_flag(error):
        message = f"Write {_with_flags(verb, typed, error.param)}"
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


def whole_message(error: Any) -> str:
    """The message of a mistake that typer found; of a missing parameter with its name, which typer adds when it shows it."""
    return str(error.format_message() if type(error).__name__ == _MISSING else getattr(error, "message", error))


def _misses_a_flag(error: Any) -> bool:
    """True for a flag that is needed and was not given; typer shows the message behind its name."""
    param = getattr(error, "param", None)
    return type(error).__name__ == _MISSING and getattr(param, "param_type_name", "") == "option"


def _with_flags(verb: Any, typed: Sequence[str], missing: Any = None) -> str:
    """`-r recipe.yaml -o out` of words that stand where no argument belongs: those that are meant; "" if none can be told.

    `missing`: a parameter that is needed, named by its metavar if no word can be meant by it.
    """
    parameters = getattr(verb, "params", [])
    flags = {opt for parameter in parameters for opt in parameter.opts}
    surplus = _surplus(parameters, _behind_the_verb(verb, typed))
    keys = [word for word in _given(["--set"], typed) if "=" not in word]
    if keys and surplus:
        return f"--set {keys[0]}={surplus[0]}"
    found: list[list[str]] = []
    for word in (word for word in surplus if not word.startswith("-")):
        looks = "-r" if word.endswith((".yaml", ".yml")) or _is_shipped(word) else "-o"
        for flag in (looks, "-o", "--against"):
            free = flag in flags and not _is_given(flag, parameters, typed) and not any(flag in each for each in found)
            if free and (flag != "-r" or looks == "-r"):
                found.append([flag, shlex.quote(word)])
                break
    if missing is not None and not any(each[0] in missing.opts for each in found):
        found.insert(0, [min(missing.opts, key=len), missing.metavar])
    return " ".join(part for each in found for part in each)


def _behind_the_verb(verb: Any, typed: Sequence[str]) -> Sequence[str]:
    place = next((place for place, word in enumerate(typed) if word == getattr(verb, "name", None)), -1)
    return typed[place + 1 :]


def _surplus(parameters: Sequence[Any], words: Sequence[str]) -> list[str]:
    """The words that belong to no flag, behind as many of them as the verb has arguments."""
    takes_value = {
        opt for parameter in parameters for opt in parameter.opts if not getattr(parameter, "is_flag", False)
    }
    found: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--":
            found += rest
        elif word in takes_value:
            next(rest, None)
        elif not word.startswith("-"):
            found.append(word)
    return found[sum(parameter.param_type_name == "argument" for parameter in parameters) :]


def _is_given(flag: str, parameters: Sequence[Any], typed: Sequence[str]) -> bool:
    names = next(parameter.opts for parameter in parameters if flag in parameter.opts)
    return next(_given(names, typed), None) is not None


def _is_shipped(word: str) -> bool:
    from sapp_cli.recipe.shipped import shipped_recipes

    return word in {recipe.name for recipe in shipped_recipes()}


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
