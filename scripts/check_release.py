"""Build the source archive and the wheel, and try the wheel out where the checkout cannot be seen.

    python scripts/check_release.py --out dist

1. The archive is built from the checkout, the wheel from the unpacked archive: what the archive lacks, the wheel lacks.
2. The wheel holds every file of the package and the recipes, and one version.
3. It is installed into an environment of its own, and its `sapp` plans, prunes, reports, checks and exports a small network.
4. The commands that the README shows for a text classifier run as they stand there, on a tiny one and with few steps.
5. The tutorial's commands on the network of `make demo` run as well, where nothing but the demo's files and the recipes lie.

Nothing is fetched: the other packages of the new environment are those of this one.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Sequence
from email.parser import Parser
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

REPOSITORY = Path(__file__).resolve().parents[1]
IN_THE_ARCHIVE = (
    "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "constraints.txt", "mkdocs.yml",
    "docs/index.md", "tests/conftest.py", "scripts/check_release.py", "recipes/digits.yaml",
)  # fmt: skip
FEWER = {
    "plan": "--steps 10 --set prune.min_blocks=36",
    "prune": "--steps 10 --set prune.min_blocks=36 --set data.batch_size=2",
}
"""What the README's commands are given besides: a tiny classifier has few blocks, and nobody waits for three epochs."""


FEWER_IN_THE_TUTORIAL = {"prune": "--steps 20 --set train.evaluate_every=null", "bench": "--seconds 0.01"}


class ReleaseError(Exception):
    """What is wrong with the release."""


