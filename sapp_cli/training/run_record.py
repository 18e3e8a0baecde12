"""state.json of a saved run as a typed record: whatever the file holds, nothing of another type gets past this."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from sapp_cli.checkpoint.damage import quoted
from sapp_cli.checkpoint.json_text import CONFIG_LIMIT, read_object
from sapp_cli.errors import CheckpointError
from sapp_cli.recipe.schema import Recipe

VERSION = 3


class Costs(BaseModel):
    """What the model was seen to do for one example; None if that is not known."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    multiply_adds: dict[str, int | None] | None = None  # {layer: of its dense weight}
    blocks: dict[str, int] | None = None  # {pruned layer: what one block costs}


class RankingRecord(BaseModel):
    """What the run knew of its layers' scores: the fields of `pruner.Ranking`."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    shown: bool = False
    reached: list[str] = []
    unranked: dict[str, str] | None = None


class DenseStartRecord(BaseModel):
    """What the run knew of the losses of its dense start: the fields of `pruner.DenseStart`."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    seen: Annotated[int, Field(ge=0)] = 0
    first: list[float] = []
    sane: Annotated[int, Field(ge=0)] = 0
    raised: Annotated[int, Field(ge=0)] = 0
    reported: bool = False


class StateRecord(BaseModel):
    """All of a saved state that is not a tensor."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    version: Annotated[int, Field(ge=VERSION, le=VERSION)] = VERSION
    recipe: Recipe
    inputs: dict[str, str]  # {file: SHA-256}
    processes: str
    dense: dict[str, float]  # {metric: of the checkpoint that came in}
    costs: Costs = Costs()
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0  # of training
    log_bytes: Annotated[int, Field(ge=0)] = 0  # of metrics.jsonl
    ranking: RankingRecord = RankingRecord()
    dense_start: DenseStartRecord = DenseStartRecord()
    kept_blocks: list[str] = []  # layers whose kept blocks are a parameter of their own

    def as_json(self) -> dict[str, Any]:
        """The document of state.json."""
        return {**self.model_dump(exclude={"recipe"}), "recipe": self.recipe.model_dump(mode="json")}


def read_record(path: Path, advice: str) -> StateRecord:
    """The record in a state.json. Raises CheckpointError, which ends with `advice`, for everything else."""
    try:
        content = read_object(path, "the run state", CONFIG_LIMIT)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: the run state is damaged; {advice}") from error
    version = content.get("version")
    if version != VERSION:
        raise CheckpointError(
            f"{path}: a run state of another version of sapp (format {quoted(version)}, expected {VERSION}); {advice}"
        )
    try:
        return StateRecord.model_validate(content)
    except ValidationError as error:
        raise CheckpointError(f"{path}: {_worded(error.errors(include_url=False)[0])}; {advice}") from None


def _worded(problem: ErrorDetails) -> str:
    """Like `seconds: 'x', expected a valid number`."""
    key = quoted(".".join(map(str, problem["loc"]))).strip("'")
    if problem["type"] == "missing":
        return f"{key}: missing"
    expected = problem["msg"].removeprefix("Input should be ")
    return (
        f"{key}: {quoted(problem['input'])}, expected {expected}"
        if expected != problem["msg"]
        else f"{key}: {expected}"
    )
