"""The recipe's section `data`: where the rows come from; the docstring under a key is its help."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sapp_cli.recipe.paths import Factory, RecipePath
from sapp_cli.recipe.section import PositiveInt, Section


class FilesSection(Section):
    """Where the rows lie."""

    train: RecipePath | list[RecipePath] | None = None
    """File, list of files or glob pattern; an image folder is a folder with one subfolder a class."""

    validation: RecipePath | list[RecipePath] | None = None
    """As `train`. Without it, `validation_share` of the training rows is held out, chosen by a hash of each row."""


class ColumnsSection(Section):
    """Names of the columns of `source: datasets`; null takes the usual one if the file has it."""

    text: str | None = None
    """Text to tokenize. Usual: text, sentence, sentence1, content."""

    text_pair: str | None = None
    """Second text of a pair. Usual: sentence2, text_pair; used only if the first is sentence1 or this key is set."""

    label: str | None = None
    """Target. Usual: label, labels, target."""

    image: str | None = None
    """Usual: image."""


class CriteoSection(Section):
    """Of `source: criteo`."""

    buckets: Annotated[int, Field(ge=2)] = 100_000
    """Values that each categorical column is hashed into; the network's embeddings have as many rows a column."""

    shuffle_rows: PositiveInt = 262_144
    """Lines that are shuffled together; they follow one another in the file, and memory holds two such windows, of about
    400 bytes a line."""


class DataSection(Section):
    """Where training and validation rows come from. `plan` works without any."""

    source: Literal["tensors", "datasets", "criteo", "factory"] = "datasets"
    """`tensors`: .safetensors or .npz with `inputs` and `targets`; `datasets`: parquet, csv, json(l), text or an image
    folder read by Hugging Face datasets; `criteo`: click logs of 40 tab-separated fields, streamed, gzipped or not;
    `factory`: a callable of yours that returns the two datasets."""

    files: FilesSection = FilesSection()

    format: Literal["parquet", "csv", "json", "text", "imagefolder"] | None = None
    """Of `source: datasets`; null goes by the file's ending."""

    columns: ColumnsSection = ColumnsSection()

    labels: dict[str, Annotated[int, Field(ge=0)]] = {}
    """Of `source: datasets`: the number of each label, `{no: 0, yes: 1}`, if config.json does not name the labels of the
    rows."""

    max_length: PositiveInt = 128
    """Tokens; longer texts are cut. For a causal LM, the length of the pieces the text is packed into."""

    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the training rows held out where `files.validation` is not given."""

    batch_size: PositiveInt = 32
    """Rows a step and process, before accumulation."""

    evaluation_batch_size: PositiveInt | None = None
    """Rows a step of evaluation; null: `batch_size`."""

    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that load data beside the training."""

    criteo: CriteoSection = CriteoSection()

    factory: Factory | None = None
    """Of `source: factory`: a callable that returns {"train": Dataset, "validation": Dataset} of rows that are dicts of
    tensors; a "collate" function may come with them."""

    kwargs: dict[str, Any] = {}
    """Keyword arguments of the factory."""

    @model_validator(mode="after")
    def _labels_are_of_a_table(self) -> DataSection:
        if self.labels and self.source != "datasets":
            raise ValueError(f"labels is given, but source is {self.source}; labels goes with source: datasets")
        return self

    @model_validator(mode="after")
    def _factory_and_source_agree(self) -> DataSection:
        if self.source == "factory" and self.factory is None:
            raise ValueError("source factory needs factory, such as data.py:datasets")
        if self.source != "factory" and self.factory is not None and self.files.train is None:
            raise ValueError(f"factory is given, but source is {self.source}; write source: factory")
        return self
