"""Several gloo processes train as one does: the same masks everywhere, the same numbers within rounding."""

import os
import signal

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils.data import Dataset

from sapp_cli.errors import Interrupted
from sapp_cli.inputs.data import DataSets
from sapp_cli.inputs.rows import IGNORED, stack_rows
from sapp_cli.pruner import Pruner
from sapp_cli.recipe.schema import Recipe
from sapp_cli.training.device import describe_processes, make_accelerator, shards
from sapp_cli.training.evaluation import evaluate
from sapp_cli.training.loop import train
from sapp_cli.training.objectives import make_objective
from sapp_cli.training.processes import joined
from sapp_cli.training.sharding import shard
from tests.training.crew import run_processes

STEPS = 20


class Rows(Dataset):
    """Rows whose class is the largest of their first numbers."""

    def __init__(self, count=96):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(count, 16, generator=generator)
        self.y = self.x[:, :4].argmax(1)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {"inputs": self.x[index], "targets": self.y[index]}


class Network(nn.Module):
    """Two layers that are pruned, and one that the loss never sees."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(16, 32)
        self.second = nn.Linear(32, 4)
        self.pooler = nn.Linear(32, 32)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


class Texts(Dataset):
    """Rows of 12 tokens of which 1 to 11 are to be predicted."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        tokens = torch.randint(20, (12,), generator=generator)
        targets = torch.where(torch.arange(12) < 1 + index % 11, (tokens + 1) % 20, IGNORED)
        return {"inputs": tokens, "targets": targets}


