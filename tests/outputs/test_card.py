"""The model card says what was done and how to load it, for each kind of output."""

import pytest
import yaml
from huggingface_hub import ModelCard

from sapp_cli.grid import BlockGrid, MatrixLayout
from sapp_cli.outputs.card import FileSizes, auto_class, write_card
from sapp_cli.report.sparsity import Counts, LayerFacts, make_report

RUN = {
    "sapp_version": "1.2",
    "method": "acdc",
    "steps": 70,
    "metrics": {"accuracy": {"dense": 0.9, "pruned": 0.875, "higher_is_better": True}},
}
FOREIGN = {"sapp_version": "1.2", "metrics": {}}


def report(kept, work=None):
    layout = MatrixLayout("linear", (8, 8))
    pruned = kept < 4
    grid = BlockGrid((8, 8), (4, 4))
    facts = LayerFacts("a.weight", (8, 8), 4, True, pruned, "", layout, grid, multiply_adds=work)
    return make_report([facts], lambda layer: Counts(kept, kept * 16), 0, 0, 0)


def card(tmp_path, *, kept=1, manifest=RUN, sizes=(1000, 1000, 300), architecture=None, companions=(), work=None):
    write_card(tmp_path, "mine", report(kept, work), manifest, FileSizes(*sizes), architecture, companions)
    return (tmp_path / "README.md").read_text()


def test_a_run(tmp_path):
    text = card(tmp_path, companions=["README.source.md"])
    assert (
        "This checkpoint was pruned in blocks by sapp 1.2: method `acdc`,\n"
        "70 steps of fine-tuning, 4×4 blocks, 75.0 % of the blocks of 1 layers removed.\n"
    ) in text
    assert "| accuracy (higher is better) | 0.9000 | 0.8750 |\n" in text
    assert "| dense file | 1.00 kB | 1.00 kB |\n| block-sparse file | | 300 B |\n" in text
    assert 'model.load_state_dict(load_file("mine/model.safetensors"))' in text
    assert 'model = sapp.load(model, "mine")' in text
    assert "[README.source.md](README.source.md)" in text
    assert "\n\n\n" not in text


def test_what_is_left_to_compute(tmp_path):
    text = card(tmp_path, work=6400)
    assert "| multiply-adds of the weights, one example | 6.40 k | 1.60 k |\n| dense file |" in text
    assert "| `a.weight` | 1 / 4 | 75.0 % | 6.40 k → 1.60 k | 100.0 % |\n| all layers |" in text
    assert "\n\n\n" not in text
    _, layers, after = text.partition("\n\n## Layers\n\n")
    assert layers
    assert "\n\n## How to load it\n\n" in after
    unknown = card(tmp_path)
    assert "multiply-adds" not in unknown
    assert "\n\n\n" not in unknown


def test_a_hugging_face_model_loads_with_its_auto_class(tmp_path):
    text = card(tmp_path, architecture="LlamaForCausalLM")
    assert text.startswith(
        "---\nmetrics:\n- accuracy\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- block-sparse\n"
    )
    assert 'model = AutoModelForCausalLM.from_pretrained("mine")' in text
    assert auto_class("BertModel") == "AutoModel"
    assert auto_class("GPT2LMHeadModel") == "AutoModelForCausalLM"


