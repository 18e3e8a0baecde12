"""Arguments and options that several verbs share, and how they become recipe settings. Imports nothing heavy."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from sapp_cli.recipe.load import LoadedRecipe

SETTINGS = "Settings (they win over the recipe)"
OUTPUT = "Output"


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
        help="Hugging Face folder, folder of shards, .safetensors, .safetensors.index.json, or a .pt/.pth/.bin state dict.",
        show_default=False,
    ),
]
RecipeOption = Annotated[
    str,
    typer.Option(
        "--recipe", "-r", help="Recipe file, or the name of a shipped one (`sapp recipes ls`).", show_default=False
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set any recipe key, e.g. optimizer.lr=1e-3; repeatable.",
        rich_help_panel=SETTINGS,
    ),
]
BlockSizeOption = Annotated[
    str | None,
    typer.Option(
        "--block-size",
        metavar="N|ROWSxCOLUMNS",
        help="Block of the weight seen as out × in: 16, or 16x32.",
        rich_help_panel=SETTINGS,
    ),
]
SparsityOption = Annotated[
    float | None,
    typer.Option(
        "--sparsity", help="Share of the blocks of each pruned layer to remove, e.g. 0.9.", rich_help_panel=SETTINGS
    ),
]
MethodOption = Annotated[
    MethodName | None,
    typer.Option(
        "--method",
        metavar="NAME",
        help=f"Pruning method: {', '.join(method.value for method in MethodName)}.",
        rich_help_panel=SETTINGS,
    ),
]
StepsOption = Annotated[
    int | None, typer.Option("--steps", help="Optimizer steps of the run.", rich_help_panel=SETTINGS)
]
EpochsOption = Annotated[
    float | None, typer.Option("--epochs", help="Passes over the training data.", rich_help_panel=SETTINGS)
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Seed of everything random.", rich_help_panel=SETTINGS)]
DeviceOption = Annotated[Device | None, typer.Option("--device", help="Where to compute.", rich_help_panel=SETTINGS)]
PrecisionOption = Annotated[
    Precision | None,
    typer.Option("--precision", help="Of forward and backward; weights stay fp32.", rich_help_panel=SETTINGS),
]
DeterministicOption = Annotated[
    bool | None,
    typer.Option(
        "--deterministic",
        help="Ask CUDA for reproducible kernels (a CPU has them).",
        rich_help_panel=SETTINGS,
        show_default=False,
    ),
]
PrintConfigOption = Annotated[
    bool,
    typer.Option(
        "--print-config",
        help="Print the merged recipe, the origin of each value beside it, and stop.",
        rich_help_panel=OUTPUT,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.", rich_help_panel=OUTPUT)]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Errors only on stderr.", rich_help_panel=OUTPUT)]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Every layer and every logged step on stderr.", rich_help_panel=OUTPUT)
]


def read_recipe(recipe: str, sets: list[str] | None, flags: dict[str, tuple[str, Any]]) -> LoadedRecipe:
    """The recipe with `--set` and the flags {key: (flag, value)} laid over it; flags of value None were not given."""
    from sapp_cli.recipe.load import Flag, load_recipe

    values = {
        key: Flag(name, value.value if isinstance(value, Enum) else value) for key, (name, value) in flags.items()
    }
    return load_recipe(recipe, sets or [], values)


def parse_block_size(text: str | None) -> int | list[int] | str | None:
    """16 of "16", [16, 32] of "16x32"; anything else as it is, for the recipe's check to refuse."""
    if text is None:
        return None
    sides = text.lower().replace("×", "x").split("x")
    if not all(side.strip().isdecimal() for side in sides) or len(sides) > 2:
        return text
    return int(sides[0]) if len(sides) == 1 else [int(side) for side in sides]
