"""Block-sparse layers in programs of `torch.export` and graphs of `torch.compile`: whose weights they compute with, and for how
long these live.
"""

import gc
import os
import subprocess
import sys
import threading
import weakref

import pytest
import torch
from torch import nn

from sapp_cli.runtime import weight_state
from sapp_cli.runtime.conv import BlockSparseConv
from sapp_cli.runtime.linear import BlockSparseLinear
from tests.runtime.weights import sparse_weight

BLOCK = (8, 8)


def linear(seed, share=0.4, way=None, bias=True):
    """(Weight, bias, layer), 32 × 32."""
    weight = sparse_weight((32, 32), BLOCK, share, seed=seed)
    own = torch.arange(32.0) / (seed + 1) if bias else None
    return weight, own, BlockSparseLinear.from_weight(weight, own, BLOCK, way)


class Network(nn.Module):
    """Two convolutions and two Linear layers of one shape each, with weights of their own."""

    def __init__(self, sparse):
        super().__init__()
        torch.manual_seed(5)
        for name in ("conv1", "conv2"):
            conv = nn.Conv2d(8, 8, 3, padding=1).requires_grad_(False)
            conv.weight[:, :, 0] *= 0
            self.add_module(name, BlockSparseConv.from_dense(conv, BLOCK, "torch") if sparse else conv)
        for name, seed in (("first", 1), ("second", 2)):
            weight, bias, layer = linear(seed)
            dense = nn.Linear(32, 32).requires_grad_(False)
            dense.weight.copy_(weight)
            dense.bias.copy_(bias)
            self.add_module(name, layer if sparse else dense)

    def forward(self, x):  # (images, 8, 2, 2)
        x = self.conv2(self.conv1(x).relu()).flatten(1)
        return self.second(self.first(x).relu())


IN_A_NEW_PROCESS = """
import sys
import torch
import sapp_cli as sapp
from sapp_cli.runtime.linear import BlockSparseLinear

# Other layers of that shape come first, and compute: their weights must not be taken for those of the program.
for seed in range(3):
    other = BlockSparseLinear.from_weight(torch.randn(32, 32), torch.randn(32), (8, 8))
    other(torch.randn(3, 32))
del other
sapp.register_operators()
x, expected = torch.load(sys.argv[1])
for path in sys.argv[2:]:
    program = torch.export.load(path).module()
    for _ in range(2):
        torch.testing.assert_close(program(x), expected, rtol=1e-4, atol=1e-5)
print("equal")
"""


