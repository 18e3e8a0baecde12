"""The task against the head that config.json names, with what transformers itself says these classes are."""

import json

import numpy as np
import pytest
import transformers
from safetensors.numpy import save_file

from sapp_cli.checkpoint.source import open_checkpoint
from sapp_cli.errors import SettingError
from sapp_cli.inputs.heads import require_head
from sapp_cli.recipe.schema import Recipe

MAPPINGS = {
    "classification": ("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING", "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING"),
    "regression": ("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",),
    "causal-lm": ("MODEL_FOR_CAUSAL_LM_MAPPING",),
    "masked-lm": ("MODEL_FOR_MASKED_LM_MAPPING",),
}


@pytest.fixture
def folder(tmp_path):
    save_file({"w": np.zeros((2, 2), np.float32)}, tmp_path / "model.safetensors")

    def of(*architectures):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": list(architectures)}))
        return open_checkpoint(tmp_path)

    return of


def recipe(task, **sections):
    return Recipe.model_validate({"objective": {"task": task}, "train": {"steps": 1}, **sections})


@pytest.mark.parametrize("task", MAPPINGS)
def test_every_class_that_transformers_has_for_a_task_is_taken(folder, task):
    names = {name for mapping in MAPPINGS[task] for name in getattr(transformers, mapping)._model_mapping.values()}
    names = {name for entry in names for name in ([entry] if isinstance(entry, str) else entry)}
    assert len(names) > 20
    for name in names:
        require_head(folder(name), recipe(task))


@pytest.mark.parametrize(
    ("name", "task", "instead"),
    [
        ("BertModel", "causal-lm", "the task embedding-distillation, as in `-r sentence-embedding`"),
        ("GPT2LMHeadModel", "classification", "the task causal-lm, as in `-r causal-lm`"),
        ("ViTForImageClassification", "masked-lm", "the task classification, as in `-r image-classification`"),
        ("BertForMaskedLM", "embedding-distillation", "or the task masked-lm"),
        ("BertForSequenceClassification", "causal-lm", "the task classification, as in `-r text-classification`"),
    ],
)
def test_another_head_than_the_task_trains_is_refused_with_what_trains_it(folder, name, task, instead):
    with pytest.raises(SettingError) as error:
        require_head(folder(name), recipe(task))
    ((key, problem),) = error.value.problems
    assert key == "objective.task"
    assert f"is a {name} (config.json)" in problem
    assert problem.endswith(instead)


@pytest.mark.parametrize(
    "name", ["GPT2DoubleHeadsModel", "T5ForConditionalGeneration", "VisionEncoderDecoderModel", "Mine"]
)
def test_what_the_name_does_not_say_is_tried_out(folder, name):
    require_head(folder(name), recipe("causal-lm"))


def test_a_factory_and_a_task_of_ones_own_are_tried_out(folder):
    require_head(folder("BertModel"), recipe("causal-lm", model={"factory": "mine.py:build"}))
    own = Recipe.model_validate({"objective": {"task": "factory", "factory": "mine.py:loss"}, "train": {"steps": 1}})
    require_head(folder("BertModel"), own)
    require_head(folder(), recipe("causal-lm"))
