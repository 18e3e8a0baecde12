"""Sparse phases on kept blocks against the masked form: the same losses, weights and masks, whatever is asked of a run."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from sapp_cli.core.schedule import Phase
from sapp_cli.inputs.data import DataSets
from sapp_cli.pruner import Pruner
from sapp_cli.recipe.schema import Recipe
from sapp_cli.runtime.timing import Timing
from sapp_cli.training import sparse_forms
from sapp_cli.training.device import make_accelerator
from sapp_cli.training.keeper import Keeper
from sapp_cli.training.kept_layer import can_part
from sapp_cli.training.loop import train
from sapp_cli.training.objectives import make_objective
from sapp_cli.training.optimizers import make_optimizer
from sapp_cli.training.replica import Replica
from sapp_cli.training.run_record import StateRecord
from sapp_cli.training.run_state import RunFolder
from sapp_cli.training.sparse_phases import SparsePhases

STEPS = 24
METHODS = ["sequential-attention", "acdc", "powerprop", "magnitude", "gradual-magnitude"]
TWO_ROUNDS = {"dense": 0.1, "rounds": 2, "last_round": 0.3, "final_sparse": 0.3}


class Rows(Dataset):
    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(48, 21, generator=generator)
        self.y = self.x[:, :4].argmax(1)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {"inputs": self.x[index], "targets": self.y[index]}


def stack(rows):
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


DATA = DataSets(Rows(), Rows(), stack, "rows")


def network():
    """Ragged edges (21 and 30 are no multiples of 8), a Conv1D of GPT-2's, a layer without bias."""
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(21, 40),
        nn.Tanh(),
        Conv1D(30, 40),
        nn.Tanh(),
        nn.Linear(30, 32, bias=False),
        nn.Tanh(),
        nn.Linear(32, 4),
    )


def recipe(form, **changes):
    sections = {
        "data": {"batch_size": 8},
        "train": {"steps": STEPS, "device": "cpu", "sparse_phases": form},
        "optimizer": {"lr": 1e-2, "weight_decay": 0.1},
        "prune": {"block_size": 8, "min_blocks": 8, "sparsity": 0.6, "rules": [{"match": "6.*", "dense": True}]},
    }
    for section, values in changes.items():
        sections[section] = {**sections.get(section, {}), **values}
    return Recipe.model_validate(sections)


def run(settings, on_step=lambda pruner: None, keeper=None):
    """(records, folded state, the masks) of a whole run."""
    model = network()
    pruner = Pruner(model, settings.prune, STEPS)
    dtypes = {name: tensor.dtype for name, tensor in network().state_dict().items()}
    records = []

    def note(record):
        records.append(record)
        on_step(pruner)

    train(
        model,
        pruner,
        make_objective(settings.objective, model),
        DATA,
        settings,
        make_accelerator(settings.train),
        teacher=None,
        dtypes=dtypes,
        on_step=note,
        keeper=keeper,
    )
    return records, dict(pruner.fold()), {name: keep.clone() for name, keep in pruner.masks.items()}


def parted_layers(pruner):
    return [name for name, layer in pruner.attached.items() if layer.masked.kept is not None]


def assert_same_run(**changes):
    parted = []
    records, state, masks = run(
        recipe("kept-blocks", **changes), on_step=lambda pruner: parted.append(parted_layers(pruner))
    )
    masked_records, masked_state, masked_masks = run(recipe("masked", **changes))
    for record, other, names in zip(records, masked_records, parted, strict=True):
        assert record.loss == pytest.approx(other.loss, rel=2e-5)
        assert record.metrics == pytest.approx(other.metrics, rel=2e-5)
        assert names == (["0.weight", "2.weight", "4.weight"] if record.moment.phase is Phase.SPARSE else [])
    for name, keep in masks.items():
        assert torch.equal(keep, masked_masks[name])
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, masked_state[name], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_fine_tune_timetable_gives_the_same_losses_and_masks(method):
    assert_same_run(prune={"method": method}, train={"evaluate_every": 5})


