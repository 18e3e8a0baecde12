"""The step loop against plain loops written out here, and its learning rates by hand."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from sapp_cli.errors import TrainingError
from sapp_cli.inputs.data import DataSets
from sapp_cli.pruner import Pruner
from sapp_cli.recipe.schema import LrScheduleSection, ObjectiveSection, OptimizerSection, Recipe
from sapp_cli.training.batches import BatchPlan
from sapp_cli.training.device import make_accelerator, reproducible
from sapp_cli.training.learning_rate import learning_rate_share, total_share, warmup_steps
from sapp_cli.training.loop import count_steps, train
from sapp_cli.training.objectives import make_objective
from sapp_cli.training.optimizers import make_optimizer

STEPS = 20


class Rows(Dataset):
    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(48, 16, generator=generator)
        self.y = self.x[:, :4].argmax(1)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {"inputs": self.x[index], "targets": self.y[index]}


def stack(rows):
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


DATA = DataSets(Rows(), Rows(), stack, "rows")


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))


def recipe(**changes):
    sections = {
        "data": {"batch_size": 8},
        "train": {"steps": STEPS, "device": "cpu"},
        "optimizer": {"lr": 1e-2},
        "prune": {"block_size": 4, "min_blocks": 8, "sparsity": 0.5},
    }
    for section, values in changes.items():
        sections[section] = {**sections.get(section, {}), **values}
    return Recipe.model_validate(sections)


def run(settings):
    """(records, folded state) of our loop."""
    model = network()
    pruner = Pruner(model, settings.prune, STEPS)
    records = []
    train(
        model,
        pruner,
        make_objective(settings.objective, model),
        DATA,
        settings,
        make_accelerator(settings.train),
        teacher=None,
        dtypes={name: tensor.dtype for name, tensor in network().state_dict().items()},
        on_step=records.append,
    )
    return records, dict(pruner.fold())


def test_the_loop_is_the_plain_loop():
    settings = recipe(lr_schedule={"name": "linear", "warmup": 0.1})
    records, state = run(settings)
    model = network()
    pruner = Pruner(model, settings.prune, STEPS)
    shares = [learning_rate_share(settings.lr_schedule, step, STEPS) for step in range(STEPS)]
    logits = pruner.logits
    ids = {id(logit) for logit in logits}
    weights = [p for p in model.parameters() if p.dim() == 2 and id(p) not in ids]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": weights, "lr": 1e-2, "weight_decay": 0.01},
            {"params": vectors, "lr": 1e-2, "weight_decay": 0.0},
            {"params": logits, "lr": 0.03, "weight_decay": 0.0, "betas": (0.9, 0.99)},
        ]
    )
    peaks = [group["lr"] for group in optimizer.param_groups]
    batches = [rows for epoch in range(9) for rows in BatchPlan(48, 8, 0).epoch(epoch)]
    for step in range(STEPS):
        pruner.step(step, optimizer)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * shares[step]
        batch = stack([DATA.train[row] for row in batches[step]])
        loss = nn.functional.cross_entropy(model(batch["inputs"]), batch["targets"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert records[step].loss == pytest.approx(loss.item(), abs=1e-6)
    for name, tensor in pruner.fold().items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=1e-5)


def test_deterministic_algorithms_without_filling_memory_that_is_written_anyway():
    settings, flags = recipe().train, torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), flags.fill_uninitialized_memory
    with reproducible(settings, make_accelerator(settings)):
        assert (torch.are_deterministic_algorithms_enabled(), flags.fill_uninitialized_memory) == (True, False)
    assert (torch.are_deterministic_algorithms_enabled(), flags.fill_uninitialized_memory) == before


def test_accumulated_batches_equal_one_large_batch():
    records, state = run(recipe(data={"batch_size": 4}, train={"accumulate": 2}))
    plan, halves = BatchPlan(48, 8, 0), BatchPlan(48, 4, 0)
    same_rows = [a + b for a, b in zip(halves.epoch(0)[::2], halves.epoch(0)[1::2], strict=True)]
    assert same_rows == plan.epoch(0)
    whole_records, whole = run(recipe())
    for record, other in zip(records, whole_records, strict=True):
        assert record.loss == pytest.approx(other.loss, rel=1e-5)
    for name, tensor in whole.items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-3, atol=1e-5)


def test_the_norm_of_the_gradient_is_clipped_without_the_logits():
    clipped, _ = run(recipe(optimizer={"name": "sgd", "lr": 1.0, "momentum": 0.0}, train={"clip_norm": 1e-6}))
    losses = [record.loss for record in clipped]
    free, _ = run(recipe(optimizer={"name": "sgd", "lr": 1.0, "momentum": 0.0}))
    assert abs(losses[1] - math.log(4)) < 0.5
    assert free[-1].loss < min(losses)


def test_evaluations_on_the_way():
    records, _ = run(recipe(train={"evaluate_every": 6, "evaluation_rows": 24}))
    assert [record.moment.step + 1 for record in records if record.metrics] == [6, 12, 18]
    assert set(records[5].metrics) == {"accuracy", "loss"}


def test_evaluations_do_not_change_the_run():
    _, with_them = run(recipe(train={"evaluate_every": 3}))
    _, without = run(recipe())
    assert all(torch.equal(with_them[name], without[name]) for name in without)


@pytest.mark.parametrize(
    ("settings", "shares"),
    [
        ({"name": "constant", "warmup": 0.4}, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1]),
        ({"name": "linear", "warmup": 0.0}, [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
        ({"name": "linear", "warmup": 0.5, "final": 0.5}, [0.2, 0.4, 0.6, 0.8, 1, 1, 0.9, 0.8, 0.7, 0.6]),
        ({"name": "exponential", "warmup": 0.0, "final": 0.01}, [10 ** (-0.2 * step) for step in range(10)]),
        ({"name": "cosine", "warmup": 0.0}, [(1 + math.cos(math.pi * step / 10)) / 2 for step in range(10)]),
    ],
)
def test_learning_rates_by_hand(settings, shares):
    section = LrScheduleSection.model_validate(settings)
    assert [learning_rate_share(section, step, 10) for step in range(10)] == pytest.approx(shares)
    assert total_share(section, 10) == pytest.approx(sum(shares))


def groups(optimizer, total_share=300.0, **attention):
    model = network()
    pruner = Pruner(model, recipe(prune={"attention": attention}).prune, STEPS)
    made = make_optimizer(OptimizerSection.model_validate(optimizer), pruner, total_share)
    return {group["name"]: group for group in made.param_groups}


def test_the_logits_have_settings_of_their_own():
    adam = groups({"name": "adamw", "lr": 1e-3, "weight_decay": 0.1})
    assert adam["logits"]["lr"] == 0.01  # rates over the run add up to 3
    assert (adam["logits"]["betas"], adam["logits"]["weight_decay"]) == ((0.9, 0.99), 0.0)
    assert (adam["weights"]["weight_decay"], adam["vectors"]["weight_decay"]) == (0.1, 0.0)
    assert groups({"name": "sgd", "lr": 0.1})["logits"]["lr"] == pytest.approx(0.3)
    assert groups({"name": "sgd", "lr": 0.8})["logits"]["lr"] == 1.0


@pytest.mark.parametrize(
    ("total_share", "rate"),
    [
        (10.0, 0.03),
        (100.0, 0.03),
        (120.0, 0.025),
        (300.0, 0.01),
        (3000.0, 0.001),
    ],  # a cosine of 20, 200, 240, 600, 6000 steps
)
def test_a_logit_moves_by_at_most_three_percent_a_step(total_share, rate):
    assert groups({"name": "adamw", "lr": 1e-3}, total_share)["logits"]["lr"] == pytest.approx(rate)
    # What the user writes holds as written.
    assert groups({"name": "adamw", "lr": 1e-3}, total_share, lr=0.5)["logits"]["lr"] == 0.5


@pytest.mark.parametrize(
    ("steps", "settings", "expected"),
    [
        (20, {}, 5),  # a quarter of the run, where 5 % are one step
        (40, {}, 10),
        (200, {}, 10),  # 5 %: as it was
        (600, {}, 30),
        (40, {"warmup_steps": 0}, 2),
        (40, {"warmup_steps": 4}, 4),
        (40, {"warmup": 0.5}, 20),
        (40, {"warmup": 0}, 0),  # none at all
        (3, {}, 0),
    ],
)
def test_steps_of_the_warm_up(steps, settings, expected):
    section = LrScheduleSection.model_validate(settings)
    assert warmup_steps(section, steps) == expected
    shares = [learning_rate_share(section, step, steps) for step in range(steps)]
    assert shares[:expected] == pytest.approx([(step + 1) / expected for step in range(expected)])


def test_the_papers_logits_sit_in_the_main_optimizer():
    sgd = groups({"name": "sgd", "lr": 0.8, "weight_decay": 1e-4}, lr="same", decay="same", betas="same")["logits"]
    assert (sgd["lr"], sgd["weight_decay"], sgd["momentum"]) == (0.8, 1e-4, 0.9)
    adam = groups({"name": "adam", "lr": 0.02, "betas": (0.8, 0.9)}, lr="same", decay=0.5, betas="same")["logits"]
    assert (adam["lr"], adam["weight_decay"], adam["betas"]) == (0.02, 0.5, (0.8, 0.9))


def test_steps_from_epochs():
    assert count_steps(recipe(), 48, 1) == STEPS
    epochs = recipe(train={"steps": None, "epochs": 2.5, "accumulate": 2})
    assert count_steps(epochs, 48, 1) == 8  # 2.5 epochs of 6 batches, two a step: 7.5
    assert count_steps(epochs, 48, 2) == 4


def test_masks_hold_their_blocks_through_the_loop():
    records, state = run(recipe(prune={"allocation": "uniform"}))
    zero_blocks = (state["0.weight"].view(8, 4, 4, 4).abs().amax((1, 3)) == 0).sum().item()
    assert zero_blocks == 16
    assert records[-1].sparsity == 0.5
    assert records[0].sparsity == 0.0


def test_a_deep_copy_of_the_model_is_a_teacher_that_stands_still():
    settings = recipe(objective={"distill": {"weight": 1.0}})
    model = network()
    teacher = copy.deepcopy(model)
    before = copy.deepcopy(teacher.state_dict())
    objective = make_objective(ObjectiveSection.model_validate(settings.objective), model)
    losses = []
    train(
        model,
        Pruner(model, settings.prune, STEPS),
        objective,
        DATA,
        settings,
        make_accelerator(settings.train),
        teacher=teacher,
        dtypes={},
        on_step=lambda record: losses.append(record.loss),
    )
    assert losses[0] == pytest.approx(0.0, abs=1e-6)
    assert max(losses) > 1e-4
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


class Detour(nn.Module):
    """Two layers in a row beside a third: the loss goes on falling when the first two are cut off from each other."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.second = nn.Linear(16, 4)
        self.beside = nn.Linear(16, 4)

    def forward(self, x):
        return self.second(self.first(x)) + self.beside(x)


