"""The pooling of a sentence-transformers folder, and what else it does that sapp does not."""

import json

import pytest

from sapp_cli.errors import CheckpointError, SettingError
from sapp_cli.inputs.sentences import resolved_pooling, sentence_modules


def folder(path, config, *modules):
    (path / "1_Pooling").mkdir(exist_ok=True)
    (path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    listed = [{"type": f"sentence_transformers.models.{kind}", "path": place} for kind, place in modules]
    (path / "modules.json").write_text(json.dumps(listed))
    return path


POOLING = ("Pooling", "1_Pooling")


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode_weightedmean_tokens": True}, "weighted-mean"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": "mean_sqrt_len_tokens"}, "mean"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"word_embedding_dimension": 64}, "mean"),
    ],
)
def test_the_pooling_of_a_folder(tmp_path, config, pooling):
    modules = sentence_modules(folder(tmp_path, config, ("Transformer", ""), POOLING, ("Normalize", "2_Normalize")))
    assert (modules.pooling, modules.left_out) == (pooling, ())
    assert resolved_pooling(None, modules) == pooling


def test_a_folder_that_says_nothing(tmp_path):
    assert sentence_modules(None) is None
    assert sentence_modules(tmp_path) is None
    assert resolved_pooling(None, None) == "mean"
    assert resolved_pooling("cls", None) == "cls"


def test_what_is_left_out_is_said(tmp_path):
    modules = sentence_modules(folder(tmp_path, {"include_prompt": False}, POOLING, ("Dense", "2_Dense")))
    assert modules.left_out == (
        f"{tmp_path}/2_Dense (Dense) is not computed: the vectors compared are those before it",
        f"{tmp_path}/1_Pooling/config.json: include_prompt is false, but sapp counts all tokens: give rows without a prompt",
    )


@pytest.mark.parametrize(
    "config", [{"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}, {"pooling_mode": "attention"}]
)
def test_what_sapp_does_not_compute_is_refused(tmp_path, config):
    with pytest.raises(SettingError, match="but sapp computes one of cls, mean, max, last, weighted-mean"):
        sentence_modules(folder(tmp_path, config, POOLING))


@pytest.mark.parametrize("place", ["../elsewhere", "/etc"])
def test_no_module_lies_elsewhere(tmp_path, place):
    with pytest.raises(CheckpointError, match="is not a list of modules with a type and a path in this folder"):
        sentence_modules(folder(tmp_path, {}, ("Pooling", place)))
