"""Layers take what is fastest, say why, and do not hold on to what lost."""

import re
import time

import pytest
import torch

from sapp_cli.runtime import products
from sapp_cli.runtime.choice import Choice, bucket_name, bucket_of, choose, fastest, most_rows
from sapp_cli.runtime.linear import BlockSparseLinear
from sapp_cli.runtime.timing import Timing, time_in_turns
from tests.runtime.weights import has_onednn, sparse_weight


def sleeper(seconds):
    def way(x):
        time.sleep(seconds)
        return x

    return way


def test_buckets():
    assert [bucket_of(rows) for rows in (1, 2, 4, 5, 16, 17, 64, 65, 256, 257, 4096, 4097)] == [
        0,
        1,
        1,
        2,
        2,
        3,
        3,
        4,
        4,
        5,
        6,
        7,
    ]
    assert [bucket_name(bucket) for bucket in range(8)] == [
        "1 row",
        "2–4 rows",
        "5–16 rows",
        "17–64 rows",
        "65–256 rows",
        "257–1024 rows",
        "1025–4096 rows",
        "more than 4096 rows",
    ]
    assert [bucket_of(most_rows(bucket)) for bucket in range(8)] == list(range(8))


def test_the_fastest_is_chosen_and_the_reason_given():
    choice = choose({"kernel": sleeper(5e-3), "dense": sleeper(1e-3), "torch": sleeper(25e-3)}, torch.zeros(5, 1))
    assert (choice.way, choice.bucket) == ("dense", 2)
    assert choice.seconds["dense"] < choice.seconds["kernel"] < choice.seconds["torch"]
    assert re.fullmatch(r"dense for 5–16 rows: dense \d+ µs, kernel \d+ µs, torch \d+ µs", choice.reason)


def test_a_block_sparse_way_wins_a_tie():
    assert fastest({"dense": 1.00, "kernel": 1.02, "onednn": 1.01}) == "kernel"
    assert fastest({"dense": 1.00, "kernel": 1.04, "torch": 1.035}) == "dense"
    assert fastest({"dense": 1.00, "kernel": 1.02, "torch": 1.01}) == "torch"


def test_what_was_asked_for_is_not_measured():
    assert choose({"torch": sleeper(60)}, torch.zeros(1, 1)) == Choice("torch", 0, torch.get_num_threads(), {})


def test_turns_alternate_and_every_way_has_as_many():
    calls = []
    timings = time_in_turns(
        {name: lambda name=name: (calls.append(name), time.sleep(2e-3)) for name in "ab"}, budget=0.0, least_turns=3
    )
    assert "".join(calls) == "aabb" + "ab" * 3  # warm-up and first time, then turns
    assert {len(timing.seconds) for timing in timings.values()} == {3}


def test_another_clock():
    ticks = iter(range(100))
    timing = time_in_turns({"a": lambda: None}, budget=0.0, least_turns=3, sample=0.0, clock=lambda: next(ticks))["a"]
    assert timing.seconds == (1.0, 1.0, 1.0)


def test_what_a_turn_has_started_is_waited_for_once():
    """A device that is told what to do, and does it later: calls return at once, waiting takes the time of all of them."""
    told = []
    waits = []

    def wait():
        waits.append(len(told))
        time.sleep(1e-3 * len(told))
        told.clear()

    ways = {"device": lambda: told.append(1)}
    timing = time_in_turns(ways, budget=0.0, least_turns=3, sample=5e-3, finish=wait)["device"]
    assert waits[:3] == [1, 1, 0]  # the warm-up, the first time, and nothing before the first turn
    assert set(waits[3::2]) != {0}
    assert set(waits[4::2]) == {0}
    assert 1e-3 <= timing.median < 2e-3


def test_a_choice_says_what_failed_and_why_it_was_not_measured():
    choice = Choice("dense", 1, 1, {"dense": 2e-5, "triton-a": 3e-5}, {"triton-b": "OutOfResources: shared memory"})
    times = "dense 20 µs, triton-a 30 µs"
    assert choice.reason == f"dense for 2–4 rows: {times}; triton-b failed: OutOfResources: shared memory"
    assert Choice("torch", 0, 1, {}).reason == "torch for 1 row: asked for"
    assert Choice("torch", 0, 1, {}, why="not measured").reason == "torch for 1 row: not measured"


def test_median_and_spread():
    timing = Timing((1.0, 2.0, 3.0, 4.0, 100.0))
    assert timing.median == 3.0
    assert timing.spread == pytest.approx(52.0 - 1.5)
    assert Timing((1.0,)).spread == 0.0


def test_a_choice_is_made_once_for_layers_that_are_alike(monkeypatch):
    weight = sparse_weight((128, 128), (16, 16), 0.1)
    asked = []

    def counted(ways, x):
        asked.append(len(x))
        return choose(ways, x)

    monkeypatch.setattr(products, "choose", counted)
    monkeypatch.setattr(products, "_MEASURED", {})
    first, second = (BlockSparseLinear.from_weight(weight, None, (16, 16)) for _ in "ab")
    for rows in (1, 3, 4, 2, 1):
        assert torch.equal(first(torch.ones(rows, 128)), second(torch.ones(rows, 128)))
    assert asked == [1, 3]
    assert [choice.reason for choice in first.choices] == [choice.reason for choice in second.choices]
    assert {"kernel", "torch", "dense"} <= set(first.choices[0].seconds)


def test_a_weight_with_next_to_nothing_in_it_is_not_computed_dense():
    weight = torch.zeros(1024, 1024)
    weight[0, 0] = 1.0
    layer = BlockSparseLinear.from_weight(weight, None, (8, 8))
    layer(torch.randn(64, 1024))
    assert layer.choices[0].way in ("kernel", "torch")


def test_no_dense_weight_is_kept_where_none_is_used():
    weight = sparse_weight((512, 512), (16, 16), 0.05)
    layer = BlockSparseLinear.from_weight(weight, None, (16, 16))
    layer(torch.randn(64, 512))
    assert layer.choices[0].way == "kernel"
    assert layer.weight_bytes < 0.1 * weight.nbytes
    assert set(layer.products(torch.float32)._prepared) == {("kernel", 0)}


def test_without_kernels_a_layer_computes_in_plain_torch_or_dense(monkeypatch):
    monkeypatch.setattr(products, "kernels_work", lambda: False)
    monkeypatch.setattr(products, "_MEASURED", {})
    weight = sparse_weight((64, 64), (16, 16), 0.2)
    layer = BlockSparseLinear.from_weight(weight, None, (16, 16))
    x = torch.randn(5, 64)
    torch.testing.assert_close(layer(x), x @ weight.t())
    assert set(layer.choices[0].seconds) == {"torch", "dense"} | ({"onednn"} if has_onednn(torch.float32) else set())


def test_a_way_that_is_not_possible_is_an_error_when_it_is_asked_for():
    layer = BlockSparseLinear.from_weight(torch.ones(16, 16, dtype=torch.float64), None, (8, 8), way="kernel")
    message = "the way 'kernel' is not possible for torch.float64 on cpu here; leave it out"
    with pytest.raises(ValueError, match=message):
        layer(torch.ones(2, 16, dtype=torch.float64))