def cut_off(**settings):
    """Prune `first` and `second` so that no block of the one meets one of the other; the losses."""
    torch.manual_seed(0)
    model = Detour()
    with torch.no_grad():  # the block that stays in `first` gives outputs 0–3, the one in `second` wants 4–7
        model.first.weight[:4, :4] += 5
        model.second.weight[:, 4:8] += 5
    chosen = recipe(
        prune={
            "method": "magnitude",
            "min_blocks": 1,
            "rules": [
                {"match": "beside", "dense": True},
                {"match": "first", "sparsity": 0.93},
                {"match": "second", "sparsity": 0.7},
            ],
        },
        **settings,
    )
    losses = []
    train(
        model,
        Pruner(model, chosen.prune, STEPS),
        make_objective(chosen.objective, model),
        DATA,
        chosen,
        make_accelerator(chosen.train),
        teacher=None,
        dtypes={},
        on_step=lambda record: losses.append(record.loss),
    )
    return losses


def test_a_layer_that_pruning_cuts_off_is_noticed():
    with pytest.raises(TrainingError) as error:
        cut_off()
    assert str(error.value) == (
        "'first.weight' gets no gradient any more in step 4: pruning left no path through it. Lower its sparsity with a rule "
        "in prune.rules, take smaller blocks, or set train.stop_on_cut_off: false to go on without it"
    )
    assert error.value.exit_code == 6


def test_a_run_can_go_on_without_it():
    losses = cut_off(train={"steps": STEPS, "stop_on_cut_off": False})
    assert len(losses) == STEPS
    assert losses[-1] < losses[0]


def test_the_optimizer_may_keep_its_state_at_phase_boundaries():
    # With momentum alone, a reset at the first boundary (step 2 of 20) changes every later step.
    sgd = {"name": "sgd", "lr": 0.5, "momentum": 0.9}
    (reset, _), (kept, _) = run(recipe(optimizer=sgd)), run(recipe(optimizer={**sgd, "reset": False}))
    boundary = next(record.moment.step for record in reset if record.moment.begins and record.moment.step)
    assert [record.loss for record in reset[: boundary + 1]] == [record.loss for record in kept[: boundary + 1]]
    assert reset[boundary + 1].loss != kept[boundary + 1].loss
