"""Every command of the pages: which page's run, or which other test, runs it; or why nothing here can."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from tests.docs.pages import PROGRAMS, REPOSITORY

PAGES_RUN = "tests/docs/test_pages_run.py::"
RUN_PAGES: Mapping[str, str] = {
    "README": f"{PAGES_RUN}test_the_readme",
    "bench": f"{PAGES_RUN}test_measuring",
    "ci": f"{PAGES_RUN}test_the_gates_of_a_check",
    "cli": f"{PAGES_RUN}test_the_command_line",
    "howto-block-size": f"{PAGES_RUN}test_block_size_and_sparsity",
    "howto-criteo": f"{PAGES_RUN}test_click_logs",
    "howto-hugging-face": f"{PAGES_RUN}test_a_hugging_face_model",
    "howto-images": f"{PAGES_RUN}test_a_folder_of_images",
    "howto-own-loop": "tests/docs/test_own_loop_page.py::test_the_examples",
    "howto-own-loss": f"{PAGES_RUN}test_a_loss_of_your_own",
    "howto-own-model": f"{PAGES_RUN}test_a_model_of_your_own",
    "howto-resume": f"{PAGES_RUN}test_interrupted_runs",
    "index": f"{PAGES_RUN}test_the_first_page",
    "onnx": f"{PAGES_RUN}test_other_runtimes",
    "recipes": f"{PAGES_RUN}test_recipes_to_start_from",
    "report": f"{PAGES_RUN}test_reading_a_report",
    "runtime": f"{PAGES_RUN}test_block_sparse_inference",
    "tutorial": f"{PAGES_RUN}test_the_tutorial",
    "why": f"{PAGES_RUN}test_why_and_when_not",
}
"""Page -> the test that runs its commands and its Python, from top to bottom."""

TORCHRUN = "torchrun --standalone --nproc-per-node 4 -m sapp_cli prune ./my-model -r recipe.yaml"
ELSEWHERE: Mapping[str, Sequence[str]] = {
    "tests/cli/test_completion.py::test_a_real_shell_completes": ["sapp --install-completion"],
    "tests/cli/test_completion.py::test_the_script_for_a_shell_asks_as_typer_answers": ["sapp --show-completion"],
    "tests/cli/test_shipped_recipes.py::test_imagenet_resnet50_is_planned_without_its_data": ["sapp plan resnet50"],
    "tests/cli/test_tune.py::test_the_verb_prints_the_trials_and_the_line_for_the_recipe": ["sapp tune"],
    "tests/comparing/test_runs.py::test_a_comparison_is_made_once": ["sapp compare"],
    "tests/docs/test_references.py::test_the_page_of_recipe_keys_is_up_to_date": [
        "python scripts/make_recipe_reference.py"
    ],
    "tests/docs/test_references.py::test_the_page_of_the_command_line_is_up_to_date": [
        "python scripts/make_cli_reference.py"
    ],
    "tests/docs/test_site.py::test_every_page_is_built": ["make docs"],
    "tests/runtime/test_bench_kernels.py::test_the_figures_go_to_a_file_with_their_machine": [
        "python scripts/bench_kernels.py"
    ],
    "tests/runtime/test_bench_kernels_cuda.py::test_every_way_is_checked_and_measured": [
        "make bench-cuda",
        "python scripts/bench_kernels_cuda.py",
    ],
    "tests/scripts/test_bench_freed_memory.py::test_each_cell_comes_from_processes_of_its_own": [
        "python scripts/bench_freed_memory.py"
    ],
    "tests/scripts/test_bench_small_layers.py::test_every_cell_has_its_ratio_and_each_block_its_least": [
        "python scripts/bench_small_layers.py"
    ],
    "tests/scripts/test_bench_sparse_phases.py::test_the_figures_go_to_a_file_with_their_machine": [
        "python scripts/bench_sparse_phases.py"
    ],
    "tests/scripts/test_bench_training.py::test_figures_go_to_a_file_with_their_machine": [
        "python scripts/bench_training.py"
    ],
    "tests/scripts/test_make_checkpoints.py::test_resnet_is_resnet_50": [
        "python scripts/make_checkpoints.py --kind resnet"
    ],
    "tests/scripts/test_make_checkpoints.py::test_untrained_resnet_is_as_transformers_initializes_it": [
        "python scripts/make_checkpoints.py --kind resnet-untrained"
    ],
    "tests/test_release.py::test_the_installed_wheel_runs_every_verb_outside_the_checkout": ["make release-check"],
    "tests/training/test_distributed.py::test_accelerate_launch_may_ask_for_fsdp": ["accelerate launch --use_fsdp"],
    "tests/training/test_distributed_run.py::test_a_run_under_torchrun_writes_one_output_that_loads": [
        f"{TORCHRUN} -o out"
    ],
    "tests/training/test_distributed_run.py::test_stopped_by_a_signal_to_one_process_and_resumed": [
        f"{TORCHRUN} --set train.shard=true"
    ],
}
"""Test -> beginnings of the commands that it runs, smaller or in its own process."""

NOT_HERE: Mapping[str, str] = {
    ".ci/run": "this test is a part of it",
    "accelerate launch --multi_gpu": "needs CUDA",
    "gh pr comment": "needs a pull request",
    "hf download": "needs the network",
    "make bench": "half an hour on a quiet machine; its script is tested",
    "make bench-reading": "reads 4 GB again and again",
    "make bench-sparse-phases": "half an hour on a quiet machine; its script is tested",
    "make check": "CI runs it before the tests",
    "make evidence": "a day of runs",
    "make fix": "changes the files that are tested",
    "make setup": "has made the environment that this runs in",
    "make test": "this test is a part of it",
    "make test-isa": "CI repeats the numeric tests so, after these",
    "pip install": "needs the network",
    "pre-commit install": "changes the repository that is tested",
    "pytest": "this test is a part of it",
    "python scripts/make_checkpoints.py --kind bert-wide": "writes 430 MB, to be measured",
    "python scripts/check_predictions.py": "half an hour of real runs; their recipes and its arithmetic are tested",
    "python scripts/evidence.py": "hours of runs",
    "sapp bench runs/minilm --random-mask": "figures of a quiet machine",
    "sapp bench runs/minilm-80 --batch-size 1,8": "figures of a quiet machine, after ten minutes of training",
    "sapp prune runs/minilm -r recipes/sentence-embedding.yaml --steps 60": "minutes, and figures of a quiet machine",
    "srun": "needs Slurm",
}
"""Beginning of a command -> why it cannot run here."""

_BEGINNINGS = [*NOT_HERE, *(beginning for commands in ELSEWHERE.values() for beginning in commands)]
_PLACEHOLDER = re.compile(r"[A-Z][A-Z_]*")


def bare(command: str) -> str:
    """The command without an environment, the folder of its program, and what becomes of its output."""
    command = re.split(r" (?:\||>>?) ", re.sub(r"^(?:\w+=\S* )*(?:\.venv/bin/)?", "", command))[0]
    return re.sub(r"^python -m scripts\.(\w+)", r"python scripts/\1.py", command)


def beginning(command: str) -> str | None:
    """The longest beginning of the command that ELSEWHERE or NOT_HERE knows, if any does."""
    command = bare(command)
    known = (begin for begin in _BEGINNINGS if f"{command} ".startswith(f"{begin} "))
    return max(known, key=len, default=None)


def is_usage(command: str) -> bool:
    """True if it stands for many commands (`sapp plan CHECKPOINT`), or only names a program, a verb, its flags."""
    words = shlex.split(bare(command))
    if any(_PLACEHOLDER.fullmatch(word) for word in words):
        return True
    named = 3 if words[1:2] == ["recipes"] else 2  # words that name the verb
    if words[0] == "sapp":
        return not any(word[0].isalnum() or word[0] in "./" for word in words[named:])
    return bare(command) in (*PROGRAMS, "python -m sapp_cli", "python -P -m sapp_cli")


def has_test(node: str) -> bool:
    """True if there is a test of this node id."""
    file, _, name = node.partition("::")
    return f"\ndef {name}(" in (REPOSITORY / file).read_text(encoding="utf-8")
