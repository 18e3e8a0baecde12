import shutil

import pytest
import torch
from torch import tensor

from sapp_cli.errors import DataError, UsageError
from sapp_cli.inputs.positions import require_positions
from sapp_cli.inputs.tables import read_table
from sapp_cli.inputs.tokens import Padding, TextRows, load_tokenizer, pack, padding


@pytest.fixture
def table(tmp_path):
    (tmp_path / "x.jsonl").write_text(
        "".join(f'{{"text": "{text}", "other": "q r"}}\n' for text in ("a b c", "", "d", "e f"))
    )
    return read_table([tmp_path / "x.jsonl"], "json")


def test_rows_of_tokens(table, bert):
    rows = TextRows(table, ["text"], load_tokenizer(bert), max_length=4, values=tensor([5, 6, 7, 8]), numbers=[3, 0])
    assert len(rows) == 2
    assert {key: value.tolist() for key, value in rows[0].items()} == {
        "input_ids": [2, 10, 11, 3],
        "token_type_ids": [0, 0, 0, 0],
        "attention_mask": [1, 1, 1, 1],
        "targets": 8,
    }
    assert rows[1]["input_ids"].tolist() == [2, 6, 7, 3]  # "a b c", cut
    assert rows.targets.values.tolist() == [8, 5]
    with pytest.raises(IndexError):
        rows[2]


def test_pairs_of_texts(table, bert):
    rows = TextRows(table, ["text", "other"], load_tokenizer(bert), max_length=9, values=None, numbers=range(4))
    assert rows[2]["input_ids"].tolist() == [2, 9, 3, 22, 23, 3]
    assert rows[2]["token_type_ids"].tolist() == [0, 0, 0, 1, 1, 1]
    assert rows.targets is None


def test_packing_by_hand(table, gpt):
    """a b c | d | e f with an end behind each, the empty text left out: 6 7 8 5 9 5 10 11 5."""
    packed = pack(table, "text", load_tokenizer(gpt), 4, range(4))
    assert [row["input_ids"].tolist() for row in packed] == [
        [6, 7, 8, 5],
        [9, 5, 10, 11],
    ]  # the last 5 predicts nothing
    assert all(row["targets"].equal(row["input_ids"]) for row in packed)
    assert [row["input_ids"].tolist() for row in pack(table, "text", load_tokenizer(gpt), 7, range(4))] == [
        [6, 7, 8, 5, 9, 5, 10],
        [11, 5],
    ]
    assert [row["input_ids"].tolist() for row in pack(table, "text", load_tokenizer(gpt), 8, [2, 0])] == [
        [9, 5, 6, 7, 8, 5]
    ]


def test_a_tokenizer_that_ends_texts_itself(table, bert):
    """Here [SEP] is the end of a text too: it is not put in twice."""
    tokenizer = load_tokenizer(bert)
    tokenizer.eos_token = "[SEP]"
    assert pack(table, "text", tokenizer, 16, [0, 2])[0]["input_ids"].tolist() == [2, 6, 7, 8, 3, 2, 9, 3]


@pytest.mark.parametrize("length", [2, 3, 5, 8])
def test_packing_loses_no_token_but_a_lone_last_one(table, gpt, length):
    stream = [6, 7, 8, 5, 9, 5, 10, 11, 5]
    packed = pack(table, "text", load_tokenizer(gpt), length, range(4))
    joined = [token for row in packed for token in row["input_ids"].tolist()]
    assert joined == (stream[:-1] if len(stream) % length == 1 else stream)
    assert len(packed) == len(list(packed))


def test_what_cannot_be_packed(table, gpt, bert):
    with pytest.raises(DataError) as error:
        pack(table, "text", load_tokenizer(bert), 4, range(4))
    assert str(error.value) == (
        "the tokenizer has no end-of-text token (eos_token), which separates the texts of objective.task causal-lm"
    )
    with pytest.raises(DataError) as error:
        pack(table, "text", load_tokenizer(gpt), 4, [1])
    assert str(error.value) == f"{table.origin}: column 'text' has fewer than two tokens of text"
    with pytest.raises(UsageError) as error:
        pack(table, "text", load_tokenizer(gpt), 1, range(4))
    assert str(error.value) == (
        "data.max_length: 1 is too small; a piece of one token predicts nothing, so objective.task causal-lm needs 2"
    )


def test_padding_to_the_longest_row_and_a_multiple_of_eight():
    collate = Padding({"input_ids": 9, "targets": -100}, max_length=100, vocabulary=None)
    rows = [{"input_ids": torch.arange(length), "attention_mask": torch.ones(length)} for length in (3, 9)]
    batch = collate(rows)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 16)
    assert batch["input_ids"][0].tolist() == [0, 1, 2, *[9] * 13]
    assert batch["attention_mask"].sum(1).tolist() == [3, 9]


def test_no_row_is_padded_beyond_the_longest_allowed():
    """A model of 10 positions has none for an 11th token."""
    collate = Padding({"input_ids": 0, "targets": -100}, max_length=10, vocabulary=None)
    rows = [{"input_ids": torch.arange(length), "targets": torch.arange(length)} for length in (9, 2)]
    assert collate(rows)["input_ids"].shape == (2, 10)
    assert collate(rows)["targets"][1].tolist() == [0, 1, *[-100] * 8]
    assert collate([{"input_ids": torch.arange(3), "targets": tensor(2)}])["targets"].tolist() == [2]


def test_which_token_pads(bert, gpt):
    assert padding(load_tokenizer(bert), {}, 8).fill["input_ids"] == 0
    assert padding(load_tokenizer(gpt), {"pad_token_id": 7}, 8).fill["input_ids"] == 7
    assert padding(load_tokenizer(gpt), {"pad_token_id": None}, 8).fill["input_ids"] == 5  # its end of text


def test_a_token_the_model_does_not_have(bert):
    collate = padding(load_tokenizer(bert), {"vocab_size": 20}, 8)
    assert collate([{"input_ids": tensor([2, 19, 3])}])["input_ids"].shape == (1, 8)
    with pytest.raises(DataError) as error:
        collate([{"input_ids": tensor([2, 20, 3])}])
    assert str(error.value) == (
        "the tokenizer gives token 20, the model has 20 tokens (vocab_size of its config.json); use the tokenizer the "
        "model was trained with"
    )


def test_folders_without_a_tokenizer(tmp_path, bert):
    with pytest.raises(UsageError) as usage:
        load_tokenizer(None)
    assert str(usage.value) == (
        "data.source: texts need the checkpoint's tokenizer: give a Hugging Face folder, or take source tensors or factory"
    )
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')  # enough for transformers to make one up
    with pytest.raises(DataError) as error:
        load_tokenizer(folder)
    assert str(error.value) == (
        f"{folder} has no tokenizer (tokenizer.json, vocab.txt, vocab.json, …); copy the one the model was trained with"
    )
    shutil.copytree(bert, folder, dirs_exist_ok=True)
    assert load_tokenizer(folder)("a b")["input_ids"] == [2, 6, 7, 3]
    (folder / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(DataError) as error:
        load_tokenizer(folder)
    assert str(error.value).startswith(f"the tokenizer in {folder} cannot be loaded: ")


def test_more_tokens_than_positions():
    require_positions(512, {"max_position_embeddings": 512, "n_positions": None})
    require_positions(10**6, {"max_position_embeddings": -1})  # relative positions
    for key in ("max_position_embeddings", "n_positions"):
        with pytest.raises(UsageError) as error:
            require_positions(513, {key: 512})
        assert str(error.value) == f"data.max_length: 513 is more than the model's 512 positions ({key} of config.json)"