class Speaker(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(20, 32)
        self.layer = nn.Linear(32, 64)
        self.head = nn.Linear(64, 20)

    def forward(self, x):
        return self.head(torch.relu(self.layer(self.embedding(x))))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.first = nn.Linear(32, 60)
        self.second = nn.Linear(60, 32)

    def forward(self, x):
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return x + self.second(torch.relu(self.first(x)))


class Tower(nn.Module):
    """Repeated layers, packed attention, and an output layer tied to the embedding; nothing divides by three."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(20, 32)
        self.layers = nn.ModuleList([Block(), Block()])
        self.mix = nn.Conv1d(32, 32, 3, padding=1)
        self.head = nn.Linear(32, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        x = self.embedding(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.mix(x.mT).mT)


KINDS = {
    "network": (Network, lambda: DataSets(Rows(), Rows(3), stack_rows, "rows")),
    "speaker": (Speaker, lambda: DataSets(Texts(), Texts(), stack_rows, "texts")),
    "tower": (Tower, lambda: DataSets(Texts(), Texts(), stack_rows, "texts")),
}


UNITS = {"network": [""], "tower": ["", "layers.0", "layers.1"]}
"""What FSDP puts together at a time."""


def recipe(task="classification", **changes):
    sections = {
        "data": {"batch_size": 32},
        "objective": {"task": task},
        "optimizer": {"lr": 1e-2},
        "train": {"steps": STEPS, "device": "cpu", "evaluate_every": 7, "clip_norm": 0.5},
        "prune": {"block_size": 4, "min_blocks": 8, "sparsity": 0.5},
    }
    for section, values in changes.items():
        sections[section] = {**sections[section], **values}
    return Recipe.model_validate(sections)


def train_all(model, pruner, settings, accelerator, on_step, kind="network", keeper=None):
    """The whole schedule on the rows of this kind, without a teacher."""
    objective = make_objective(settings.objective, model)
    data = KINDS[kind][1]()
    asked = {"teacher": None, "dtypes": {}, "on_step": on_step, "keeper": keeper}
    train(model, pruner, objective, data, settings, accelerator, **asked)


def run(settings, kind="network", on_step=lambda pruner, record: None):
    """(losses, metrics on the way, masks, folded weights) of a run in this process and those it has beside it."""
    accelerator = make_accelerator(settings.train)
    model = KINDS[kind][0]()
    pruner = Pruner(model, settings.prune, STEPS, notice=lambda line: None)  # of the pooler
    if shards(settings.train, accelerator):
        shard(model, accelerator)
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
        assert [name for name, module in model.named_modules() if isinstance(module, FSDPModule)] == UNITS[kind]
    records = []

    def note(record):
        records.append(record)
        on_step(pruner, record)

    with joined():
        train_all(model, pruner, settings, accelerator, note, kind)
    masks = {name: keep.clone() for name, keep in pruner.masks.items()}
    return [r.loss for r in records], [r.metrics for r in records if r.metrics], masks, dict(pruner.fold())


def assert_same(found, expected):
    losses, metrics, masks, weights = found
    assert losses == pytest.approx(expected[0], rel=1e-5)
    assert [m.keys() for m in metrics] == [m.keys() for m in expected[1]]
    for found_metrics, expected_metrics in zip(metrics, expected[1], strict=True):
        assert found_metrics == pytest.approx(expected_metrics, rel=1e-5)
    for name, keep in expected[2].items():
        assert torch.equal(masks[name], keep), name
    for name, weight in expected[3].items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize(("count", "kind"), [(2, "network"), (3, "network"), (2, "speaker")])
def test_processes_with_a_share_of_the_batch_equal_one_with_all_of_it(count, kind):
    # With 3 processes and 3 validation rows each sees one; the speaker's have unequal numbers of tokens in their batches.
    task = "classification" if kind == "network" else "masked-lm"
    ended = run_processes(count, run, recipe(task, data={"batch_size": 48 // count}), kind)
    assert [end.error for end in ended] == [""] * count, ended[0].said
    alone = run(recipe(task, data={"batch_size": 48}), kind)
    for end in ended:
        assert_same(end.value, alone)
        assert end.value[0] == ended[0].value[0]
        assert all(torch.equal(mask, ended[0].value[2][name]) for name, mask in end.value[2].items())


TWO_ROUNDS = {"dense": 0.1, "rounds": 2, "last_round": 0.3, "final_sparse": 0.2}
METHODS = {
    "sequential-attention": {"attention": {"revive": True}, "phases": TWO_ROUNDS, "embeddings": True},
    "literal": {"method": "sequential-attention", "attention": {"pruned": "literal"}, "phases": TWO_ROUNDS},
    "acdc": {},
    "powerprop": {},
}


@pytest.mark.parametrize(
    ("kind", "count", "method"),
    [
        ("tower", 3, "sequential-attention"),
        ("network", 2, "literal"),
        ("network", 2, "acdc"),
        ("tower", 2, "powerprop"),
    ],
)
def test_weights_spread_over_processes_equal_one_process(kind, count, method):
    task = "classification" if kind == "network" else "masked-lm"
    # Adam would make steps out of the rounding errors of gradients that are zero, such as those of an attention's key biases.
    changes = {"prune": {"method": method, **METHODS[method]}, "optimizer": {"name": "sgd", "lr": 0.1}}
    settings = recipe(task, **changes, train={"shard": True}, data={"batch_size": 48 // count})
    ended = run_processes(count, run, settings, kind)
    assert [end.error for end in ended] == [""] * count, ended[0].said
    alone = run(recipe(task, **changes, data={"batch_size": 48}), kind)
    for end in ended:
        assert_same(end.value, alone)
    assert any(not mask.all() for mask in alone[2].values())


def run_as_accelerate_launches_with_fsdp():
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    found = run(recipe())
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"
    return found, describe_processes(recipe().train, make_accelerator(recipe().train))


def test_accelerate_launch_may_ask_for_fsdp():
    sharded = run_processes(2, run_as_accelerate_launches_with_fsdp)
    assert [end.error for end in sharded] == ["", ""], sharded[0].said
    whole = run_processes(2, run, recipe())
    for end, other in zip(sharded, whole, strict=True):
        assert end.value[1] == "2 (FSDP2)"
        assert_same(end.value[0], other.value)


def test_accumulated_batches_of_two_processes():
    ended = run_processes(2, run, recipe(data={"batch_size": 8}, train={"accumulate": 3}))
    assert [end.error for end in ended] == ["", ""]
    assert_same(ended[1].value, ended[0].value)
    assert ended[0].value[0][-1] < 0.7 * ended[0].value[0][0]


def evaluated(rows):
    settings = recipe(data={"batch_size": 2})
    accelerator = make_accelerator(settings.train)
    model = Network()
    data = DataSets(Rows(), Rows(rows), stack_rows, "rows")
    objective = make_objective(settings.objective, model)
    return evaluate(model, objective, data, 2, accelerator), evaluate(
        model, objective, data, 2, accelerator, alone=True
    )


@pytest.mark.parametrize("rows", [1, 7])
def test_metrics_count_every_row_once_also_where_a_process_has_none(rows):
    ended = run_processes(2, evaluated, rows)
    shared, alone = evaluated(rows)
    assert shared == alone
    for end in ended:
        assert end.error == ""
        assert end.value[0] == pytest.approx(alone, rel=1e-6)
        assert end.value[1] == alone


def diverging(prune=None):
    """A run in which one process comes to see its weights differently before the masks are decided."""

    def on_step(pruner, record):
        if record.moment.step == 0 and os.environ["RANK"] == "1":
            with torch.no_grad():
                pruner.attached["first.weight"].theta.mul_(torch.linspace(1, 2, 16))

    return run(recipe(prune=prune or {}), on_step=on_step)


def test_masks_that_differ_are_noticed_in_the_step_they_are_decided_in():
    ended = run_processes(2, diverging, {"score": "effective-norm"})
    assert [end.code for end in ended] == [6, 6]
    said = sorted(end.error for end in ended)
    assert said[0] == "EndedElsewhere: "
    assert said[1] == (
        "TrainingError: the processes disagree about the mask of 'first.weight' in step 2 (sparsification 1 phase): their "
        "weights have come apart. Use cards of one kind, and --deterministic; with a custom objective, let nothing but "
        "gradients depend on the rank"
    )


@pytest.mark.parametrize("shard", [False, True])
@pytest.mark.parametrize("score", ["fisher", "norm"])
def test_processes_agree_on_a_layer_that_the_loss_never_sees(shard, score):
    ended = run_processes(2, run, recipe(train={"shard": shard}, prune={"score": score}))
    assert [end.error for end in ended] == ["", ""], ended[0].said
    for end in ended:
        _, _, masks, weights = end.value
        assert set(masks) == {"first.weight", "second.weight"}
        assert torch.equal(weights["pooler.weight"], Network().pooler.weight)


def believing():
    """A run in which one process takes the layer that the loss never sees for one that has had a gradient."""

    def on_step(pruner, record):
        if os.environ["RANK"] == "1":
            pruner.ranking.reached.append("pooler.weight")

    return run(recipe(prune={"score": "norm"}), on_step=on_step)


def test_a_layer_that_only_some_processes_rank_is_noticed():
    ended = run_processes(2, believing)
    assert [end.code for end in ended] == [6, 6]
    assert any("the processes disagree about the mask of 'pooler.weight' in step 2" in end.error for end in ended)


def stopped():
    """A run in which the last process alone gets a SIGTERM; the step after which this one stopped."""
    seen = []

    def on_step(pruner, record):
        seen.append(record.moment.step + 1)
        if record.moment.step == 4 and os.environ["RANK"] == "2":
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        with pytest.raises(Interrupted):
            run(recipe(data={"batch_size": 8}), on_step=on_step)
    except BaseException as error:  # the silence of those who were not first
        return seen[-1], getattr(error, "exit_code", None)
    return seen[-1], 143


def test_a_signal_to_one_process_stops_all_after_the_same_step():
    assert [end.value for end in run_processes(3, stopped)] == [(5, 143)] * 3


def failing(kill):
    """A run in which one process fails in the middle of a step, where the others wait for its gradients."""

    def on_step(pruner, record):
        if record.moment.step == 4 and os.environ["RANK"] == "0":
            if kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise MemoryError("no more")

    return run(recipe(data={"batch_size": 8}), on_step=on_step)


def test_an_error_of_one_ends_all_with_its_exit_code():
    first, second = run_processes(2, failing, False)
    assert (first.error, first.code) == ("MemoryError: no more", 1)
    assert (second.error, second.code) == ("EndedElsewhere: ", 1)


def test_a_process_that_is_killed_does_not_leave_the_others_waiting():
    first, second = run_processes(2, failing, True)
    assert (first.error, first.code) == ("vanished", -9)
    assert second.error == (
        "ResourceError: another process of the run is gone without a word: killed, or out of memory; look at what it printed"
    )
    assert second.code == 5
