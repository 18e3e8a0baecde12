"""Memory of a step: live tensors counted by hand, and batches that were never tried from smaller ones."""

import pytest
import torch
from torch import nn

from sapp_cli.inputs.hugging_face import offline_transformers
from sapp_cli.planning import with_peak
from sapp_cli.pruner import Pruner
from sapp_cli.recipe.schema import Recipe
from sapp_cli.training.footprint import Footprint, _LiveTensors, measure_footprint, process_bytes, some_rows
from scripts.make_checkpoints import make_bert
from tests.training.test_loop import DATA


def test_what_lives_at_once_counts_and_what_was_there_does_not():
    x = torch.ones(1000)
    with _LiveTensors([x]) as live:
        y = x * 2  # 4 kB more
        z = x.view(10, 100)  # and none
        x.add_(1)
        del y
        y = (x + 1) * z.view(-1)  # two at once
    assert max(live.course) == 8000
    assert y.shape == (1000,)


def recipe(batch, **sections):
    sections = {"data": {"batch_size": batch, "evaluation_batch_size": batch}, **sections}
    return Recipe.model_validate({"train": {"steps": 20}, "prune": {"block_size": 4, "min_blocks": 8}, **sections})


def footprint(batch, hidden=64, **sections):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, hidden), nn.Tanh(), nn.Linear(hidden, 4))
    settings = recipe(batch, **sections)
    return measure_footprint(model, Pruner(model, settings.prune, 20), settings, None, some_rows(model, settings, DATA))


@pytest.mark.parametrize("rows", [8, 40, 400])
def test_large_batches_are_said_from_small_ones(monkeypatch, rows):
    # For 8 rows the gradients decide, for 400 the activations.
    said = footprint(rows)
    monkeypatch.setattr("sapp_cli.training.footprint.FEW_ROWS", rows)  # so many are then tried
    tried = footprint(rows)
    assert said.step == pytest.approx(tried.step, rel=0.02)
    assert said.evaluation == pytest.approx(tried.evaluation, rel=0.02)
    assert 0 < said.evaluation < said.step


def test_gradients_that_wait_for_more_batches_count():
    hidden = 4096  # whose weights outweigh the rows
    weights = 4 * (16 * hidden + 4 * hidden)
    once, accumulated = (footprint(4, hidden, train={"steps": 20, "accumulate": n}).step for n in (1, 2))
    assert once > 2 * weights  # masked weights and gradients
    assert accumulated - once > 0.8 * weights


def test_rows_of_the_data_are_the_longest_of_them(tmp_path):
    class Texts(torch.utils.data.Dataset):
        def __len__(self):
            return 1000

        def __getitem__(self, index):
            return {"input_ids": torch.zeros(1 + index % 100, dtype=torch.long), "targets": torch.tensor(0)}

    def collate(rows):
        longest = max(len(row["input_ids"]) for row in rows)
        return {
            "input_ids": torch.stack(
                [nn.functional.pad(row["input_ids"], (0, longest - len(row["input_ids"]))) for row in rows]
            )
        }

    data = type(DATA)(Texts(), Texts(), collate, "texts")
    rows = some_rows(nn.Linear(1, 1), recipe(8), data)
    assert rows(8)["input_ids"].shape[0] == 8
    assert rows(1)["input_ids"].shape[1] >= 95


@pytest.mark.parametrize("task", ["classification", "embedding-distillation"])
def test_without_data_the_configuration_says_what_enters(tmp_path, task):
    with offline_transformers() as transformers:
        kind = transformers.AutoModelForSequenceClassification if task == "classification" else transformers.AutoModel
        model = kind.from_pretrained(make_bert(tmp_path / "bert"))
    settings = recipe(2, objective={"task": task}, data={"batch_size": 2, "max_length": 16})
    rows = some_rows(model, settings, None)
    assert rows(2)["input_ids"].shape == (2, 16)
    teacher = model if task == "embedding-distillation" else None
    found = measure_footprint(model, Pruner(model, settings.prune, 20), settings, teacher, rows)
    assert found.step > found.evaluation > 0


def test_unknown_inputs_are_said_to_be_unknown():
    assert some_rows(nn.Linear(1, 1), recipe(2), None) is None


def test_the_peak_is_that_of_the_worst_moment():
    parts = {
        "weights": 100, "gradients": 100, "optimizer": 200, "masked_weights": 80, "pruned_weights": 5,
        "teacher": 7,
    }  # fmt: skip
    assert with_peak(parts, None, 0)["total"] == 100 + 7 + 200 + 5 + 180
    known = with_peak(parts, Footprint(step=255, evaluation=20), 0)
    assert (known["activations"], known["total"]) == (75, 100 + 7 + 200 + 5 + 255)
    on_cpu = with_peak(parts, Footprint(step=255, evaluation=20), 1000)
    assert on_cpu["total"] == 1000 + 100 + 7 + 460 + 153  # a third of what comes and goes stays in the heap
    late = with_peak(parts, Footprint(step=180, evaluation=900), 0)
    assert late["total"] == 100 + 7 + 100 + 900  # the model that was written beside the one it came from


def test_the_process_itself_is_seen():
    import resource

    assert 50e6 < process_bytes() <= 1.1 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
