"""What Tab completes, asked as each shell asks; bash itself where it is there."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sapp_cli.cli.completion import KEYS_FILE
from sapp_cli.cli.shells import SCRIPTS
from scripts.make_recipe_reference import completions

METHODS = {"sequential-attention", "acdc", "powerprop", "magnitude", "gradual-magnitude"}


@pytest.fixture
def completed(sapp, tmp_path, monkeypatch):
    """What a shell gets for a line that ends where the cursor is: words, with their explanations where it shows them."""
    (tmp_path / "mine.yaml").write_text("{}")
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)

    def ask(shell: str, line: str) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("_SAPP_COMPLETE", f"complete_{shell}")
            patch.setenv("COLUMNS", "40")
            patch.setenv("COMP_WORDS", line)
            patch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
            patch.setenv("_TYPER_COMPLETE_ARGS", line)
            patch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
            ran = sapp()
        assert ran.err == ""
        return ran.out

    return ask


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_methods_recipes_and_keys_are_completed(completed, shell):
    found = completed(shell, "sapp prune --method ")
    assert all(method in found for method in METHODS)
    found = completed(shell, "sapp prune -r di")
    assert "digits" in found
    assert "sentence-embedding" not in found
    assert "prune.min_blocks=" in completed(shell, "sapp plan --set prune.min")
    assert "recipes" in completed(shell, "sapp rec")
    assert "text-classification" in completed(shell, "sapp recipes cp text")


def test_recipe_files_stand_beside_shipped_recipes(completed):
    assert completed("bash", "sapp plan -r ").split()[:2] == ["mine.yaml", "causal-lm"]
    assert completed("bash", "sapp plan -r mod").split() == ["models/"]
    assert completed("bash", "sapp plan -r nothing-like-it").split() == []  # bash then completes files by itself


def test_choices_and_flags_are_completed(completed):
    assert completed("bash", "sapp check --of pr").split() == ["prunable", "pruned"]
    assert completed("bash", "sapp export --lay").split() == ["--layout"]


def test_only_keys_that_hold_a_value_are_completed(completed):
    assert completed("bash", "sapp plan --set prune.acdc").split() == ["prune.acdc.pruned_weights="]


def test_keys_and_their_values_are_those_of_the_schema():
    assert KEYS_FILE.read_text(encoding="utf-8") == completions(), "run python scripts/make_recipe_reference.py"


def test_an_explanation_stays_on_the_line_of_its_word(completed):
    lines = completed("fish", "sapp plan --set prune.attention.").splitlines()
    assert [line.partition("=\t")[0] for line in lines] == [
        f"prune.attention.{key}" for key in ("score", "lr", "decay", "betas", "clip", "revive", "pruned", "selection")
    ]
    assert "Clamp A to [density, 1/density] " in lines[4]  # square brackets are no style
    assert all(line.split("\t")[1] for line in completed("fish", "sapp plan -r ").splitlines()[1:])


def test_values_of_a_key_and_the_last_of_a_list_are_completed(completed):
    assert completed("fish", "sapp plan --set prune.method=ac").split() == ["prune.method=acdc"]
    assert completed("fish", "sapp plan --set train.compile=").split() == ["train.compile=true", "train.compile=false"]
    assert completed("fish", "sapp plan --set prune.block_size=").split() == []
    assert completed("fish", "sapp plan --set prune.rules[1].dense=").split()[0] == "prune.rules[1].dense=true"
    assert completed("fish", "sapp plan --set prune.rules.1.dense=").split()[0] == "prune.rules.1.dense=true"
    assert completed("fish", "sapp plan --set no.such.key=").split() == []
    assert completed("fish", "sapp compare --methods acdc,pow").split() == ["acdc,powerprop"]
    assert "acdc,acdc" not in completed("fish", "sapp compare --methods acdc,")


@pytest.mark.parametrize("shell", SCRIPTS)
def test_the_script_for_a_shell_asks_as_typer_answers(sapp, monkeypatch, shell):
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    ran = sapp("--show-completion", shell)
    assert ran.code == 0
    assert ran.out.strip() == SCRIPTS[shell].strip()
    asked = "_SAPP_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION=get-args _TYPER_COMPLETE_ARGS="
    assert ran.out.count(asked) == 1
    assert not {"{{", "}}", "%%"} & set(re.findall(r"{{|}}(?!\$)|%%(?![$*])", ran.out.replace("}}}", "}")))
    assert all(ran.out.count(left) == ran.out.count(right) for left, right in ("{}", "[]"))


LINES = {
    "sapp plan -r mod": "models/",
    "sapp check --of=pruna": "--of=prunable",
    "sapp report my": "my net.pt",
}
"""What is typed, and the last word of it after a Tab; a blank follows unless it is a folder."""
PROMPT = "ready> "
END = "X>"
PATIENCE = 30  # seconds
START = {
    "bash": (["--norc", "--noprofile", "-i"], ". ./script"),
    "zsh": (["-f", "-i"], "autoload -Uz compinit; compinit -u -D; . ./script"),
}


@pytest.mark.parametrize("shell", SCRIPTS)
def test_a_real_shell_completes(tmp_path, shell):
    """In the shell itself where it is installed; where it is not, the test above holds what can be held of the script."""
    program = shutil.which(shell)
    if program is None:
        assert shell != "bash", "the project's own scripts need it"
        return
    (tmp_path / "models").mkdir()
    for name in ("my net.pt", "script"):
        (tmp_path / name).write_text(SCRIPTS[shell])
    environment = {**os.environ, "TERM": "dumb", "HOME": str(tmp_path / "models"), "PS1": PROMPT}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if shell == "fish":
        asked = "; ".join(f"complete --do-complete '{line}'" for line in LINES)
        command = [program, "--no-config", "--command", f"source script; {asked}"]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=tmp_path)
        assert ran.stdout.replace("\\ ", " ").splitlines() == list(LINES.values())
        return
    options, load = START[shell]
    with Typed([program, *options], tmp_path, environment) as typed:
        typed.wait_for(PROMPT)
        typed.line(load)
        for line, word in LINES.items():
            shown = typed.line(f"{line}\t")
            assert f"<{word}{END}" in shown if word.endswith("/") else f"<{word}><{END}" in shown


class Typed:
    """A shell in a terminal."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]) -> None:
        self._master, slave = pty.openpty()
        self._shell = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, cwd=folder, env=environment, start_new_session=True
        )
        os.close(slave)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._shell.kill()
        self._shell.wait()
        os.close(self._master)

    def line(self, text: str) -> str:
        """What is shown after a command, or after words behind which an X is typed; words come in angle brackets."""
        if text.endswith("\t"):
            text = f"{text}X\x01printf '<%s>' \x05"  # Ctrl-A and Ctrl-E go to the ends of the line
        else:
            text += "; printf '<%s>' X"
        os.write(self._master, f"{text}\n".encode())
        return self.wait_for(END)

    def wait_for(self, end: str) -> str:
        shown = ""
        while end not in shown:
            assert select.select([self._master], [], [], PATIENCE)[0], f"no {end} in {shown!r}"
            shown += os.read(self._master, 4096).decode()
        return shown
