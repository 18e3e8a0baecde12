"""`sapp plan` says what a run does with its masks other than by default, and nothing where it does not."""

import pytest

LITERAL = [
    "attention.pruned: literal: weight decay, momentum and the softmax still move pruned weights and logits",
    "sparse phases compute densely: attention.pruned: literal",
]
BEFORE = "attention.selection: before-update: the first step after a dense phase ranks by A before its last update"
ANEW = "monotone: false: each step of a sparsification phase chooses anew among all blocks"


@pytest.mark.parametrize(
    ("settings", "choices"),
    [
        ([], []),
        (["prune.attention.pruned=literal"], LITERAL),
        (["prune.attention={score: attention, selection: before-update}"], [BEFORE]),
        (["prune.monotone=false"], [ANEW]),
        (["prune.method=magnitude", "prune.monotone=false", "prune.attention.pruned=literal"], []),
    ],
)
def test_choices_about_masks(sapp, digits, settings, choices):
    sets = [part for setting in settings for part in ("--set", setting)]
    command = ("plan", digits / "dense.safetensors", "-r", digits / "recipe.yaml", "--steps", "400", *sets)
    assert sapp(*command, "--json").json["choices"] == choices
    lines = sapp(*command).out.splitlines()
    assert [line for line in lines if line in {*LITERAL, BEFORE, ANEW}] == choices


def test_only_frozen_blocks_that_return_are_remembered(sapp, digits):
    """With two rounds a copy of the pruned weights is kept for the dense phase; with `literal` there is none."""
    command = (
        "plan",
        digits / "dense.safetensors",
        "-r",
        digits / "recipe.yaml",
        "--json",
        "--set",
        "prune.phases=paper",
    )
    frozen = sapp(*command).json["memory"]
    assert frozen["pruned_weights"] == round(0.9 * 4 * (512 * 64 + 512 * 512))  # bytes of both pruned layers
    assert sapp(*command, "--set", "prune.attention.pruned=literal").json["memory"]["pruned_weights"] == 0


def test_the_timetable_shows_how_a_round_is_shared(sapp, digits):
    shares = "dense: 0.5, rounds: 2, last_round: 0.15, final_sparse: 0.15, split: [0, 1, 1], last_split: [0, 1, 1]"
    command = ("plan", digits / "dense.safetensors", "-r", digits / "recipe.yaml", "--steps", "200", "--json")
    schedule = sapp(*command, "--set", f"prune.phases={{{shares}}}").json["schedule"]
    assert [(phase["phase"], phase["first_step"] - 1, phase["last_step"]) for phase in schedule["phases"]] == [
        ("dense", 0, 100),
        ("sparse", 100, 120),
        ("dense", 120, 140),
        ("sparse", 140, 155),
        ("dense", 155, 170),
        ("sparse", 170, 200),
    ]
