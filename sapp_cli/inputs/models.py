"""The model of a checkpoint, in fp32, and how the checkpoint's names stand for the model's.

A Hugging Face folder says in its config.json which class to build; anything else needs the recipe's `model.factory`. All bytes
are read by sapp's own checked readers, whatever their format; libraries only get tensors. No code that lies in a folder runs.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sapp_cli.bits import TORCH_DTYPES, from_bits
from sapp_cli.checkpoint.damage import quoted
from sapp_cli.checkpoint.source import Checkpoint
from sapp_cli.errors import CheckpointError, SettingError, UsageError
from sapp_cli.inputs.config_sizes import does_not_fit, require_layers, require_shapes, require_sizes
from sapp_cli.inputs.heads import architecture_of
from sapp_cli.inputs.hugging_face import offline_transformers
from sapp_cli.inputs.wrapped_names import may_be_wrapped, unwrapped, wrapper_of
from sapp_cli.recipe.factory import call_factory, load_factory
from sapp_cli.recipe.schema import ModelSection


@dataclass(frozen=True)
class LoadedModel:
    """A model with the checkpoint's weights in it."""

    model: nn.Module  # parameters in fp32, training mode off
    names: Mapping[str, str]  # checkpoint's tensor name -> name in model.state_dict(); the others pass through verbatim
    added: tuple[str, ...]  # weights of the model that the checkpoint lacks: started at random
    dtypes: Mapping[str, torch.dtype]  # state dict name -> dtype in the checkpoint
    wrapper: str | None = None  # what the checkpoint's names have before the model's

    @property
    def stored_names(self) -> dict[str, str]:
        """Name in model.state_dict() -> the first of the checkpoint's names for it."""
        return {model_name: name for name, model_name in reversed(list(self.names.items()))}

    @property
    def description(self) -> str:
        count = sum(parameter.numel() for parameter in self.model.parameters())
        behind = f", in the checkpoint behind '{self.wrapper}'" if self.wrapper else ""
        return f"{type(self.model).__name__}, {count:,} parameters{behind}"


def load_model(checkpoint: Checkpoint, section: ModelSection) -> LoadedModel:
    """The checkpoint's model.

    Raises CheckpointError if the two do not fit each other, UsageError if nothing says how to build the model.
    """
    build: Callable[[Mapping[str, Tensor]], Built]
    if section.factory is not None:
        load_factory(section.factory, "model.factory")  # a typing error should not show after minutes of reading
        build = partial(_from_factory, checkpoint, section)
    elif checkpoint.config is not None and checkpoint.config.get("model_type"):
        build = partial(built_by_library, checkpoint, *_class_and_config(checkpoint, checkpoint.config))
    else:
        raise UsageError(
            f"{checkpoint.path}: nothing says how to build this model: there is no Hugging Face config.json beside it. "
            "Name a callable that returns it in the recipe: model.factory: file.py:function"
        )
    state = dense_state(checkpoint)
    built = build(state)
    names = _map_names(checkpoint, built, state, build)
    dtypes = {names[name]: TORCH_DTYPES[checkpoint.dtype(name)] for name in state if name in names}
    return LoadedModel(built.model.eval(), names, tuple(sorted(built.missing)), dtypes, wrapper_of(built.plain))


def require_whole(loaded: LoadedModel, path: Path, names: Sequence[str] | None = None) -> None:
    """Raise CheckpointError if weights of the model, or those of `names`, started at random and were never trained."""
    random = loaded.added if names is None else names
    if random:
        raise CheckpointError(
            f"{path}: the checkpoint has no {_some(set(random))}; the model would start there at random, and no figure of it "
            "would say anything about the checkpoint. Give the checkpoint with all its weights, or train them: sapp prune"
        )


@dataclass(frozen=True)
class Built:
    """A model with a state in it, and its parameters that the state lacked."""

    model: nn.Module
    missing: set[str]
    plain: dict[str, str]  # name of the state -> the same without wrappers, under which the model was given it


def dense_tensor(checkpoint: Checkpoint, name: str) -> Tensor:
    """A tensor of the checkpoint, block-sparse ones filled in; floating values in fp32, all others as they are stored."""
    dtype = TORCH_DTYPES.get(checkpoint.dtype(name))
    if dtype is None:
        raise CheckpointError(f"{checkpoint.path}: '{name}': dtype {checkpoint.dtype(name)} is not supported")
    if dtype.is_floating_point:
        return torch.from_numpy(np.array(checkpoint.dense_float32(name)))
    return from_bits(checkpoint.dense_array(name), checkpoint.dtype(name))