def test_shards_are_not_one_file(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    assert 'model.load_state_dict(sapp.load_state_dict("mine"))' in card(tmp_path)


def test_one_layout_alone(tmp_path):
    dense = card(tmp_path, sizes=(1000, 1000, 0))
    assert "block-sparse file" not in dense
    assert "sapp.load(" not in dense
    sparse = card(tmp_path, sizes=(1000, 0, 300))
    assert "load_file(" not in sparse
    assert "| block-sparse file | | 300 B |" in sparse


def test_a_checkpoint_that_nobody_pruned(tmp_path):
    text = card(tmp_path, kept=4, manifest=FOREIGN)
    assert "This checkpoint was written by sapp 1.2. No layer of it has a removed block.\n" in text
    assert "recipe.yaml" not in text
    assert text.startswith("---\ntags:\n- sapp\n---\n# mine\n")


def test_a_checkpoint_that_somebody_else_pruned(tmp_path):
    text = card(tmp_path, kept=2, manifest=FOREIGN)
    assert "This checkpoint was pruned in blocks, 4×4 blocks, 50.0 % of the blocks of 1 layers removed.\n" in text


SOURCE = """---
license: mit
language: no
base_model: someone/encoder
datasets: [glue, 2024-01-01]
tags: [pruning, nlp]
pipeline_tag: zero-shot-classification
model-index: [{name: old, results: []}]
widget: {text: a}
metrics: {f1: 1}
---
# The original
"""


def head_of(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_what_the_source_says_of_itself_is_kept(tmp_path):
    (tmp_path / "README.source.md").write_text(SOURCE)
    text = card(tmp_path, architecture="BertForSequenceClassification", companions=["README.source.md"])
    assert head_of(text) == {
        "license": "mit",
        "language": "no",
        "base_model": "someone/encoder",
        "datasets": ["glue", "2024-01-01"],
        "metrics": ["accuracy"],
        "library_name": "transformers",
        "pipeline_tag": "zero-shot-classification",
        "tags": ["pruning", "nlp", "block-sparse", "sapp"],
    }


MEASURED = {
    "accuracy": {"dense": 0.9, "pruned": 0.875, "higher_is_better": True},
    "loss": {"dense": 0.4, "pruned": 0.5, "higher_is_better": False},
    "auc": {"dense": 0.9, "pruned": 0.8, "higher_is_better": True},
    "of my own": {"dense": 1.0, "pruned": 2.0, "higher_is_better": True},
}
ROWS = "data: {files: {train: /home/me/train.csv, validation: /home/me/rows/validation.csv}}"


def with_results(tmp_path, recipe=ROWS, metrics=MEASURED, architecture="BertForSequenceClassification"):
    (tmp_path / "recipe.yaml").write_text(recipe)
    return card(tmp_path, manifest={**RUN, "metrics": metrics}, architecture=architecture)


def test_the_runs_results_are_in_the_form_of_the_hub(tmp_path):
    text = with_results(tmp_path)
    assert head_of(text)["model-index"] == [
        {
            "name": "mine",
            "results": [
                {
                    "task": {"type": "text-classification"},
                    "dataset": {"name": "validation.csv", "type": "csv", "split": "validation"},
                    "metrics": [
                        {"type": "accuracy", "name": "Accuracy", "value": 0.875},
                        {"type": "roc_auc", "name": "ROC AUC", "value": 0.8},
                    ],
                }
            ],
        }
    ]
    assert "/home/me" not in text


def test_the_hubs_own_reader_reads_the_results(tmp_path):
    """It raises for a result that lacks something, and for a name that is not there."""
    read = ModelCard(with_results(tmp_path)).data
    found = [(one.task_type, one.dataset_name, one.dataset_type, one.dataset_split) for one in read.eval_results]
    assert found == [("text-classification", "validation.csv", "csv", "validation")] * 2
    assert [(one.metric_type, one.metric_name, one.metric_value) for one in read.eval_results] == [
        ("accuracy", "Accuracy", 0.875),
        ("roc_auc", "ROC AUC", 0.8),
    ]
    assert read.model_name == "mine"
    assert read.metrics == ["accuracy", "auc", "of my own"]


@pytest.mark.parametrize(
    ("recipe", "metrics", "architecture"),
    [
        (ROWS, MEASURED, None),  # no task
        (ROWS, MEASURED, "BertModel"),
        (ROWS, {"loss": MEASURED["loss"], "of my own": MEASURED["of my own"]}, "GPT2LMHeadModel"),
        (ROWS, {"accuracy": {"dense": 0.9, "pruned": float("nan"), "higher_is_better": True}}, "GPT2LMHeadModel"),
        ("data: {files: {train: a.csv}}", MEASURED, "GPT2LMHeadModel"),  # rows that were held out
        ("data: {files: {train: a.csv, validation: 'b-*.csv'}}", MEASURED, "GPT2LMHeadModel"),
        ("data: {files: {train: a.csv, validation: [b.csv, c.csv]}}", MEASURED, "GPT2LMHeadModel"),
        ("data: {files: {validation: rows.unknown}}", MEASURED, "GPT2LMHeadModel"),
        ("data: {source: tensors, files: {validation: b.npz}}", MEASURED, "GPT2LMHeadModel"),
        ("data: [", MEASURED, "GPT2LMHeadModel"),
        ("[]", MEASURED, "GPT2LMHeadModel"),
    ],
)
def test_results_whose_facts_are_not_known_are_left_out(tmp_path, recipe, metrics, architecture):
    assert "model-index" not in head_of(with_results(tmp_path, recipe, metrics, architecture))


def test_a_folder_of_images_is_named_by_its_format(tmp_path):
    recipe = "data: {format: imagefolder, files: {validation: /data/cats/validation}}"
    (index,) = head_of(with_results(tmp_path, recipe, architecture="ViTForImageClassification"))["model-index"]
    assert index["results"][0]["dataset"] == {"name": "validation", "type": "imagefolder", "split": "validation"}


@pytest.mark.parametrize(
    "source",
    [
        b"# no head\n",
        b"---\nlicense: mit\n",
        b"---\nlicense: [\n---\n",
        b"---\n- license\n---\n",
        b"---\nlicense: {a: b}\ntags: [[a]]\ndatasets: !!python/object/apply:os.getcwd []\n---\n",
        b"---\nlicense: &a [b, *a]\n---\n",
        b"---\nlicense: " + b"[" * 5000 + b"\n---\n",
        b"---\nlicense: \x00\xff\n---\n",
        b'---\nlicense: "mit\\n---\\n# owned"\n---\n',
        b"",
    ],
)
def test_a_head_that_cannot_be_read_is_left_out(tmp_path, source):
    (tmp_path / "README.source.md").write_bytes(source)
    assert head_of(card(tmp_path)) == {"metrics": ["accuracy"], "tags": ["block-sparse", "pruning", "sapp"]}
