"""The hosted checks run what contributing.md says, on the versions that pyproject.toml allows."""

import re

import yaml

from tests.docs.pages import DOCS, REPOSITORY

WORKFLOW = yaml.safe_load((REPOSITORY / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
MAKEFILE = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
PROJECT = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")  # Python 3.10 has no parser for it


def runs(job):
    return [step["run"] for step in WORKFLOW["jobs"][job]["steps"] if "run" in step]


def test_every_command_is_one_that_a_contributor_types():
    assert runs("pinned") == [".ci/run"]
    script = (REPOSITORY / ".ci/run").read_text(encoding="utf-8")
    commands = [*runs("ranges"), *runs("demo"), *re.findall(r"^make .*", script, re.MULTILINE)]
    targets = {command.removeprefix("make ") for command in commands}
    assert targets == {"setup", "check", "test", "test-isa", "demo", "release-check"}
    assert all(re.search(rf"^{target}:", MAKEFILE, re.MULTILINE) for target in targets)
    assert all(f"make {target}" in (DOCS / "contributing.md").read_text(encoding="utf-8") for target in targets)


def test_the_oldest_versions_are_those_of_the_package():
    ranges = WORKFLOW["jobs"]["ranges"]
    matrix = ranges["strategy"]["matrix"]
    assert re.findall(r'^requires-python = ">=(.+)"$', PROJECT, re.MULTILINE) == [matrix["python"][0]]
    (torch,) = re.findall(r'^  "torch>=(.+)",$', PROJECT, re.MULTILINE)
    assert matrix["torch"] == [f"torch=={torch}.*", "torch"]
    for variable in ("CONSTRAINTS", "TORCH"):
        assert variable in ranges["env"]
        assert re.search(rf"^{variable} \?=", MAKEFILE, re.MULTILINE)  # the environment wins


def test_no_command_chooses_kernels_by_a_name_that_a_cpu_may_lack():
    # SAPP_ISA=avx2 ends with code 2 on ARM.
    (recipe,) = re.findall(r"^test-isa:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    named = [line for line in recipe.splitlines() if "SAPP_ISA" in line]
    assert [re.findall(r"SAPP_ISA=(\w+)", line) for line in named] == [["avx2"], ["generic"]]
    assert named[0].startswith("\tif $(HAS_AVX2);")