def dense_state(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """{name: `dense_tensor`} of the checkpoint, aliases included; without those of dtypes that torch does not have."""
    names = [name for name in checkpoint.dense_names() if checkpoint.dtype(name) in TORCH_DTYPES]
    state = {name: dense_tensor(checkpoint, name) for name in names}
    for alias, stored in checkpoint.tied.items():
        if stored in state:
            state.setdefault(alias, state[stored])
    return state


def _from_factory(checkpoint: Checkpoint, section: ModelSection, state: Mapping[str, Tensor]) -> Built:
    assert section.factory is not None, "checked by the caller"
    model = call_factory(section.factory, section.kwargs, "model.factory")
    if not isinstance(model, nn.Module):
        problem = f"'{section.factory}': returned a value of type {type(model).__name__}, not a torch.nn.Module"
        raise SettingError([("model.factory", problem)])
    lazy = next((name for name, tensor in model.named_parameters() if is_lazy(tensor)), None)
    if lazy is not None:
        problem = (
            f"'{section.factory}': '{lazy}' has no shape yet, as in nn.LazyLinear; call the model once in the factory, on an "
            "example, before it is returned"
        )
        raise SettingError([("model.factory", problem)])
    model = model.float()
    wanted = _tensors(model)
    plain = unwrapped(state, wanted.__contains__)
    state = {plain[name]: tensor for name, tensor in state.items()}
    tied = _tied_names(model)
    missing = {name for name in wanted if name not in state and not any(twin in state for twin in tied.get(name, ()))}
    problems = _shape_problems(state, wanted)
    problems += [f"the checkpoint has no '{name}' {tuple(wanted[name].shape)}" for name in sorted(missing)]
    unknown = set(state) - set(wanted)
    if problems and unknown:
        problems.append(f"the model does not know: {_some(unknown)}")
    owner = _owner(missing, unknown) if problems else None
    if owner is not None:
        problems = [
            f"its names begin with '{owner}': it was saved from a model that holds this one; save the state dict of the "
            "model inside, or let the factory return the whole"
        ]
    if problems:
        shown = [*problems[:8], *([f"and {len(problems) - 8} more"] if len(problems) > 8 else [])]
        raise CheckpointError(
            f"{checkpoint.path} does not fit the model of {section.factory}:\n" + "\n".join(f"  {p}" for p in shown)
        )
    model.load_state_dict(state, strict=False)
    return Built(model, set(), plain)


def _class_and_config(checkpoint: Checkpoint, config: Mapping[str, Any]) -> tuple[Any, Any]:
    """The class of transformers that config.json names, and the configuration as an object of the library's."""
    require_sizes(checkpoint, config)
    with offline_transformers() as transformers:
        built = _config(transformers, checkpoint, dict(config))
        cls = _model_class(transformers, checkpoint, dict(config), built)
        require_shapes(checkpoint, partial(cls, built), partial(candidate_names, prefix=cls.base_model_prefix))
        return cls, built


def empty_model(checkpoint: Checkpoint) -> nn.Module:
    """The model that a Hugging Face folder's config.json names, on the meta device: shapes, and no values.

    In the dtype named there, float32 if there is none, and in evaluation mode; it generates as generation_config.json says.
    Raises UsageError for any other checkpoint.
    """
    if checkpoint.config is None or not checkpoint.config.get("model_type"):
        raise UsageError(
            f"{checkpoint.path}: no Hugging Face config.json, expected one that says how to build the model; "
            "build it yourself and call sapp.load(model, OUT)"
        )
    cls, config = _class_and_config(checkpoint, checkpoint.config)
    folder = checkpoint.folder or checkpoint.path
    config.name_or_path = str(folder)
    with offline_transformers() as transformers:
        with torch.device("meta"):
            model = cls._from_config(config, dtype=config.dtype or torch.float32)
        if model.can_generate() and (folder / "generation_config.json").is_file():
            model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    found: nn.Module = model.eval()
    return found


def built_by_library(checkpoint: Checkpoint, cls: Any, config: Any, state: Mapping[str, Tensor]) -> Built:
    """A model of the class, in fp32, with the state in it as `from_pretrained` puts it there, whatever it renames or joins.

    Raises CheckpointError if the two do not fit each other.
    """
    plain = _plain_names(cls, config, state)
    state = {plain[name]: tensor for name, tensor in state.items()}
    with offline_transformers():
        try:
            model, info = cls.from_pretrained(
                None,
                config=config,
                # Copies: the library may keep what it is given, and training changes it in place.
                state_dict={name: tensor.clone() for name, tensor in state.items()},
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        except Exception as error:  # whatever the library makes of a config or weights that do not fit
            raise CheckpointError(f"{checkpoint.path}: {cls.__name__} cannot load it: {_first_line(error)}") from error
    mismatched = [
        f"'{key[0]}' is {tuple(key[1])}, the model wants {tuple(key[2])}" for key in sorted(info["mismatched_keys"])
    ]
    if mismatched:
        raise does_not_fit(checkpoint, cls, mismatched)
    missing = set(info["missing_keys"]) & {name for name, _ in model.named_parameters()}
    if missing >= {name for name, _ in model.named_parameters()}:
        raise CheckpointError(
            f"{checkpoint.path}: none of its {len(state)} tensors has a name that {cls.__name__} knows, "
            f"e.g. {_some(set(state))}; is config.json the right one?"
        )
    names_of = partial(candidate_names, prefix=cls.base_model_prefix)
    require_layers(checkpoint, model, missing, set(info["unexpected_keys"]), names_of)
    return Built(model.float(), missing, plain)


def _plain_names(cls: Any, config: Any, state: Mapping[str, Tensor]) -> dict[str, str]:
    """{name of the state: the same without wrappers}; the class says which are its own, if any could be a wrapper's."""
    same = {name: name for name in state}
    if not may_be_wrapped(state):
        return same
    try:
        with offline_transformers(), torch.device("meta"):
            model = cls(copy.deepcopy(config))
    except Exception:  # the load that follows says what is wrong
        return same
    known, prefix = set(model.state_dict()), model.base_model_prefix
    return unwrapped(state, lambda name: not known.isdisjoint(candidate_names(name, prefix)))


def _config(transformers: Any, checkpoint: Checkpoint, config: dict[str, Any]) -> Any:
    model_type = str(config["model_type"])
    if config.get("auto_map") and model_type not in transformers.CONFIG_MAPPING:
        raise UsageError(
            f"{checkpoint.path}: config.json asks to run Python code from the folder (auto_map), which sapp does not do. "
            "Name a callable of yours in the recipe: model.factory: file.py:function"
        )
    if model_type not in transformers.CONFIG_MAPPING:
        raise CheckpointError(
            f"{checkpoint.path}/config.json: model_type '{model_type}' is unknown to transformers {transformers.__version__}; "
            "update it, or name a callable in the recipe: model.factory: file.py:function"
        )
    try:
        return transformers.CONFIG_MAPPING[model_type].from_dict(config)
    except Exception as error:  # whatever the library makes of a value of another type
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{checkpoint.path}/config.json: transformers {transformers.__version__} cannot use it: {reason}; take the "
            "config.json that belongs to these weights"
        ) from error


def _model_class(transformers: Any, checkpoint: Checkpoint, config: dict[str, Any], built: Any) -> Any:
    """The class that config.json names first; the bare model of the type where it names none."""
    named = config.get("architectures")
    if named:
        name = architecture_of(config)
        if name is None:
            raise CheckpointError(
                f"{checkpoint.path}/config.json: architectures is {json.dumps(named)}, expected a list with the name of a "
                "class of transformers; take the config.json that belongs to these weights"
            )
        cls = getattr(transformers, name, None)
        if isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel):
            return cls
        raise CheckpointError(
            f"{checkpoint.path}/config.json: transformers {transformers.__version__} has no model class {quoted(name)}"
        )
    return transformers.MODEL_MAPPING[type(built)]


