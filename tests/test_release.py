"""The wheel and the source archive are whole, and the installed wheel is the program."""

from __future__ import annotations

import re
import shutil
import zipfile

import pytest

from scripts import check_release
from scripts.check_release import ReleaseError


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """(source archive, wheel)."""
    return check_release.build(tmp_path_factory.mktemp("dist"))


def test_the_files_hold_everything_and_one_version(release):
    check_release.check_contents(*release)
    assert [re.sub(r"\d+\.\d+\.\d+", "N", file.name) for file in release] == [
        "sapp_cli-N.tar.gz",
        "sapp_cli-N-py3-none-any.whl",
    ]


def without(wheel, names, folder):
    """A copy of the wheel that lacks some files."""
    with zipfile.ZipFile(wheel) as whole, zipfile.ZipFile(folder / wheel.name, "w") as rest:
        for name in set(whole.namelist()) - set(names):
            rest.writestr(name, whole.read(name))
    return folder / wheel.name


def test_what_a_wheel_lacks_is_named(release, tmp_path):
    archive, wheel = release
    lost = ["sapp_cli/outputs/card.md.j2", "sapp_cli/py.typed", "sapp_cli/recipes/digits.py"]
    with pytest.raises(ReleaseError, match=f"^missing: {', '.join(map(re.escape, lost))}$"):
        check_release.check_contents(archive, without(wheel, lost, tmp_path))


def test_files_of_another_version_are_refused(release, tmp_path):
    archive, wheel = release
    renamed = tmp_path / archive.name.replace("sapp_cli-", "sapp_cli-9.")
    shutil.copy(archive, renamed)
    with pytest.raises(ReleaseError, match=r"the files say \d+\.\d+\.\d+, \d+\.\d+\.\d+, 9\.\d+"):
        check_release.check_contents(renamed, wheel)


def test_the_readmes_commands_are_those_that_are_tried_out():
    """By `make release-check`, from the wheel; tests/docs runs them from the checkout."""
    commands = check_release.readme_commands()
    assert [command.split()[1] for command in commands] == ["recipes", "plan", "prune", "report", "eval"]
    assert all(command.startswith("sapp ") for command in commands)
    assert set(check_release.FEWER) <= {command.split()[1] for command in commands}


def test_the_tutorials_commands_run_from_the_installed_wheel(release, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(check_release.REPOSITORY))  # must not help
    sapp = check_release.install(release[1], tmp_path / "environment")
    ran = check_release.try_tutorial(sapp, tmp_path)
    assert [command.split()[1] for command in ran] == [
        *("plan", "prune", "report", "eval", "eval", "bench", "prune", "recipes", "plan"),
    ]
    assert (tmp_path / "runs/demo/gradual/sparsity.json").is_file()


def test_the_installed_wheel_runs_every_verb_outside_the_checkout(release, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(check_release.REPOSITORY))  # must not help
    sapp = check_release.install(release[1], tmp_path / "environment")
    ran = check_release.try_out(sapp, tmp_path)
    assert {command.split()[1] for command in ran} == {
        "--version",
        "recipes",
        "plan",
        "prune",
        "report",
        "check",
        "export",
    }
    assert (tmp_path / "out/README.md").read_text(encoding="utf-8").startswith("---\n")
