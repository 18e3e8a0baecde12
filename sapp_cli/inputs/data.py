"""The rows of a run from `data` of the recipe: files as tensors or tables, or a callable of the user's.

Each source has a file of its own: tensors, table_data (with tables, labels, tokens, masking, images), criteo
(with criteo_files, criteo_text), custom.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sapp_cli.errors import SettingError
from sapp_cli.inputs.criteo import load_criteo_data
from sapp_cli.inputs.custom import load_custom_data
from sapp_cli.inputs.rows import Batch, DataSets, Row
from sapp_cli.inputs.tensors import load_tensor_data
from sapp_cli.recipe.data_section import DataSection
from sapp_cli.recipe.schema import ObjectiveSection

__all__ = ["Batch", "DataSets", "Row", "load_data"]


def load_data(
    data: DataSection,
    objective: ObjectiveSection,
    folder: Path | None,
    config: Mapping[str, Any] | None,
    seed: int,
) -> DataSets:
    """Training and validation rows, and how they become batches.

    `folder` is the checkpoint's, where the tokenizer and preprocessor_config.json lie, `config` its config.json; None
    where it has none. `seed` draws the masks of masked-lm, nothing else: the rows held out are the same for every seed.
    Raises SettingError for settings that cannot work, DataError for files that are missing, damaged or do not fit.
    """
    if data.source == "factory":
        return load_custom_data(data)
    if data.source == "criteo":
        return load_criteo_data(data)
    if data.source == "tensors":
        return load_tensor_data(data, objective)
    missing = [name for name in ("datasets", "PIL", "transformers") if find_spec(name) is None]
    if missing:
        problem = f"datasets needs the package {missing[0]}: pip install 'sapp-cli[hf]'"
        raise SettingError([("data.source", problem)])
    from sapp_cli.inputs.table_data import load_table_data

    return load_table_data(data, objective, folder=folder, config=config or {}, seed=seed)