def in_a_new_process(code, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.filterwarnings("ignore:No complete tensor found")  # of torch, of every weight that is not contiguous
def test_an_exported_program_holds_its_blocks_and_computes_in_a_new_process(tmp_path):
    sparse, dense = Network(sparse=True), Network(sparse=False)
    x = torch.randn(3, 8, 2, 2)
    programs = []
    for strict in (False, True):
        program = torch.export.export(sparse, (x,), strict=strict)
        state = program.state_dict
        for name in ("first", "second", "conv1.matrix", "conv2.matrix"):
            own = sparse.get_submodule(name)
            for part in ("values", "crow", "col", "bias"):
                assert torch.equal(state[f"{name}.{part}"], getattr(own, part))
        assert len(state) == 16  # and nothing else: no dense weight
        programs.append(tmp_path / f"{strict}.pt2")
        torch.export.save(program, programs[-1])
    torch.save((x, dense(x)), tmp_path / "expected.pt")
    assert in_a_new_process(IN_A_NEW_PROCESS, tmp_path / "expected.pt", *programs) == "equal"


def test_a_program_that_takes_the_state_of_another_model_computes_with_it():
    x = torch.randn(3, 8, 2, 2)
    program = torch.export.export(Network(sparse=True), (x,)).module()
    program(x)
    with torch.no_grad():
        program.first.values.zero_()
        program.second.bias.fill_(7.0)
    expected = Network(sparse=False)
    expected.first.weight.zero_()
    expected.second.bias.fill_(7.0)
    torch.testing.assert_close(program(x), expected(x), rtol=1e-4, atol=1e-5)


@pytest.fixture
def compiled_anew():
    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield
    torch._dynamo.reset()


class Block(nn.Module):
    """As one of the blocks of a transformer."""

    def __init__(self, seed):
        super().__init__()
        # Another number of kept blocks in each layer of each block, as pruning leaves it.
        self.up_weight, self.up_bias, self.up = linear(seed, 0.2 + 0.03 * seed)
        self.down_weight, self.down_bias, self.down = linear(seed + 50, 0.9 - 0.05 * seed)

    def forward(self, x):
        return x + self.down(self.up(x).relu())

    def reference(self, x):
        return x + (x @ self.up_weight.t() + self.up_bias).relu() @ self.down_weight.t() + self.down_bias


@pytest.mark.usefixtures("compiled_anew")
def test_twelve_equal_blocks_compiled_one_by_one_are_compiled_few_times():
    blocks = nn.Sequential(*map(Block, range(12)))
    assert len({(len(block.up.col), len(block.down.col)) for block in blocks}) > 8
    x = torch.randn(5, 32)
    expected = x
    compilations = []

    def backend(graph, inputs):
        compilations.append(graph)
        return graph.forward

    for block in blocks:
        block.compile(backend=backend, fullgraph=True)
        expected = block.reference(expected)
    with torch.no_grad():
        torch.testing.assert_close(blocks(x), expected, rtol=1e-4, atol=1e-4)
    assert len(compilations) <= 4


@pytest.mark.usefixtures("compiled_anew")
def test_compiled_layers_see_every_change_of_their_weights():
    _, _, layer = linear(1)
    other_weight, other_bias, other = linear(2, 0.7)
    layer.compile(backend="aot_eager", fullgraph=True)
    x = torch.randn(5, 32)
    layer(x)
    with torch.no_grad():
        layer.values.zero_()
    torch.testing.assert_close(layer(x), layer.bias.expand(5, 32))
    for name in ("values", "crow", "col", "bias"):
        layer._buffers[name] = getattr(other, name)  # past everything that a module could notice
    torch.testing.assert_close(layer(x), x @ other_weight.t() + other_bias, rtol=1e-4, atol=1e-5)
    layer.double()
    torch.testing.assert_close(layer(x.double()), (x @ other_weight.t() + other_bias).double(), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("compiled_anew")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_whole_model_compiled_in_one_graph_with_gradients_of_its_input(backend):
    sparse, dense = Network(sparse=True), Network(sparse=False)
    compiled = torch.compile(sparse, backend=backend, fullgraph=True)
    x = torch.randn(3, 8, 2, 2)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    for _ in range(2):
        y = compiled(ours)
        torch.testing.assert_close(y, dense(theirs), rtol=1e-4, atol=1e-5)
    y.square().sum().backward()
    dense(theirs).square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)
    # A graph and its layers share what was prepared; it says what was chosen in both.
    assert sparse.first.choices
    assert sparse.conv1.choices


def test_a_graph_prepares_a_weight_once(monkeypatch):
    made = []
    monkeypatch.setattr(weight_state, "Products", lambda *given: made.append(1) or Products(*given))
    from sapp_cli.runtime.products import Products

    x = torch.randn(3, 32, requires_grad=True)
    _, _, layer = linear(1)
    program = torch.export.export(linear(2)[2], (x.detach(),)).module()
    for _ in range(3):
        layer(x.detach())  # by the layer
        layer(x).sum().backward()  # by the operator, and its gradient
        program(x.detach())
    assert len(made) == 2


def test_nothing_is_kept_of_weights_that_are_gone():
    gc.collect()
    before = len(weight_state._STATES)
    x = torch.randn(3, 32, requires_grad=True)
    _, _, layer = linear(1)
    program = torch.export.export(layer, (x.detach(),)).module()
    layer(x.detach())
    layer(x)
    program(x.detach())
    gone = [weakref.ref(layer.products(torch.float32)), weakref.ref(layer.values)]
    assert len(weight_state._STATES) > before
    torch._dynamo.reset()
    del layer, program
    gc.collect()
    assert [one() for one in gone] == [None, None]
    assert len(weight_state._STATES) == before


def test_a_weight_in_the_memory_of_one_that_is_gone_is_its_own():
    """Memory of tensors is used again at once, at the same address."""
    x = torch.randn(3, 32, requires_grad=True)
    seen = set()
    for seed in range(20):
        weight, bias, layer = linear(seed)
        torch.testing.assert_close(layer(x), x @ weight.t() + bias, rtol=1e-4, atol=1e-5)
        seen.add(layer.values.data_ptr())
        del layer
    assert len(seen) < 20


def test_threads_that_compute_with_one_new_weight_prepare_it_once():
    weight, bias, layer = linear(3)
    x = torch.randn(4, 32, requires_grad=True)
    start, problems, states = threading.Barrier(4), [], []

    def work():
        try:
            start.wait()
            torch.testing.assert_close(layer(x), x @ weight.t() + bias, rtol=1e-4, atol=1e-5)
            states.append(layer.state())
        except BaseException as error:
            problems.append(error)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not problems
    assert len(set(map(id, states))) == 1


def test_two_layers_that_share_values_and_differ_in_bias_and_way():
    weight, bias, layer = linear(1, way="kernel")
    other = BlockSparseLinear((32, 32), layer.values, layer.crow, layer.col, None, "torch")
    other.values = layer.values
    x = torch.randn(3, 32, requires_grad=True)
    for _ in range(2):
        torch.testing.assert_close(layer(x), x @ weight.t() + bias, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(other(x), x @ weight.t(), rtol=1e-4, atol=1e-5)


def test_vmap_folds_the_mapped_dimension():
    sparse, dense = Network(sparse=True), Network(sparse=False)
    x = torch.randn(4, 3, 8, 2, 2)
    sparse(x[0])  # the ways for this shape are there already
    torch.testing.assert_close(torch.func.vmap(sparse)(x), torch.func.vmap(dense)(x), rtol=1e-4, atol=1e-5)
    last = torch.func.vmap(sparse, in_dims=-1, out_dims=-1)(x.movedim(0, -1))
    torch.testing.assert_close(last, torch.func.vmap(dense)(x).movedim(0, -1), rtol=1e-4, atol=1e-5)
    nested = torch.func.vmap(torch.func.vmap(sparse.first))(torch.randn(2, 3, 5, 32))
    assert nested.shape == (2, 3, 5, 32)
    for way in ("kernel", "torch", "dense", None):
        _, _, layer = linear(4, way=way)
        rows = torch.randn(6, 32)
        layer(rows[0])
        torch.testing.assert_close(torch.func.vmap(layer)(rows), layer(rows), rtol=1e-4, atol=1e-5)


def test_gradients_for_each_example():
    sparse, dense = Network(sparse=True), Network(sparse=False)
    x = torch.randn(4, 1, 8, 2, 2)

    def loss(model):
        return lambda x: model(x).square().sum()

    ours = torch.func.vmap(torch.func.grad(loss(sparse)))(x)
    torch.testing.assert_close(ours, torch.func.vmap(torch.func.grad(loss(dense)))(x), rtol=1e-4, atol=1e-4)


def test_vmap_over_weights_says_what_to_do():
    _, _, layer = linear(1)
    stacked = {name: torch.stack([tensor, tensor]) for name, tensor in layer.state_dict(keep_vars=True).items()}
    call = torch.func.vmap(lambda state, x: torch.func.functional_call(layer, state, (x,)), in_dims=(0, None))
    with pytest.raises(
        NotImplementedError, match=r"vmap over the weights of a block-sparse layer: expected x to be mapped"
    ):
        call(stacked, torch.randn(3, 32))
