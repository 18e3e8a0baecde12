import numpy as np
import pytest
import torch
from scipy import stats

from sapp_cli.errors import DataError
from sapp_cli.inputs.masking import MaskedText, mask_tokens
from sapp_cli.inputs.tables import read_table
from sapp_cli.inputs.tokens import TextRows, load_tokenizer

MASK, VOCABULARY = 4, 1000


def masked(ids, special, probability=0.15, seed=0):
    random = np.random.default_rng(seed)
    return mask_tokens(ids, special, probability, random, mask_id=MASK, vocabulary=VOCABULARY)


def test_shares_of_a_long_row():
    """15 % predicted, of these 80 % masked, 10 % random, 10 % kept: each within four standard deviations."""
    count = 100_000
    ids = torch.full((count,), 500)
    inputs, targets = masked(ids, torch.zeros(count, dtype=torch.bool))
    chosen = targets != -100
    n = int(chosen.sum())

    def near(observed, total, share):
        return abs(observed - share * total) < 4 * stats.binom.std(total, share)

    assert near(n, count, 0.15)
    assert near(int((inputs[chosen] == MASK).sum()), n, 0.8 + 0.1 / VOCABULARY)
    assert near(int((inputs[chosen] == 500).sum()), n, 0.1 + 0.1 / VOCABULARY)
    random = inputs[chosen & (inputs != MASK) & (inputs != 500)]
    assert stats.kstest(random.numpy(), stats.randint(0, VOCABULARY).cdf).pvalue > 1e-4
    assert targets[chosen].eq(500).all()
    assert inputs[~chosen].eq(500).all()


def test_special_tokens_are_never_predicted():
    special = torch.zeros(1000, dtype=torch.bool)
    special[::3] = True
    inputs, targets = masked(torch.arange(1000) + 5, special, probability=0.9)
    assert targets[special].eq(-100).all()
    assert inputs[special].equal((torch.arange(1000) + 5)[special])
    assert (targets[~special] != -100).float().mean() > 0.8


@pytest.fixture
def rows(tmp_path, bert):
    (tmp_path / "x.txt").write_text("a b c d e f g h\n" * 6)
    table = read_table([tmp_path / "x.txt"], "text")
    tokenizer = load_tokenizer(bert)
    return TextRows(table, ["text"], tokenizer, max_length=16, values=None, numbers=range(6), mark_special=True)


def contents(dataset, order):
    return {index: {key: value.tolist() for key, value in dataset[index].items()} for index in order}


def test_masks_depend_on_seed_part_epoch_and_row_alone(rows):
    training = MaskedText(rows, 0.5, seed=3, part=0)
    first = contents(training, range(6))
    torch.rand(7)
    assert contents(training, reversed(range(6))) == first
    assert contents(MaskedText(rows, 0.5, seed=3, part=0), range(6)) == first
    assert len({tuple(row["targets"]) for row in first.values()}) > 1  # equal texts, masks of their own
    training.set_epoch(1)
    assert contents(training, range(6)) != first
    assert contents(MaskedText(rows, 0.5, seed=4, part=0), range(6)) != first
    assert contents(MaskedText(rows, 0.5, seed=3, part=1), range(6)) != first


def test_a_row_of_masked_text(rows):
    row = MaskedText(rows, 0.5, seed=0, part=0)[0]
    assert set(row) == {"input_ids", "token_type_ids", "attention_mask", "targets"}
    plain = torch.tensor([2, *range(6, 14), 3])
    chosen = row["targets"] != -100
    assert row["targets"][chosen].equal(plain[chosen])
    assert row["input_ids"][~chosen].equal(plain[~chosen])
    assert not chosen[0]
    assert not chosen[-1]


def test_a_tokenizer_without_a_mask(rows, gpt):
    rows.tokenizer = load_tokenizer(gpt)
    with pytest.raises(DataError) as error:
        MaskedText(rows, 0.15, seed=0, part=0)
    assert str(error.value) == "the tokenizer has no mask token, which objective.task masked-lm needs"