def _map_names(
    checkpoint: Checkpoint, built: Built, state: Mapping[str, Tensor], build: Callable[[Mapping[str, Tensor]], Built]
) -> dict[str, str]:
    """Checkpoint name -> model name, each proven by its values: what is trained must find its way back.

    Most names are equal, or differ by a prefix (bert.…) or by gamma for weight. Where a library renames more than that on
    loading, a second load tells: of tensors that hold nothing but a number of their own. A weight that was put together
    from several tensors cannot be written back: CheckpointError.
    """
    model, known = built.model, _tensors(built.model)
    prefix = getattr(model, "base_model_prefix", "")
    names = {}
    for name, tensor in state.items():
        for candidate in candidate_names(built.plain[name], prefix):
            if candidate in known and same_values(known[candidate], tensor):
                names[name] = candidate
                break
    if _uncovered(built, names):
        for model_name, name in origins(state, build).items():
            if name not in names and same_values(known[model_name], state[name]):
                names[name] = model_name
    lost = _uncovered(built, names)
    if lost:
        not_finite = [name for name in state if name not in names and not state[name].isfinite().all()]
        if not_finite:
            raise CheckpointError(f"{checkpoint.path}: '{not_finite[0]}' holds values that are not finite")
        raise CheckpointError(
            f"{checkpoint.path}: {type(model).__name__} keeps {_some(lost)} in another form than the checkpoint, so "
            "a pruned weight could not be written back. Load and save the model once with its library; where it takes the "
            "weights apart again on saving, as those of experts, name a callable whose parameters are called as in the "
            "checkpoint: model.factory: file.py:function"
        )
    return names


