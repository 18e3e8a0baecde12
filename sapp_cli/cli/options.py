"""Arguments and options that several verbs share, and how they become recipe settings. Imports nothing heavy."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sapp_cli.cli.completion import complete_key, complete_recipe

if TYPE_CHECKING:
    from sapp_cli.recipe.load import Flag, LoadedRecipe

SETTINGS = "Settings (they win over the recipe)"
OUTPUT = "Output"
LAYOUTS = "both|dense|bsr"


class MethodName(str, Enum):
    """prune.method of the recipe."""

    SEQUENTIAL_ATTENTION = "sequential-attention"
    ACDC = "acdc"
    POWERPROP = "powerprop"
    MAGNITUDE = "magnitude"
    GRADUAL_MAGNITUDE = "gradual-magnitude"


class Device(str, Enum):
    """train.device of the recipe."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Precision(str, Enum):
    """train.precision of the recipe."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class LayoutName(str, Enum):
    """Layouts of the exported weights."""

    BOTH = "both"
    DENSE = "dense"
    BSR = "bsr"


CheckpointArgument = Annotated[
    Path,
    typer.Argument(
        metavar="CHECKPOINT",
        help="Hugging Face folder, folder of shards, or a file: .safetensors, .index.json, .pt, .pth, .bin or .ckpt.",
        show_default=False,
    ),
]
RecipeOption = Annotated[
    str,
    typer.Option(
        "--recipe",
        "-r",
        metavar="RECIPE",
        help="A file, or the name of a shipped one: `sapp recipes ls`.",
        show_default=False,
        autocompletion=complete_recipe,
    ),
]
OptionalRecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        "-r",
        metavar="RECIPE",
        help="A file, or a shipped name (`sapp recipes ls`); else what `sapp recipes init` writes.",
        show_default=False,
        autocompletion=complete_recipe,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any recipe key: optimizer.lr=1e-3; repeatable.",
        rich_help_panel=SETTINGS,
        autocompletion=complete_key,
    ),
]
BlockSizeOption = Annotated[
    str | None,
    typer.Option(
        "--block-size",
        metavar="N|RxC",
        help="16, or 16x32: rows × columns, of out × in.",
        rich_help_panel=SETTINGS,
    ),
]
SparsityOption = Annotated[
    float | None,
    typer.Option(
        "--sparsity",
        metavar="SHARE",
        help="Share of the blocks to remove, such as 0.9.",
        rich_help_panel=SETTINGS,
    ),
]
TargetSizeOption = Annotated[
    str | None,
    typer.Option(
        "--target-size",
        metavar="SIZE",
        help="Find the sparsity for a file of this size: 20MB.",
        rich_help_panel=SETTINGS,
    ),
]
TargetSpeedupOption = Annotated[
    float | None,
    typer.Option(
        "--target-speedup",
        metavar="FACTOR",
        min=1.0,
        help="Find the sparsity for this speed-up, by timing.",
        rich_help_panel=SETTINGS,
    ),
]
MethodOption = Annotated[
    str | None,
    typer.Option(
        "--method",
        metavar="NAME",
        help=f"{', '.join(method.value for method in MethodName)}.",
        rich_help_panel=SETTINGS,
        autocompletion=lambda incomplete: [
            method.value for method in MethodName if method.value.startswith(incomplete)
        ],
    ),
]
StepsOption = Annotated[
    int | None, typer.Option("--steps", metavar="N", help="Optimizer steps of the run.", rich_help_panel=SETTINGS)
]
EpochsOption = Annotated[
    float | None,
    typer.Option("--epochs", metavar="N", help="Passes over the training data.", rich_help_panel=SETTINGS),
]
SeedOption = Annotated[
    int | None, typer.Option("--seed", metavar="N", help="Seed of everything random.", rich_help_panel=SETTINGS)
]
DeviceOption = Annotated[
    Device | None,
    typer.Option("--device", metavar="auto|cpu|cuda", help="Where to compute.", rich_help_panel=SETTINGS),
]
PrecisionOption = Annotated[
    Precision | None,
    typer.Option(
        "--precision",
        metavar="fp32|bf16|fp16",
        help="Of forward and backward; weights stay fp32.",
        rich_help_panel=SETTINGS,
    ),
]
DeterministicOption = Annotated[
    bool | None,
    typer.Option(
        "--deterministic",
        help="Reproducible kernels on CUDA, as on a CPU.",
        rich_help_panel=SETTINGS,
        show_default=False,
    ),
]
CompileOption = Annotated[
    bool | None,
    typer.Option(
        "--compile",
        help="torch.compile; a CPU needs a C++ compiler.",
        rich_help_panel=SETTINGS,
        show_default=False,
    ),
]

PrintConfigOption = Annotated[
    bool,
    typer.Option(
        "--print-config",
        help="Print the merged recipe with origins, and stop.",
        rich_help_panel=OUTPUT,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.", rich_help_panel=OUTPUT)]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Errors only on stderr.", rich_help_panel=OUTPUT)]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="More about what is read and done, on stderr.", rich_help_panel=OUTPUT)
]


def check_order(checkpoint: Path, recipe: str | None, *, opens: bool = True) -> None:
    """Raise what is wrong with the two paths, before torch is imported: the files are missing, or in each other's place.

    `opens`: whether the verb opens the checkpoint.
    """
    from sapp_cli.checkpoint.locate import locate
    from sapp_cli.errors import UsageError
    from sapp_cli.recipe.shipped import find_recipe

    is_recipe = checkpoint.suffix in (".yaml", ".yml") and checkpoint.is_file()
    if recipe and is_recipe and Path(recipe).exists() and Path(recipe).suffix not in (".yaml", ".yml"):
        raise UsageError(
            f"{checkpoint} looks like a recipe, and {recipe} like a checkpoint: write {recipe} -r {checkpoint}"
        )
    if recipe is not None:
        find_recipe(recipe)
    if opens:
        locate(checkpoint)


def read_recipe(recipe: str, sets: list[str] | None, flags: dict[str, tuple[str, Any]]) -> LoadedRecipe:
    """The recipe with `--set` and the flags {key: (flag, value)} laid over it; flags of value None were not given."""
    from sapp_cli.recipe.load import load_recipe

    return load_recipe(recipe, sets or [], _flags(flags))


def read_starter(
    text: str, sets: list[str] | None, flags: Mapping[str, tuple[str, Any]], *, to_print: bool
) -> LoadedRecipe:
    """`read_recipe` for the text that `sapp recipes init` writes. `to_print`: as in a file in the current folder."""
    from sapp_cli.recipe.load import NOWHERE, load_starter

    return load_starter(text, sets or [], _flags(flags), Path.cwd() if to_print else NOWHERE)


def _flags(given: Mapping[str, tuple[str, Any]]) -> dict[str, Flag]:
    from sapp_cli.recipe.load import Flag

    return {key: Flag(name, value.value if isinstance(value, Enum) else value) for key, (name, value) in given.items()}


def with_target(
    recipe: LoadedRecipe,
    checkpoint: Path,
    given: tuple[str | None, float | None],
    sparsity: float | None,
    again: Callable[[Mapping[str, tuple[str, Any]]], LoadedRecipe],
    resumed: Path | None = None,
) -> LoadedRecipe:
    """The recipe `again` makes with the {key: (flag, value)} that meet the size or speed-up `given`; as it is without one.

    These are the sparsity, and where the recipe leaves it open what to spend: the very thing that has a target.
    `resumed`: OUT of a run to go on with, whose sparsity is taken if there is one.
    """
    size, speedup = given
    if size is None and speedup is None:
        return recipe
    flag = "--target-size" if size is not None else "--target-speedup"
    if sum(value is not None for value in (size, speedup, sparsity)) > 1:
        raise typer.BadParameter(
            "it finds the sparsity; give one of --sparsity, --target-size, --target-speedup", param_hint=flag
        )

    from sapp_cli.checkpoint.write import parse_size
    from sapp_cli.pipeline.target import interrupted_sparsity, solve_target

    settings = recipe.recipe.prune
    own: dict[str, tuple[str, Any]] = {}
    if settings.allocation is None and settings.resolved_allocation != "uniform":
        own["prune.allocation"] = flag, "parameters" if size is not None else "time"
        recipe = again(own)
    found = interrupted_sparsity(resumed) if resumed else None
    if found is None:
        solved = solve_target(recipe, checkpoint, parse_size(size) if size is not None else None, speedup)
        print(solved.text, file=sys.stderr)
        found = solved.sparsity
    return again({**own, "prune.sparsity": (flag, found)})


def parse_block_size(text: str | None) -> int | list[int] | None:
    """16 of "16", [16, 32] of "16x32"; raises BadParameter for anything else."""
    if text is None:
        return None
    sides = text.lower().replace("×", "x").split("x")
    if not all(side.strip().isdecimal() for side in sides) or len(sides) > 2:
        raise no_block(text)
    return int(sides[0]) if len(sides) == 1 else [int(side) for side in sides]


def no_block(text: str | None) -> typer.BadParameter:
    """The mistake, for its caller to raise."""
    return typer.BadParameter(f"'{text}' is no block; write 16, or 16x32", param_hint="--block-size")
