"""Which files a checkpoint consists of: a folder, an index or one file -> the weight files and what lies beside them.

Names out of an index must be plain file names, so an index cannot point outside its folder. Symbolic links are followed
wherever they lead: the hub's cache is made of them, only the owner of the disk can create them, and a weight file is
never read as anything but weights. (Companion files are treated more strictly, since they are copied: output.py.)
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sapp_cli.checkpoint.damage import AGAIN, absence, damaged, quoted
from sapp_cli.checkpoint.foreign import of_another_format
from sapp_cli.checkpoint.json_text import CONFIG_LIMIT, INDEX_LIMIT, read_object
from sapp_cli.checkpoint.quantization_entry import without_entry
from sapp_cli.errors import CheckpointError

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
NOT_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state|random_states).*")
NUMBERED = re.compile(
    r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.safetensors|\.bin|\.pt|\.pth|\.ckpt)"
)


@dataclass(frozen=True)
class Location:
    """A checkpoint's files. Shards are in the order of their names."""

    path: Path  # as it was given
    folder: Path | None  # where config.json and the tokenizer lie, if anywhere
    files: tuple[Path, ...]
    config: Mapping[str, Any] | None = None
    index: Path | None = None
    weight_map: Mapping[str, str] | None = None  # tensor -> file name, as the index has it
    index_metadata: Mapping[str, Any] = field(default_factory=dict)


def locate(path: Path | str) -> Location:
    """The files of the checkpoint at `path`. Raises CheckpointError, also for adapters and quantized checkpoints."""
    path = Path(path)
    with suppress(RuntimeError):  # ~name of nobody known here: a file may be called so
        path = path.expanduser()
    try:
        if not path.exists():
            raise _missing(path)
        return _in_folder(path) if path.is_dir() else _one_file(path)
    except OSError as error:
        raise damaged(path, f"cannot be read: {error.strerror}") from None


def _in_folder(path: Path) -> Location:
    if (path / "adapter_config.json").exists():
        raise damaged(
            path, "an adapter (adapter_config.json); merge it into its base model and give the merged checkpoint"
        )
    names = _names(path)
    index, files = _weights_among(names, path)
    if index is not None:
        return _from_index(path, path / index, _companions(path) or path)
    if not files and (path / "sparse").is_dir():  # an output of --layout bsr
        inner = _in_folder(path / "sparse")
        return Location(path, path, inner.files, _config(path), inner.index, inner.weight_map, inner.index_metadata)
    if not files:
        foreign = next((error for name in names if (error := of_another_format(path / name))), None)
        if foreign is not None:
            raise foreign
        raise damaged(path, f"no weights in this folder: {_instead(path, names)}")
    _check_numbers(set(files), path)
    folder = _companions(path) or path
    return Location(path, folder, tuple(path / name for name in files), _config(folder))


def _instead(path: Path, names: list[str]) -> str:
    """What there is in a folder without weights, and what to do."""
    if "zero_to_fp32.py" in names:
        return "a checkpoint of DeepSpeed; run its zero_to_fp32.py first, and give what that writes"
    if any(name.endswith(".distcp") for name in names):
        return (
            "a distributed checkpoint of torch; make a .pt file of it first, "
            f"`python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} {path}.pt`"
        )
    inner = [path / name for name in names if (path / name).is_dir() and any(map(_is_weights, _names(path / name)))]
    if inner:
        return f"they lie in {', '.join(map(str, inner[:5]))}{' and others' * (len(inner) > 5)}; give one of these"
    return "no .safetensors, .bin, .pt, .pth or .ckpt file"


def _names(folder: Path) -> list[str]:
    """Of all that lies there and is not hidden, in order."""
    return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))


def _is_weights(name: str) -> bool:
    return name.endswith((".safetensors", *PICKLES)) and not NOT_WEIGHTS.fullmatch(name)


def _weights_among(names: list[str], path: Path) -> tuple[str | None, list[str]]:
    """(index, weight files) of a folder: what transformers would load comes first, safetensors before pickles."""
    tensors = [name for name in names if name.endswith(".safetensors")]
    pickles = [name for name in names if name.endswith(PICKLES) and not NOT_WEIGHTS.fullmatch(name)]
    for found, single in ((tensors, "model.safetensors"), (pickles, "pytorch_model.bin")):
        if single in found:
            return None, [single]
        suffixes = (".safetensors.index.json",) if found is tensors else tuple(f"{end}.index.json" for end in PICKLES)
        indexes = [name for name in names if name.endswith(suffixes)]
        if len(indexes) > 1:
            raise damaged(path, f"several checkpoints in one folder ({', '.join(indexes)}); give one of these files")
        if indexes:
            return indexes[0], []
        if found is pickles and len(found) > 1 and not all(NUMBERED.fullmatch(name) for name in found):
            raise damaged(path, f"several state dicts in one folder ({', '.join(found)}); give one of these files")
        if found:
            return None, found
    return None, []