def origins(state: Mapping[str, Tensor], build: Callable[[Mapping[str, Tensor]], Built]) -> dict[str, str]:
    """{name in the model: name in the checkpoint} of what loading takes from one tensor, told by a number of its own.

    Shape and order of the entries may have changed on the way; that is for the caller to compare.
    """
    marks = {name: torch.full_like(tensor, 1 + index) for index, (name, tensor) in enumerate(state.items())}
    marked = _tensors(build(marks).model)
    constant = {name: tensor for name, tensor in marked.items() if not tensor.is_complex() and _is_constant(tensor)}
    marked_as = {name: tensor.flatten()[0].item() for name, tensor in constant.items()}
    by_mark = {float(1 + index): name for index, name in enumerate(state)}
    return {name: by_mark[float(mark)] for name, mark in marked_as.items() if float(mark) in by_mark}


def _uncovered(built: Built, names: Mapping[str, str]) -> set[str]:
    """Parameters that no name of the checkpoint stands for."""
    covered = set(names.values()) | built.missing
    tied = _tied_names(built.model)
    parameters = {name for name, _ in built.model.named_parameters()}
    return {name for name in parameters if not ({name} | tied.get(name, set())) & covered}


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict without what is not a tensor: a module's extra state may be any object, and is not a weight."""
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def _is_constant(tensor: Tensor) -> bool:
    return tensor.numel() > 0 and bool((tensor == tensor.flatten()[0]).all())


def same_values(loaded: Tensor, stored: Tensor) -> bool:
    """True if they are equal, in shape too, seen in the dtype that is stored."""
    return loaded.shape == stored.shape and torch.equal(loaded.to(stored.dtype), stored)


def candidate_names(name: str, prefix: str) -> list[str]:
    """What a tensor of the checkpoint may be called in a model: with or without its prefix, gamma and beta translated."""
    found = [name]
    if prefix:
        found += [name.removeprefix(f"{prefix}."), f"{prefix}.{name}"]
    head, _, last = name.rpartition(".")
    renamed = {"gamma": "weight", "beta": "bias"}.get(last)
    return found if renamed is None else found + candidate_names(f"{head}.{renamed}", prefix)


def _owner(missing: set[str], unknown: set[str]) -> str | None:
    """What stands before the names that a model lacks, if they are all there behind it."""
    if not missing:
        return None
    one = min(missing)
    owners = [name.removesuffix(one) for name in sorted(unknown) if name.endswith(f".{one}")]
    return next((owner for owner in owners if {f"{owner}{name}" for name in missing} <= unknown), None)


def _shape_problems(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    known = {name: tensor for name, tensor in wanted.items() if name in state}
    shapes = [
        f"'{name}' is {tuple(state[name].shape)}, the model wants {tuple(tensor.shape)}"
        for name, tensor in known.items()
        if state[name].shape != tensor.shape
    ]
    return shapes + [
        f"'{name}' is of {state[name].dtype}, the model wants {tensor.dtype}"
        for name, tensor in known.items()
        if state[name].is_complex() != tensor.is_complex()
    ]


def _tied_names(model: nn.Module) -> dict[str, set[str]]:
    """{name: the other names of the same tensor}."""
    groups: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), set()).add(name)
    return {name: group - {name} for group in groups.values() if len(group) > 1 for name in group}


def _some(names: set[str]) -> str:
    shown = sorted(names)[:3]
    return ", ".join(f"'{name}'" for name in shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