def build(out: Path) -> tuple[Path, Path]:
    """(source archive, wheel), built into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        _run([sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", str(work)], REPOSITORY)
        (archive,) = work.glob("*.tar.gz")
        with tarfile.open(archive) as file:
            file.extractall(work, filter="data")
        unpacked = work / archive.name.removesuffix(".tar.gz")
        _run([sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(work)], unpacked)
        (wheel,) = work.glob("*.whl")
        return archive.replace(out / archive.name), wheel.replace(out / wheel.name)


def check_contents(archive: Path, wheel: Path) -> None:
    """Raise ReleaseError for what is missing, superfluous, or of another version."""
    with tarfile.open(archive) as file:
        held = {name.partition("/")[2] for name in file.getnames()}
    missing = [name for name in IN_THE_ARCHIVE if name not in held]
    wanted = {f"sapp_cli/{path}" for path in _files(REPOSITORY / "sapp_cli")}
    wanted |= {f"sapp_cli/recipes/{path}" for path in _files(REPOSITORY / "recipes")}
    with zipfile.ZipFile(wheel) as zipped:
        names = {name for name in zipped.namelist() if ".dist-info/" not in name}
        (metadata,) = [name for name in zipped.namelist() if name.endswith(".dist-info/METADATA")]
        about = Parser().parsestr(zipped.read(metadata).decode())
    missing += sorted(wanted - names)
    if missing:
        raise ReleaseError(f"missing: {', '.join(missing)}")
    if names - wanted:
        raise ReleaseError(f"nobody asked for: {', '.join(sorted(names - wanted))}")
    version = _version()
    named = [about["Version"], wheel.name.split("-")[1], archive.name.removesuffix(".tar.gz").split("-")[1]]
    if set(named) != {version}:
        raise ReleaseError(f"sapp_cli/_version.py says {version}, the files say {', '.join(named)}")


def install(wheel: Path, environment: Path) -> Path:
    """The `sapp` of a new environment that holds the wheel; all other packages are those of this environment."""
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    _run(
        [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(python),
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            str(wheel),
        ]
    )
    site = _run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip()
    (Path(site) / "others.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return environment / "bin" / "sapp"


def try_out(sapp: Path, folder: Path) -> list[str]:
    """Every verb once on a small network in `folder`, by the installed program; the commands that ran."""
    python = sapp.with_name("python")
    place = _run([str(python), "-c", "import sapp_cli; print(sapp_cli.__file__)"], folder).strip()
    if not Path(place).is_relative_to(sapp.parents[1]):
        raise ReleaseError(f"not the wheel is tried out, but {place}")
    _make_network(folder)
    commands = [
        "--version",
        "recipes ls",
        "recipes cp digits .",
        "plan net.safetensors -r digits --json",
        "prune net.safetensors -r digits.yaml -o out --steps 12 --set train.evaluate_every=null"
        " --set data.files.train=rows.npz --set data.files.validation=rows.npz --quiet",
        "report out --json",
        "check out --min-sparsity 0.8",
        "export out -o dense --layout dense",
    ]
    printed = [_run([str(sapp), *command.split()], folder) for command in commands]
    if printed[0] != f"sapp {_version()}\n":
        raise ReleaseError(f"sapp --version prints {printed[0]!r}")
    if "digits " not in printed[1] or not json.loads(printed[3])["layers"]:
        raise ReleaseError("recipes or plan print something else than they should")
    for name in (
        "out/README.md",
        "out/sparsity.html",
        "out/sparse/model.safetensors",
        "dense/model.safetensors",
    ):
        if not (folder / name).stat().st_size:
            raise ReleaseError(f"{name} is empty")
    return [f"sapp {command}" for command in commands]


def try_readme(sapp: Path, folder: Path) -> list[str]:
    """The README's commands for a Hugging Face model, by the installed program in `folder`; the commands that ran."""
    from scripts.make_checkpoints import make_bert

    make_bert(folder / "my-classifier")
    for name, count in (("train", 8), ("dev", 4)):
        rows = [json.dumps({"text": f"text number {number}", "label": number % 3}) for number in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    commands = readme_commands()
    for command in commands:
        words = command.split()
        _run([str(sapp), *words[1:], *FEWER.get(words[1], "").split()], folder)
    model = folder / "my-classifier-80"
    if (model / "config.json").read_bytes() != (folder / "my-classifier" / "config.json").read_bytes():
        raise ReleaseError("config.json of the README's output is not that of its source")
    return commands


def readme_commands() -> list[str]:
    """What the README has a reader type under its heading on Hugging Face models, in that order."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    _, _, section = text.partition("\n## A Hugging Face model\n")
    found = re.search(r"^```sh\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    commands = found[1].splitlines() if found else []
    if not any(command.startswith("sapp prune ") for command in commands):
        raise ReleaseError("the README shows no command that prunes a Hugging Face model")
    return commands


def try_tutorial(sapp: Path, folder: Path) -> list[str]:
    """The tutorial's commands on the demo's network, by the installed program in `folder`; the commands that ran."""
    from scripts import train_digits

    with contextlib.redirect_stdout(io.StringIO()):
        train_digits.main(["--out", str(folder / "runs/demo"), "--epochs", "3"])
    _run([str(sapp), "recipes", "cp", "digits", "recipes"], folder)
    commands = tutorial_commands()
    for command in commands:
        words = shlex.split(command)
        _run([str(sapp), *words[1:], *FEWER_IN_THE_TUTORIAL.get(words[1], "").split()], folder)
    return commands


def tutorial_commands() -> list[str]:
    """What the tutorial has a reader type for the network of `make demo`, in that order, each on one line."""
    text = (REPOSITORY / "docs" / "tutorial.md").read_text(encoding="utf-8")
    shown = "\n".join(re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)).replace("\\\n", "")
    demo = ("runs/demo", "recipes cp digits")
    return [line for line in shown.splitlines() if line.startswith("sapp ") and any(part in line for part in demo)]


def _make_network(folder: Path) -> None:
    """Weights for the network of the recipe `digits`, and rows for it."""
    random = np.random.default_rng(0)
    shapes = {"hidden1": (512, 64), "hidden2": (512, 512), "output": (10, 512)}
    weights = {f"{name}.weight": random.normal(0, 0.05, shape).astype(np.float32) for name, shape in shapes.items()}
    biases = {f"{name}.bias": np.zeros(shape[0], np.float32) for name, shape in shapes.items()}
    save_file({**weights, **biases}, folder / "net.safetensors")
    np.savez(folder / "rows.npz", inputs=random.random((64, 64), np.float32), targets=np.arange(64) % 10)


def _files(folder: Path) -> list[str]:
    paths = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return [path.relative_to(folder).as_posix() for path in paths]


def _version() -> str:
    scope: dict[str, str] = {}
    exec((REPOSITORY / "sapp_cli" / "_version.py").read_text(encoding="utf-8"), scope)
    return scope["__version__"]


def _run(command: Sequence[str], folder: Path | None = None) -> str:
    """Its stdout. Raises ReleaseError with all it said where it fails."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", check=False)
    if ran.returncode:
        raise ReleaseError(f"{' '.join(command)} ended with {ran.returncode}\n{ran.stdout}{ran.stderr}")
    return ran.stdout


def main(command_line: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the two files")
    arguments = parser.parse_args(command_line)
    archive, wheel = build(arguments.out)
    check_contents(archive, wheel)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sapp = install(wheel, folder / "environment")
        ran = try_out(sapp, folder)
        ran += try_readme(sapp, folder)
        ran += try_tutorial(sapp, folder)
    for command in ran:
        print(f"ok    {command}")
    print(f"{archive}\n{wheel}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
