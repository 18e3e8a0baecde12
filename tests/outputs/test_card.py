"""The model card says what was done and how to load it, for each kind of output."""

import pytest
import yaml

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
