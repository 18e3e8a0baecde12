"""SAPP_ISA: the instruction set that kernels are generated for, from the environment to the machine code."""

import pytest
import torch

from sapp_cli.codegen import machine_code
from sapp_cli.codegen.isa import host_isas
from sapp_cli.grid import BlockGrid
from sapp_cli.passes.block_passes import block_passes
from sapp_cli.runtime.sampled import SampledProduct
from tests.runtime.weights import kernel_for, triple

COMMANDS = {
    "prune": "prune none -r none.yaml -o out",
    "plan": "plan none -r none.yaml",
    "eval": "eval none -r none.yaml",
    "compare": "compare none -r none.yaml -o out",
    "bench": "bench none",
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("name", ["avx1024", "AVX2", "neon-sve"])
def test_an_instruction_set_that_the_cpu_lacks_ends_every_verb_that_computes(sapp, monkeypatch, command, name):
    monkeypatch.setenv("SAPP_ISA", name)
    ran = sapp(*command.split())
    here = ", ".join(isa.name for isa in host_isas())
    expected = f"SAPP_ISA: {name}, expected an instruction set of this CPU ({here}); set one of these, or none"
    assert (ran.code, ran.err, ran.out) == (2, f"error: {expected}\n", "")


@pytest.mark.parametrize("verb", ["report", "check"])
def test_verbs_that_only_read_files_do_not_care(sapp, digits, monkeypatch, verb):
    monkeypatch.setenv("SAPP_ISA", "avx1024")
    assert sapp(verb, digits / "dense.safetensors").code == 0


def test_without_a_value_it_is_the_best_of_this_cpu(monkeypatch):
    monkeypatch.setenv("SAPP_ISA", "")
    assert instruction_sets(monkeypatch, (6, 10)) == {host_isas()[0].name}
    monkeypatch.delenv("SAPP_ISA")
    assert instruction_sets(monkeypatch, (10, 6)) == {host_isas()[0].name}


@pytest.mark.parametrize("isa", host_isas(), ids=lambda isa: isa.name)
def test_every_kernel_is_generated_for_it(monkeypatch, isa):
    monkeypatch.setenv("SAPP_ISA", isa.name)
    assert instruction_sets(monkeypatch, (6, 14)) == {isa.name}


def instruction_sets(monkeypatch, block):
    """Those for which code was generated while a product, its gradient and a mask were computed in blocks of this size."""
    seen = []
    optimize = machine_code.optimize
    monkeypatch.setattr(machine_code, "optimize", lambda module, isa: (seen.append(isa.name), optimize(module, isa))[1])
    grid = BlockGrid((2 * block[0], 3 * block[1]), block)
    weight, scale, x = torch.randn(grid.matrix), torch.rand(grid.size), torch.randn(5, grid.matrix[1])
    y = kernel_for(weight, block)(x)
    torch.testing.assert_close(y, x @ weight.t())
    _, crow, col = triple(weight, block)
    SampledProduct(crow, col, grid)(x, y)
    block_passes(grid).scale(weight, scale, torch.empty(grid.matrix))
    assert len(seen) == 3
    return set(seen)