@pytest.mark.parametrize("method", ["sequential-attention", "acdc"])
def test_dense_phases_after_it_go_on_with_the_same_weights(method):
    assert_same_run(prune={"method": method, "phases": TWO_ROUNDS})


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"clip_norm": 0.05, "accumulate": 2}},
        {"optimizer": {"name": "sgd", "momentum": 0.9, "nesterov": True, "reset": False}},
        {"optimizer": {"reset": False}},
        {"prune": {"block_size": [8, 5]}},
    ],
    ids=["clipped-and-accumulated", "sgd-without-reset", "adamw-without-reset", "8x5"],
)
def test_whatever_is_asked_of_the_run(changes):
    assert_same_run(**changes)


def test_in_bfloat16_the_losses_are_those_of_the_masked_form_within_its_rounding():
    parted = []
    records, _, _ = run(
        recipe("kept-blocks", train={"precision": "bf16"}), on_step=lambda pruner: parted.append(parted_layers(pruner))
    )
    masked_records, _, _ = run(recipe("masked", train={"precision": "bf16"}))
    assert parted[-1] == ["0.weight", "2.weight", "4.weight"]
    assert [r.loss for r in records] == pytest.approx([r.loss for r in masked_records], rel=3e-2)


class Killed(Exception):
    pass


def is_inside_a_sparse_phase(step):
    schedule = Pruner(network(), recipe("masked", prune={"phases": TWO_ROUNDS}).prune, STEPS).schedule
    return schedule.at(step).phase is Phase.SPARSE


LITERAL = {"score": "attention", "lr": 0.5, "pruned": "literal", "selection": "before-update"}


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "no-reset"])
@pytest.mark.parametrize("step", [1, 6, 7, 20])  # dense; inside and at the end of the first sparse phase; the final one
def test_a_resumed_run_ends_with_the_same_bytes(step, reset, tmp_path):
    settings = recipe("kept-blocks", prune={"phases": TWO_ROUNDS}, train={"save_steps": 1}, optimizer={"reset": reset})
    resume_after(step, settings, tmp_path, parts=is_inside_a_sparse_phase(step - 1) and (reset or step > 15))


@pytest.mark.parametrize("form", ["auto", "measured"])
@pytest.mark.parametrize("step", [2, 6, 10, 20])  # the last step of a dense phase (2, 10), sparse, the final phase
def test_a_resumed_literal_run_ends_with_the_same_bytes(step, form, tmp_path):
    settings = recipe(form, prune={"phases": TWO_ROUNDS, "attention": LITERAL}, train={"save_steps": 1})
    resume_after(step, settings, tmp_path, parts=False)


def test_with_literal_no_layer_parts_with_its_pruned_blocks():
    """All of them are in the optimizer to the end, and logits of pruned blocks move in the final sparse phase as well."""
    parted, logits = [], []

    def look(pruner):
        parted.extend(parted_layers(pruner))
        layer = pruner.attached["0.weight"]
        logits.append(layer.masked.logits.detach()[~layer.masked.keep])

    run(recipe("auto", prune={"attention": LITERAL}), look)
    assert parted == []
    assert len(logits[-1]) == len(logits[-4])
    assert (logits[-1] != logits[-4]).all()


def resume_after(step, settings, tmp_path, parts):
    """Kill a run after some steps, resume it, and compare it with one that was left alone."""
    _, undisturbed, _ = run(settings)
    folder = RunFolder(tmp_path / "out")
    seen = []

    def killed(pruner):
        seen.append(parted_layers(pruner))
        if len(seen) == step + 1:  # states are saved after this is called
            raise Killed

    with folder.made():
        folder.log.touch()
        record = StateRecord(recipe=settings, inputs={}, processes="1", dense={})
        with pytest.raises(Killed):
            run(settings, killed, Keeper(folder, settings.train, record))
        saved = folder.latest()
        assert saved.step == step
        assert saved.record.kept_blocks == (["0.weight", "2.weight", "4.weight"] if parts else [])
        _, resumed, _ = run(settings, keeper=Keeper(folder, settings.train, record, saved))
    for name, tensor in undisturbed.items():
        assert torch.equal(resumed[name], tensor), name


