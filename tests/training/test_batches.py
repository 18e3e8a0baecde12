"""Which rows a step sees: every row once an epoch, the same again from any step on, shared out among processes."""

import pytest
import torch
from torch.utils.data import Dataset

from sapp_cli.inputs.data import DataSets
from sapp_cli.training.batches import BatchPlan, evaluation_batches, training_batches


class Numbers(Dataset):
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return {"inputs": torch.tensor(index)}


def stack(rows):
    return {"inputs": torch.stack([row["inputs"] for row in rows])}


def data(train=10, validation=10):
    return DataSets(Numbers(train), Numbers(validation), stack, "numbers")


def take(batches, count):
    return [next(batches)["inputs"].tolist() for _ in range(count)]


def test_every_epoch_is_a_new_order_of_all_rows_without_the_last_short_batch():
    plan = BatchPlan(rows=10, size=3, seed=0)
    assert plan.batches_per_epoch == 3
    epochs = [plan.epoch(epoch) for epoch in range(2)]
    for batches in epochs:
        rows = [row for batch in batches for row in batch]
        assert len(rows) == len(set(rows)) == 9
    assert epochs[0] != epochs[1]


def test_seeds_differ_and_repeat():
    orders = {seed: BatchPlan(20, 20, seed).epoch(0) for seed in (0, 1, 2**32 - 1)}
    assert orders[0] != orders[1] != orders[2**32 - 1]
    assert BatchPlan(20, 20, 1).epoch(0) == orders[1]
    assert BatchPlan(20, 20, 0).epoch(1) != BatchPlan(20, 20, 1).epoch(0)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_stream_goes_on_from_any_batch(workers):
    plan = BatchPlan(rows=10, size=4, seed=5)
    whole = take(training_batches(data(), plan, 0), 7)
    assert take(training_batches(data(), plan, workers, start=3), 4) == whole[3:]


def test_reading_data_draws_nothing_from_the_global_generator():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    take(training_batches(data(), BatchPlan(10, 2, 0), 0), 12)
    assert torch.equal(torch.rand(3), expected)


def test_processes_share_the_batches_of_one():
    alone = BatchPlan(rows=12, size=6, seed=3).epoch(0)
    ranks = [BatchPlan(rows=12, size=3, seed=3, rank=rank, world=2).epoch(0) for rank in range(2)]
    for step, batch in enumerate(alone):
        assert sorted(batch) == sorted(ranks[0][step] + ranks[1][step])
        assert not set(ranks[0][step]) & set(ranks[1][step])


def test_fewer_rows_than_a_batch_make_one_batch():
    assert [len(batch) for batch in BatchPlan(rows=3, size=8, seed=0).epoch(0)] == [3]


def test_evaluation_sees_every_row_once_or_an_even_share():
    sets = data(validation=10)
    assert take(evaluation_batches(sets, 4), 3) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert take(evaluation_batches(sets, 4, rows=5), 2) == [[0, 2, 4, 6], [8]]
    assert take(evaluation_batches(sets, 4, rows=99), 3) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    shares = [
        [row for batch in evaluation_batches(sets, 4, None, rank, 3) for row in batch["inputs"].tolist()]
        for rank in range(3)
    ]
    assert sorted(row for share in shares for row in share) == list(range(10))
