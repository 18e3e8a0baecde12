"""What Tab completes, asked as each shell asks; bash itself where it is there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell(sapp, monkeypatch, shell):
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    ran = sapp("--show-completion", shell)
    assert ran.code == 0
    assert f"_SAPP_COMPLETE=complete_{shell}" in ran.out


def test_a_real_bash_completes(tmp_path):
    bash = shutil.which("bash")
    assert bash, "the project's own scripts need it"
    script = (
        'eval "$(sapp --show-completion bash)"; complete -p sapp; '
        "COMP_WORDS=(sapp prune --method gradual); COMP_CWORD=3; _sapp_completion sapp; echo ${COMPREPLY[@]}"
    )
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(
        [bash, "--norc", "-c", script], env=environment, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert ran.stdout.splitlines() == ["complete -o default -F _sapp_completion sapp", "gradual-magnitude"]