def parted(settings, model=None):
    """(model, pruner, optimizer, phases) in the first step of the final sparse phase, after which nothing was trained."""
    model = model or network()
    pruner = Pruner(model, settings.prune.model_copy(update={"score": "effective-norm"}), STEPS)  # no gradient is there
    optimizer = make_optimizer(settings.optimizer, pruner, STEPS / 2)
    phases = SparsePhases(pruner, optimizer, settings)
    for step in range(STEPS):
        moment = phases.step(step)
        if moment.phase is Phase.SPARSE:
            return model, pruner, optimizer, phases
    raise AssertionError("a timetable without a sparse phase")


def test_the_optimizer_holds_kept_values_only_and_its_order_stays():
    model, pruner, optimizer, phases = parted(recipe("kept-blocks"))
    shapes = [tuple(parameter.shape) for parameter in optimizer.param_groups[0]["params"]]
    assert shapes == [(6, 8, 8), (8, 8, 8), (6, 8, 8), (4, 32)]  # 40 % of 15, 20 and 16 blocks; what a rule left dense
    model(DATA.train.x[:8]).sum().backward()
    optimizer.step()
    assert {tuple(state["exp_avg"].shape) for p, state in optimizer.state.items() if p.dim() == 3} == set(shapes[:3])
    assert all(layer.theta.grad is None for layer in pruner.attached.values())
    phases.leave()
    shapes = [tuple(parameter.shape) for parameter in optimizer.param_groups[0]["params"]]
    assert shapes == [(40, 21), (40, 30), (32, 30), (4, 32)]
    assert all("forward" not in vars(module) for module in model.modules())


def trained_for_a_step(form):
    """The parted model after a step, another one in mind: its output, and what it takes to get it."""
    model, pruner, optimizer, phases = parted(recipe(form))
    model(DATA.train.x[:8]).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    return model, pruner, phases


def test_whoever_looks_at_a_weight_sees_what_was_trained():
    model, pruner, _ = trained_for_a_step("kept-blocks")
    masked, _, _ = trained_for_a_step("masked")
    x = DATA.train.x[:8]
    expected = masked(x)
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(model[0].weight, masked[0].weight)
    torch.testing.assert_close(copy.deepcopy(model)(x), expected)
    dtypes = dict.fromkeys(pruner.fold(), torch.bfloat16)
    with pruner.rounded(dtypes):
        rounded = model(x)
    assert not torch.equal(rounded, model(x))
    torch.testing.assert_close(rounded, expected, rtol=5e-2, atol=5e-2)
    plain = network()
    plain.load_state_dict(pruner.fold())
    torch.testing.assert_close(plain(x), expected)


def test_a_copy_of_a_parted_model_is_a_model_of_its_own():
    model, _, _ = trained_for_a_step("kept-blocks")
    twin = copy.deepcopy(model)
    x = DATA.train.x[:8]
    before = twin(x)
    with torch.no_grad():
        model[0].parametrizations.weight[0].kept.values.zero_()
    assert torch.equal(twin(x), before)
    assert not torch.equal(model(x), before)


def test_gradients_of_a_weight_that_is_read_reach_the_blocks():
    model, pruner, _ = trained_for_a_step("kept-blocks")
    layer = pruner.attached["0.weight"]
    model[0].weight.square().sum().backward()
    weight = model[0].weight.detach()
    assert layer.theta.grad is None
    expected = layer.kept_of(
        2 * weight * layer.masked.block_scale(weight).repeat_interleave(8, 0).repeat_interleave(8, 1)[:, :21]
    )
    torch.testing.assert_close(layer.trained.grad, expected)


def test_under_autocast_kept_blocks_are_multiplied_in_float32():
    model, pruner, _ = trained_for_a_step("kept-blocks")
    masked, _, _ = trained_for_a_step("masked")
    x = DATA.train.x[:8]
    with torch.autocast("cpu", torch.bfloat16):
        first, output = model[0](x), model(x)
        torch.testing.assert_close(output, masked(x), rtol=2e-2, atol=2e-2)
    assert output.dtype == torch.bfloat16
    assert torch.equal(first, model[0](x).bfloat16())
    output.float().sum().backward()
    assert all(layer.trained.grad.abs().sum() > 0 for layer in pruner.attached.values())


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)
        self.second.weight = self.first.weight
        self.attention = nn.MultiheadAttention(32, 2)
        self.convolution = nn.Conv1d(8, 8, 8)
        self.frozen = nn.Linear(32, 32)
        self.own = type("Own", (nn.Linear,), {"forward": lambda self, x: x @ self.weight.t()})(32, 32)
        self.plain = nn.Linear(32, 32)


