"""The recipe: every setting of a run with its type, unit, bounds and default. The docstring under a key is its help.

Sections `data` and `prune` have files of their own, and the methods' own settings stand with the methods. What a key means
for the numbers is written in docs/method.md.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sapp_cli.recipe.data_section import DataSection
from sapp_cli.recipe.paths import NAMES_ONLY, Factory, RecipePath
from sapp_cli.recipe.prune_section import PruneSection
from sapp_cli.recipe.section import PositiveFloat, PositiveInt, Section, Share


class ModelSection(Section):
    """How to build the model, where the checkpoint does not say it itself (a Hugging Face folder does)."""

    factory: Factory | None = None
    """A callable that returns the torch.nn.Module; runs code of yours. Needed for a bare .safetensors or .pt file."""

    kwargs: dict[str, Any] = {}
    """Keyword arguments of the factory."""


class DistillSection(Section):
    """Distillation from a dense checkpoint, added to the task's own loss."""

    weight: Share = 0.0
    """Weight of the distillation term; the task's loss gets 1 − weight. 0: no teacher is loaded."""

    temperature: PositiveFloat = 2.0
    """Both sets of logits are divided by it; the term is multiplied by its square (Hinton et al., 2015)."""

    teacher: RecipePath | None = None
    """Checkpoint to distil from, of the same kind as the one that is pruned; null: that one."""

    hidden_states: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the mean squared error between the hidden states of student and teacher, every layer, relative to their
    size."""


class ObjectiveSection(Section):
    """What is minimized, and the metric that is reported."""

    task: Literal[
        "classification", "regression", "binary", "causal-lm", "masked-lm", "embedding-distillation", "factory"
    ] = "classification"
    """classification: cross-entropy, accuracy; regression: squared error; binary: log loss of one logit, or of one
    for each of several labels a row; causal-lm and masked-lm: cross-entropy of tokens, perplexity; embedding-distillation:
    1 − cosine between the pooled embeddings of model and source; factory: a callable of yours."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of classification."""

    mask_probability: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Of masked-lm: share of the tokens to predict."""

    pooling: Literal["mean", "cls", "max", "last", "weighted-mean"] | None = None
    """Of embedding-distillation: how token vectors become one sentence vector. null: as the checkpoint's modules.json says,
    else mean. weighted-mean: a token counts as often as its place says; last: the last token."""

    distill: DistillSection = DistillSection()

    factory: Factory | None = None
    """Of `task: factory`: a callable (model, batch) -> {"loss": scalar tensor, "metrics": {name: (sum, count)}}."""

    higher_is_better: dict[str, bool] = {}
    """Of `task: factory`: for each metric the factory returns, whether greater is better."""

    @model_validator(mode="after")
    def _factory_and_task_agree(self) -> ObjectiveSection:
        if self.task == "factory" and self.factory is None:
            raise ValueError("task factory needs factory, such as objective.py:loss")
        if self.task != "factory" and self.factory is not None:
            raise ValueError(f"factory is given, but task is {self.task}; write task: factory")
        return self


class OptimizerSection(Section):
    """How the weights are updated; the logits of the attention mask have settings of their own."""

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    """As in torch.optim."""

    lr: PositiveFloat | Literal["auto"] = 3e-4
    """Learning rate at its peak. auto: searched before the run in short runs of their own, which take at most twice the
    steps of the run; the output's recipe.yaml holds the rate that was found."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled under adamw, added to the gradient under adam and sgd."""

    decay_vectors: bool = False
    """Decay biases and normalization weights (parameters of one dimension) too."""

    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Of adam and adamw."""

    eps: PositiveFloat = 1e-8
    """Of adam and adamw."""

    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of sgd."""

    nesterov: bool = False
    """Of sgd."""

    fused: Literal["auto"] | bool = "auto"
    """One kernel for all of an update, where torch has it; auto: on a CPU and on CUDA, unless FSDP has spread the weights."""

    reset: bool = True
    """Forget the optimizer's state (moments, momentum) where a phase begins ("crucial", App. C.1)."""

    @property
    def rate(self) -> float:
        """`lr`, once it is a number."""
        assert self.lr != "auto", "the search has put a number in its place"
        return self.lr

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> OptimizerSection:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class LrScheduleSection(Section):
    """The learning rate over the run; the phases of pruning do not restart it."""

    name: Literal["cosine", "linear", "exponential", "constant"] = "cosine"
    """How the rate falls after the warmup."""

    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the run in which the rate rises linearly to its peak. 0: no warm-up at all."""

    warmup_steps: Annotated[int, Field(ge=0)] = 10
    """Steps that the warm-up has at least, up to a quarter of the run: for runs so short that its share gives fewer."""

    final: Share = 0.0
    """Rate at the end as a share of the peak; exponential needs more than 0."""

    @model_validator(mode="after")
    def _exponential_needs_an_end(self) -> LrScheduleSection:
        if self.name == "exponential" and self.final == 0:
            raise ValueError("an exponential schedule never reaches 0; set lr_schedule.final, e.g. 0.01")
        return self


class TrainSection(Section):
    """How long, where and how precisely to train."""

    steps: PositiveInt | None = None
    """Optimizer steps of the whole run. Give steps or epochs."""

    epochs: PositiveFloat | None = None
    """Passes over the training data, instead of steps."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of everything drawn at random."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA if there is any."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the forward and backward pass; weights, logits and optimizer state are fp32 in any case."""

    shard: bool = False
    """Of several processes: spread weights, gradients and optimizer state over them (FSDP2), where otherwise each has all."""

    sparse_phases: Literal["auto", "measured", "masked", "kept-blocks"] = "auto"
    """How pruned Linear layers are trained while their mask is fixed. `masked`: whole weights times their mask, as in the
    other phases; `kept-blocks`: computing with the kept blocks only, with optimizer state for these only. auto: the faster
    of both for each layer, by a rule made from measurements; `measured`: timed as a sparse phase begins, so that two runs
    may differ in their last bits. Several processes do what the main one chose; with `shard` all layers are masked."""

    deterministic: bool = False
    """Ask CUDA for deterministic kernels; a CPU run is deterministic anyway."""

    compile: bool = False
    """Compile forward and backward (torch.compile): minutes at the start; on a CPU it needs a C++ compiler."""

    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, about a third more time."""

    accumulate: PositiveInt = 1
    """Batches whose gradients are averaged into one step."""

    clip_norm: PositiveFloat | None = None
    """Clip the gradient norm of the weights to this; the logits do not count."""

    evaluate_every: PositiveInt | None = None
    """Steps between evaluations during the run; null: at the start and the end only."""

    evaluation_rows: PositiveInt | None = None
    """Validation rows used for the evaluations during the run; null: all. The first and the last always use all."""

    stop_on_collapse: bool = True
    """End the run with exit code 6 where two evaluations running, well into a sparse phase, are no better than guessing."""

    stop_on_cut_off: bool = True
    """End the run with exit code 6 where pruning has left no path through a layer, so that nothing trains what is left of it;
    false: go on without that layer, as where queries meet no key and attention is the same for all tokens."""

    save_steps: PositiveInt | None = None
    """Steps between saved run states, from which --resume goes on; null: by `save_minutes`."""

    save_minutes: PositiveFloat = 10.0
    """Minutes between saved run states; an interruption saves one in any case."""

    log_every: PositiveInt = 10
    """Steps between lines of metrics.jsonl."""

    trackers: list[Literal["tensorboard", "wandb"]] = []
    """Who is told beside metrics.jsonl, at the same steps: TensorBoard, Weights & Biases; needs sapp-cli[trackers]."""


class Recipe(Section):
    """A pruning run; every section and key is optional but `train.steps` (or `epochs`) and the data."""

    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    objective: ObjectiveSection = ObjectiveSection()
    optimizer: OptimizerSection = OptimizerSection()
    lr_schedule: LrScheduleSection = LrScheduleSection()
    train: TrainSection = TrainSection()
    prune: PruneSection = PruneSection()

    @model_validator(mode="after")
    def _sections_agree(self) -> Recipe:
        if (self.train.steps is None) == (self.train.epochs is None):
            raise ValueError("train: give steps or epochs, one of the two")
        if self.train.sparse_phases == "kept-blocks" and not self.prune.settings.freezes_pruned:
            raise ValueError(
                "train.sparse_phases: kept-blocks trains the kept blocks alone, prune.attention.pruned: literal all of them; "
                "take sparse_phases: auto or pruned: frozen"
            )
        return self


def with_rate(recipe: Recipe, rate: float) -> Recipe:
    """The recipe with this peak rate."""
    return recipe.model_copy(update={"optimizer": recipe.optimizer.model_copy(update={"lr": rate})})


def comparable(recipe: Recipe) -> dict[str, Any]:
    """The settings as JSON, with names in the place of paths: equal for a recipe whose folder has moved."""
    return Recipe.model_validate(recipe.model_dump(mode="json"), context=NAMES_ONLY).model_dump(mode="json")


def recipe_schema() -> dict[str, Any]:
    """JSON Schema of a recipe, with the descriptions, for editors that complete and check YAML."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}
