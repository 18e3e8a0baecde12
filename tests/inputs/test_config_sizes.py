"""Sizes of config.json against the weights: what is refused before a model is built, and what is not."""

import json

import pytest
import transformers

from sapp_cli.checkpoint.source import open_checkpoint
from sapp_cli.errors import CheckpointError
from sapp_cli.inputs.models import load_model
from sapp_cli.recipe.schema import ModelSection
from scripts.make_checkpoints import make_bert, make_gpt2

SMALL = {"num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 60, "max_position_embeddings": 40}


def settings(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return open_checkpoint(folder)


@pytest.mark.parametrize(
    "lie", [{"n_layer": 10**7}, {"n_layer": 10**18}, {"n_embd": 4 * 10**9}, {"n_positions": 10**13}, {"n_layer": 3}]
)
def test_a_lie_is_refused_at_once_under_the_names_of_another_kind_of_model(tmp_path, lie):
    """Ten million layers had no end."""
    checkpoint = settings(make_gpt2(tmp_path / "gpt"), **lie)
    with pytest.raises(CheckpointError, match=r"take the config\.json that belongs|does not fit the GPT2LMHeadModel"):
        load_model(checkpoint, ModelSection())


def test_sizes_of_a_part(tmp_path):
    checkpoint = settings(make_bert(tmp_path / "bert"), text_config={"num_hidden_layers": 10**7})
    with pytest.raises(CheckpointError, match=r"text_config\.num_hidden_layers is 10,000,000, but the weights have 41"):
        load_model(checkpoint, ModelSection())


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        (
            "AlbertForSequenceClassification",
            {"embedding_size": 16, "hidden_size": 32, "num_hidden_layers": 12},
        ),  # shared
        ("DistilBertForSequenceClassification", {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2}),
        ("ElectraModel", {"embedding_size": 16, "hidden_size": 32, "num_hidden_layers": 2}),
        ("MobileBertForSequenceClassification", {"hidden_size": 32, "num_hidden_layers": 2, "embedding_size": 16}),
        ("BeitForImageClassification", {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2}),
    ],
)
def test_what_transformers_saved_is_taken(tmp_path, name, sizes):
    cls = getattr(transformers, name)
    cls(cls.config_class(**{**SMALL, **sizes})).save_pretrained(tmp_path)
    assert load_model(open_checkpoint(tmp_path), ModelSection()).added == ()