def test_only_plain_layers_with_a_weight_of_their_own_are_parted():
    pruner = Pruner(Shared(), {"block_size": 8, "sparsity": 0.5, "min_blocks": 1}, STEPS)
    assert len(pruner.attached) == 7
    pruner.attached["frozen.weight"].theta.requires_grad_(False)
    assert [name for name, layer in pruner.attached.items() if can_part(layer)] == ["plain.weight"]


@pytest.mark.filterwarnings(r"ignore::DeprecationWarning:torch\.")  # of torch's own imports
def test_a_compiled_model_keeps_the_masked_form():
    settings = recipe("kept-blocks", prune={"phases": {"dense": 0, "rounds": 1, "last_round": 0, "final_sparse": 1}})
    model = network()
    pruner = Pruner(model, settings.prune, STEPS)
    replica = Replica(model, make_accelerator(settings.train), compile=True)
    SparsePhases(pruner, make_optimizer(settings.optimizer, pruner, 1), settings, replica).step(0)
    assert parted_layers(pruner) == []


ALL_SPARSE = {"dense": 0.0, "rounds": 1, "last_round": 0.0, "final_sparse": 1.0}


def chosen(form, width=512, steps=1000, sparsity=0.9, block=8, precision="fp32", model=None):
    """Whether a layer of `width`² weights is parted in a sparse phase of so many steps."""
    settings = Recipe.model_validate(
        {
            "train": {"steps": steps, "sparse_phases": form, "precision": precision},
            "prune": {"block_size": block, "sparsity": sparsity, "min_blocks": 1, "phases": ALL_SPARSE},
        }
    )
    model = model or nn.Sequential(nn.Linear(width, width))
    pruner = Pruner(model, settings.prune, steps)
    phases = SparsePhases(pruner, make_optimizer(settings.optimizer, pruner, 1), settings)
    if form == "measured":
        model(torch.zeros(3, 4, width))  # of a phase before this one
    phases.step(0)
    found = bool(parted_layers(pruner))
    phases.leave()
    return found


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ({}, True),
        ({"width": 128}, False),  # as fast in both forms
        ({"steps": 500}, False),  # over before it was worth compiling kernels
        ({"sparsity": 0.2}, False),
        ({"block": 4}, True),
        ({"block": 4, "sparsity": 0.6}, False),
        ({"block": [2, 32]}, False),
        ({"precision": "bf16"}, True),
        ({"precision": "bf16", "sparsity": 0.6}, False),  # the masked form is twice as fast there
    ],
    ids=str,
)
def test_the_rule(setting, parts, monkeypatch):
    monkeypatch.setattr(sparse_forms, "_is_known", lambda lower: True)
    assert chosen("auto", **setting) is parts


def test_without_kernels_the_rule_leaves_layers_masked(monkeypatch):
    monkeypatch.setattr(sparse_forms, "kernels_work", lambda: False)
    assert not chosen("auto")


@pytest.mark.parametrize("faster", ["masked", "kept-blocks"])
def test_the_faster_form_is_taken_where_it_is_measured(faster, monkeypatch):
    def time_in_turns(ways, budget):
        assert {way() for way in ways.values()} == {None}  # both run
        return {form: Timing((1.0 if form == faster else 2.0,)) for form in ways}

    monkeypatch.setattr(sparse_forms, "time_in_turns", time_in_turns)
    model = nn.Sequential(nn.Linear(64, 64))
    before, state = model[0].weight.detach().clone(), torch.get_rng_state()
    assert chosen("measured", width=64, model=model) is (faster == "kept-blocks")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model[0].parametrizations.weight.original, before)