def _one_file(path: Path) -> Location:
    folder = _companions(path.parent)
    if path.name.startswith("adapter_model."):
        raise damaged(path, "an adapter; merge it into its base model and give the merged checkpoint")
    if path.name.endswith(".index.json"):
        return _from_index(path, path, folder)
    foreign = of_another_format(path)
    if foreign is not None:
        raise foreign
    if path.suffix not in (".safetensors", *PICKLES):
        raise damaged(
            path, "unknown kind of file; give a folder, .safetensors, .safetensors.index.json, .bin, .pt, .pth or .ckpt"
        )
    return Location(path, folder, (path,), _config(folder))


def _from_index(path: Path, index: Path, folder: Path | None) -> Location:
    """The shards an index names, each of them a file beside it."""
    content = read_object(index, "the index", INDEX_LIMIT)
    weight_map, metadata = content.get("weight_map"), content.get("metadata") or {}
    if not isinstance(weight_map, dict) or not weight_map or not isinstance(metadata, dict):
        raise damaged(index, "is not an index: weight_map does not map tensors to files")
    suffixes = (".safetensors",) if index.name.endswith(".safetensors.index.json") else PICKLES
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or not _plain(file):
            raise damaged(index, f"{quoted(file)} is not the name of a file in its folder; paths are refused", tensor)
        if not file.endswith(suffixes):
            raise damaged(index, f"{quoted(file)} is not a {suffixes[0]} file", tensor)
    files = [index.parent / name for name in sorted(set(weight_map.values()))]
    identities: dict[tuple[int, int], Path] = {}
    for file in files:
        if not file.is_file():
            raise damaged(index, f"shard {quoted(file.name)} is missing; {AGAIN}")
        status = file.stat()
        twin = identities.setdefault((status.st_dev, status.st_ino), file)
        if twin is not file:
            raise damaged(index, f"shards {quoted(twin.name)} and {quoted(file.name)} are one and the same file")
    return Location(path, folder, tuple(files), _config(folder), index, weight_map, metadata)


def _check_numbers(files: Collection[str], path: Path) -> None:
    """Raise CheckpointError if the numbers in the names of the shards say that one is missing."""
    matches = [match for name in files if (match := NUMBERED.fullmatch(name))]
    for stem, count, suffix in sorted({(match["stem"], match["count"], match["suffix"]) for match in matches}):
        expected = (f"{stem}-{number:05}-of-{count}{suffix}" for number in range(1, int(count) + 1))
        missing = next((name for name in expected if name not in files), None)
        if missing is not None:
            raise damaged(path, f"shard {quoted(missing)} is missing; {AGAIN}")


def _plain(name: str) -> bool:
    """A file name that stays in its folder on every system."""
    return name.isprintable() and not re.search(r'[/\\:*?"<>|]', name) and name.strip(". ") == name.rstrip(". ") != ""


def _companions(folder: Path) -> Path | None:
    """Where config.json lies: above the `sparse` folder of an output of ours, whose own is a copy, or here."""
    above, here = folder.absolute().parent, (folder / "config.json").is_file()
    if folder.absolute().name == "sparse" and (above / "config.json").is_file():
        return folder if here and not (above / "manifest.json").is_file() else above
    return folder if here else None


def _config(folder: Path | None) -> dict[str, Any] | None:
    """config.json without what it says about our own format; CheckpointError if it says that the weights are quantized."""
    if folder is None or not (folder / "config.json").is_file():
        return None
    config = read_object(folder / "config.json", "the configuration", CONFIG_LIMIT, unique=False)
    config = without_entry(config)
    quantization = config.get("quantization_config") or config.get("compression_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        text = f"a quantized checkpoint ({quoted(method)}" if method else "a quantized checkpoint (quantization_config"
        raise damaged(folder, f"{text} in config.json); start from the unquantized one")
    return config


def _missing(path: Path) -> CheckpointError:
    """A name of the hub is answered with how to fetch it; sapp itself never downloads."""
    name = str(path)
    address = re.match(r"https?:/+[^/]+/([\w.-]+/[\w.-]+)", name, re.ASCII)  # a path keeps one slash of the two
    if address is not None:
        advice = f"for a model of the hub run `hf download {address[1]}` first, and give the folder it prints"
        return damaged(name.replace(":/", "://", 1), f"is an address, and sapp reads files; {advice}")
    if path.is_symlink():
        return damaged(path, absence(path))
    if path.parent.is_dir():
        near = get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1, cutoff=0.75)
        if near:
            return damaged(path, f"no such file or folder; nearest: '{near[0]}'")
    known = path.name == "sparse" or path.name.endswith((".safetensors", ".json", *PICKLES))
    known |= path.parent != Path() and path.parent.is_dir()  # no folder of a publisher of the hub, but of this disk
    if known or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name, re.ASCII):
        missing = "" if path.parent.is_dir() else f": there is no folder {path.parent}"
        return damaged(path, f"no such file or folder{missing}")
    advice = f"a model of the hub? Run `hf download {name}` first, and give the folder it prints"
    return damaged(path, f"no such file or folder; {advice}")
