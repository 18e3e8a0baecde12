"""torch.compile: the masks are part of the one graph that is compiled, and nothing is compiled again when they change."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch._dynamo.backends.debugging import aot_eager

import sapp_cli as sapp
from sapp_cli.core.masked_linear_operator import LEAST
from sapp_cli.core.masks import SMALL
from sapp_cli.errors import UsageError
from sapp_cli.training.compilation import COMPILERS
from tests.training.test_loop import recipe, run

STEPS = 20
pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:torch\.")  # of torch's own imports


@pytest.fixture(autouse=True)
def _nothing_compiled_yet():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("method", ["sequential-attention", "powerprop", "acdc"])
@pytest.mark.parametrize("wide", [32, 4096, 65536], ids=["small", "streamed when not compiled", "streamed"])
def test_a_mask_that_changes_compiles_nothing_again(method, wide):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, wide), nn.Tanh(), nn.Linear(wide, 32))
    assert (model[0].weight.numel() >= SMALL) == (wide >= 4096)
    assert (model[0].weight.numel() >= LEAST) == (wide == 65536)
    phases = {"dense": 0.2, "rounds": 2, "last_round": 0.2, "final_sparse": 0.2}
    settings = {"method": method, "block_size": 8, "min_blocks": 8, "sparsity": 0.5, "phases": phases}
    pruner = sapp.Pruner(model, settings, STEPS)
    optimizer = torch.optim.AdamW(pruner.parameter_groups(lr=1e-2))
    compiled = torch.compile(model, backend=backend, fullgraph=True)  # raises where the graph would break
    x = torch.randn(8, 32)
    seen = set()
    for t in range(STEPS):
        seen.add(pruner.step(t, optimizer).phase)
        loss = compiled(x).square().mean()
        torch.testing.assert_close(loss, model(x).square().mean())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert len(seen) >= 2
    assert pruner.sparsity == 0.5
    assert len(graphs) == 1


def test_a_compiled_convolution_gets_its_weight_in_the_memory_format_it_had():
    torch.manual_seed(0)
    conv, x = nn.Conv2d(8, 12, 3), torch.randn(4, 8, 5, 5)
    before = conv(x)
    sapp.Pruner(nn.Sequential(conv), {"block_size": 4, "sparsity": 0.5, "min_blocks": 1}, STEPS)
    assert torch.equal(torch.compile(conv, backend=aot_eager, fullgraph=True)(x), before)


def test_a_compiled_run_has_the_losses_of_one_that_is_not():
    settings = recipe(train={"compile": True, "accumulate": 2, "clip_norm": 1.0, "evaluate_every": 7})
    if shutil.which(COMPILERS[sys.platform]) is None:  # then this is what there is to say
        with pytest.raises(UsageError, match="torch cannot compile this model"):
            run(settings)
        return
    records, state = run(settings)
    plain, plain_state = run(recipe(train={"accumulate": 2, "clip_norm": 1.0, "evaluate_every": 7}))
    assert [record.loss for record in records] == pytest.approx([record.loss for record in plain], rel=1e-4)
    assert [record.sparsity for record in records] == [record.sparsity for record in plain]
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, plain_state[name], rtol=1e-2, atol=1e-4)


def test_what_cannot_be_compiled_ends_the_run_in_one_line(monkeypatch):
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(inductor, "force_disable_caches", True)
    with pytest.raises(UsageError) as error:
        run(recipe(train={"compile": True}))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("train.compile: torch cannot compile this model (")
    assert str(error.value).endswith("); leave it out")


def test_a_missing_compiler_is_noticed_before_anything_is_read(sapp, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    (tmp_path / "model.safetensors").touch()  # there, and not read
    ran = sapp("prune", tmp_path, "-r", "digits", "--compile", "--device", "cpu", "-o", tmp_path.parent / "out")
    assert ran.code == 2
    assert ran.err == (
        "error: --compile: train.compile: torch.compile needs a C++ compiler on a CPU, and there is no 'no-such-compiler'; "
        "install one, name it in the environment as CXX, or leave it out\n"
    )
    assert not (tmp_path.parent / "out").exists()


def test_nothing_is_left_in_the_shared_temporary_folder_unless_asked(digits, tmp_path):
    """The compiler of torch, which its optimizers import, makes a folder of a name that others can take before."""
    shared = tmp_path / "shared"
    shared.mkdir()
    command = [sys.executable, "-m", "sapp_cli", "prune", digits / "dense.safetensors", "-r", digits / "recipe.yaml"]
    command += ["-o", tmp_path / "out", "--steps", "20", "-q"]
    environment = {**os.environ, "TMPDIR": str(shared), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert list(shared.iterdir()) == []
