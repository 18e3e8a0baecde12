"""A recipe and a command line -> the whole message."""

import textwrap
from pathlib import Path

import pytest

from sapp_cli.errors import RecipeError, UsageError
from sapp_cli.recipe.keys import all_keys
from sapp_cli.recipe.load import Flag, load_recipe
from sapp_cli.recipe.trainer_names import TRAINER_NAMES

COUNT = "a whole number of at least 1"
SHARE_OF_BLOCKS = "a number from 0 to below 1 (Share of the blocks of all pruned layers that is removed)"
MIN_BLOCKS = f"{COUNT} (Layers with fewer blocks stay dense (the paper's rule))"
SEED = "a whole number from 0 to 4294967295 (Of everything drawn at random)"
PHASES = "fine-tune, paper, criteo or a mapping of dense, rounds, last_round, final_sparse, split, last_split, exponent"
RULE = "a mapping of match, dense, sparsity, block_size, min_blocks"
SAY_SOMETHING = "a rule says either `dense: true` or at least one of sparsity, block_size, min_blocks"
NOT_A_KEY = "is not a key such as prune.sparsity or prune.rules[0].match"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def problems(recipe: str, *sets: str, flags: dict[str, Flag] | None = None) -> list[str]:
    Path("r.yaml").write_text(textwrap.dedent(recipe), encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe("r.yaml", sets, flags or {})
    assert str(caught.value) == "\n".join(caught.value.problems)
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("prune.sparsity", "90", f"90 is too large; allowed: {SHARE_OF_BLOCKS}; a share: 0.9, not 90"),
        ("prune.sparsity", "90%", f"'90%' is not allowed; allowed: {SHARE_OF_BLOCKS}; a share: 0.9, not 90%"),
        ("prune.sparsity", "1.0", f"1.0 is too large; allowed: {SHARE_OF_BLOCKS}"),
        ("prune.sparsity", "-0.1", f"-0.1 is too small; allowed: {SHARE_OF_BLOCKS}"),
        ("prune.sparsity", "'0.9'", f"'0.9' is not allowed; allowed: {SHARE_OF_BLOCKS}; numbers stand without quotes"),
        ("prune.sparsity", "true", f"true is not allowed; allowed: {SHARE_OF_BLOCKS}"),
        ("prune.sparsity", "", f"no value; allowed: {SHARE_OF_BLOCKS}; leave it out for the default"),
        ("prune.sparsity", "[0.5]", f"[0.5] is not allowed; allowed: {SHARE_OF_BLOCKS}"),
        ("prune.min_blocks", "0", f"0 is too small; allowed: {MIN_BLOCKS}"),
        (
            "train.log_every",
            "1e2",
            f"100.0 is not allowed; allowed: {COUNT} (Steps between lines of metrics.jsonl); write 100",
        ),
        ("train.seed", "4294967296", f"4294967296 is too large; allowed: {SEED}"),
        (
            "train.clip_norm",
            "0",
            "0 is too small; allowed: a number above 0 or null (Clip the gradient norm of the weights to this)",
        ),
        ("train.deterministic", "yes", "'yes' is not allowed; allowed: true or false; write true"),
        ("train.deterministic", "Off", "'Off' is not allowed; allowed: true or false; write false"),
        ("train.deterministic", "1", "1 is not allowed; allowed: true or false"),
        ("train.device", "cud", "'cud' is unknown; allowed: auto, cpu or cuda; nearest: 'cuda'"),
        ("train.device", "3", "3 is not allowed; allowed: auto, cpu or cuda"),
        (
            "prune.method",
            "Sequential_Atention",
            "'Sequential_Atention' is unknown; allowed: sequential-attention, acdc, powerprop, magnitude or "
            "gradual-magnitude; nearest: 'sequential-attention'",
        ),
        ("prune.phases", "papr", f"'papr' is unknown; allowed: {PHASES}; nearest: 'paper'"),
        ("prune.phases", "7", f"7 is not allowed; allowed: {PHASES}"),
        ("prune.phases", "[1, 2]", f"[1, 2] is not allowed; allowed: {PHASES}"),
        (
            "prune.block_size",
            "[16, 0]",
            f"[16, 0] is not allowed; allowed: {COUNT} or a list of 2 of these (Rows and columns of a block of the "
            "weight seen as out × in: 16, or [16, 32])",
        ),
        (
            "prune.attention.lr",
            "0",
            "0 is too small; allowed: a number above 0, same or null (Learning rate of the logits at its peak)",
        ),
        (
            "optimizer.betas",
            "[0.9]",
            "[0.9] is not allowed; allowed: a list of 2, each a number from 0 to below 1 (Of adam and adamw)",
        ),
        ("data.files.train", "5", "5 is not allowed; allowed: a path, null or a list of these"),
        ("data.files.train", "[5, 6]", "[5, 6] is not allowed; allowed: a path, null or a list of these"),
        ("data.files.train", "''", "'' is not allowed; allowed: a path, null or a list of these"),
        (
            "model.factory",
            "model.py",
            "'model.py' is not allowed; allowed: package.module:callable, file.py:callable or null",
        ),
        ("model.kwargs", "[1]", "[1] is not allowed; allowed: a mapping"),
        (
            "objective.higher_is_better",
            "{f1: high}",
            '{"f1": "high"} is not allowed; allowed: a mapping, each true or false',
        ),
        ("prune.rules", "{match: x}", f'{{"match": "x"}} is not allowed; allowed: a list, each {RULE}'),
        (
            "lr_schedule",
            "",
            "no value; allowed: a mapping of name, warmup, warmup_steps, final; leave it out for the default",
        ),
        ("lr_schedule", "cosine", "'cosine' is not allowed; allowed: a mapping of name, warmup, warmup_steps, final"),
    ],
)
def test_a_value_that_is_not_allowed(key, value, message):
    """The same words for a line of the file and for the command line."""
    nested = "".join(f"{'  ' * depth}{part}:\n" for depth, part in enumerate(key.split("."))).rstrip()
    recipe = f"{nested} {value}\n" + ("  steps: 5\n" if key.startswith("train.") else "train: {steps: 5}\n")
    line = key.count(".") + 1
    assert problems(recipe) == [f"r.yaml:{line}: {key}: {message}"]
    assert problems("train: {steps: 5}", f"{key}={value}") == [f"--set: {key}: {message}"]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("prune.sparsty", "unknown key; nearest: 'sparsity'"),
        ("prune.block-size", "unknown key; nearest: 'block_size'"),
        ("sparsity", "unknown key; did you mean prune.sparsity?"),
        ("match", "unknown key; did you mean prune.rules[].match?"),
        ("train.lr", "unknown key; did you mean optimizer.lr or prune.attention.lr?"),
        ("train.learning_rate", "unknown key; did you mean optimizer.lr?"),
        ("fp16", "unknown key; did you mean train.precision?"),
        ("sparsty", "unknown key; did you mean prune.sparsity?"),
        ("data.files.test", "unknown key; did you mean data.columns.text?"),
        ("data.files.zzz", "unknown key; allowed: train or validation"),
        ("optimiser", "unknown key; nearest: 'optimizer'"),
        ("prune.attention.zzz", "unknown key; allowed: score, lr, decay, betas, clip, revive, pruned or selection"),
    ],
)
def test_unknown_keys(key, message):
    assert problems("train: {steps: 5}", f"{key}=1") == [f"--set: {key}: {message}"]


def test_a_dotted_key_in_the_file_is_written_as_sections():
    assert problems("train: {steps: 5}\nprune.sparsity: 0.5\n") == [
        "r.yaml:2: prune.sparsity: unknown key; write sparsity under prune"
    ]


def test_names_of_other_tools_lead_to_keys_that_exist():
    assert set(TRAINER_NAMES.values()) <= set(all_keys())
    assert not set(TRAINER_NAMES) & {key.rpartition(".")[2] for key in all_keys()}


def test_all_problems_at_once_in_the_order_of_the_file():
    recipe = """\
        optimizer:
          lr: fast
        prune:
          sparsity: 90
          sparsity: 0.9
          atention: {}
          phases:
            dense: 0.1
            rnds: 2
          rules:
            - match: "*"
            - {match: a, dense: true, block_size: [1, 2, 3]}
            - 3
            - {dense: true}
        data:
          columns: {txt: a}
        """
    assert problems(recipe, "prune.min_blocks=0", "bogus", flags={"train.seed": Flag("--seed", -1)}) == [
        "r.yaml: train: give steps or epochs, such as `steps: 1000`",
        "r.yaml:2: optimizer.lr: 'fast' is not allowed; allowed: a number above 0 or auto (Learning rate at its peak)",
        f"r.yaml:4: prune.sparsity: 90 is too large; allowed: {SHARE_OF_BLOCKS}; a share: 0.9, not 90",
        "r.yaml:5: prune.sparsity: given twice, first on line 4; keep one of the two",
        "r.yaml:6: prune.atention: unknown key; nearest: 'attention'",
        f"r.yaml:7: prune.phases.rounds: missing; allowed: {COUNT}",
        "r.yaml:7: prune.phases.last_round: missing; allowed: a number from 0 to 1",
        "r.yaml:7: prune.phases.final_sparse: missing; allowed: a number from 0 to 1",
        "r.yaml:9: prune.phases.rnds: unknown key; nearest: 'rounds'",
        f"r.yaml:11: prune.rules[0]: {SAY_SOMETHING}",
        f"r.yaml:12: prune.rules[1].block_size: [1, 2, 3] is not allowed; allowed: {COUNT}, null or a list of 2 of these"
        " (Rows and columns of a block)",
        f"r.yaml:13: prune.rules[2]: 3 is not allowed; allowed: {RULE}",
        "r.yaml:14: prune.rules[3].match: missing; allowed: text",
        "r.yaml:16: data.columns.txt: unknown key; nearest: 'text'",
        "--set: bogus: no value; write --set KEY=VALUE",
        f"--set: prune.min_blocks: 0 is too small; allowed: {MIN_BLOCKS}",
        f"--seed: train.seed: -1 is too small; allowed: {SEED}",
    ]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (
            "lr_schedule: {name: exponential}",
            "lr_schedule: an exponential schedule never reaches 0; set lr_schedule.final, e.g. 0.01",
        ),
        ("optimizer: {nesterov: true, momentum: 0}", "optimizer: nesterov needs a momentum above 0"),
        ("data: {source: factory}", "data: source factory needs factory, such as data.py:datasets"),
        ("data: {factory: 'a.py:b'}", "data: factory is given, but source is datasets; write source: factory"),
        ("objective: {task: factory}", "objective: task factory needs factory, such as objective.py:loss"),
        (
            "objective: {factory: 'a.py:b'}",
            "objective: factory is given, but task is classification; write task: factory",
        ),
        (
            "prune: {phases: {dense: 0.1, rounds: 1, last_round: 0.5, final_sparse: 0.5}}",
            "prune.phases: dense + last_round + final_sparse is 1.1; with one round it must be 1",
        ),
    ],
)
def test_values_that_do_not_go_together(recipe, message):
    assert problems(f"train: {{steps: 5}}\n{recipe}\n") == [f"r.yaml:2: {message}"]


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("prune.sparsity", "prune.sparsity: no value; write --set KEY=VALUE"),
        ("=3", f"'' {NOT_A_KEY}"),
        ("a..b=3", f"'a..b' {NOT_A_KEY}"),
        (
            "prune.rules[x].match=3",
            f"'prune.rules[x].match' {NOT_A_KEY}",
        ),
        (
            "prune.rules[0].match=*.bias",
            "prune.rules[0].match: a value that begins with * is an alias; put a pattern in quotes",
        ),
        ("prune.rules={a: 1, a: 2}", "prune.rules.a: given twice, first on line 1; keep one of the two"),
        ("prune.rules.2.dense=true", "prune.rules[2].dense: the next item of prune.rules is prune.rules[1]"),
        (
            "prune.rules.dense=true",
            "prune.rules.dense: prune.rules is a list; name an item by its number, such as prune.rules[0]",
        ),
        ("prune.0=1", "prune[0]: prune is not a list; numbers name the items of lists"),
        ("prune.sparsity=0.5\x00", "prune.sparsity: holds a control character; is this a text file?"),
    ],
)
def test_assignments_that_cannot_be_made(assignment, message):
    recipe = "train: {steps: 5}\nprune: {rules: [{match: a, dense: true}]}\n"
    assert problems(recipe, assignment)[0] == f"--set: {message}"


@pytest.mark.parametrize(
    ("recipe", "sets", "flags", "message"),
    [
        ("prune: {}", [], {}, "r.yaml: train: give steps or epochs, such as `steps: 1000`"),
        ("a: 1\ntrain: {seed: 1}", [], {}, "r.yaml:2: train: give steps or epochs, such as `steps: 1000`"),
        (
            "train:\n  epochs: 1\n  steps: 5",
            [],
            {},
            "r.yaml:3: train.steps: train.epochs is given too (r.yaml:2); give one of the two",
        ),
        (
            "train: {steps: 5}",
            ["train.steps=1", "train.epochs=2"],
            {},
            "--set: train.epochs: train.steps is given too (--set); give one of the two",
        ),
        (
            "train: {steps: 5}",
            [],
            {"train.steps": Flag("--steps", 1), "train.epochs": Flag("--epochs", 2.0)},
            "--epochs: train.epochs: train.steps is given too (--steps); give one of the two",
        ),
    ],
)
def test_steps_or_epochs(recipe, sets, flags, message):
    assert message in problems(recipe, *sets, flags=flags)


def test_long_and_odd_values_are_cut_to_one_line():
    odd = f'train: {{steps: 5, device: "{"x" * 500}"}}\nprune: {{"a\\nb\\e{"y" * 500}": 1}}\n'
    first, second = problems(odd)
    assert first == f"r.yaml:1: train.device: '{'x' * 59}…' is unknown; allowed: auto, cpu or cuda"
    assert second.startswith(
        f"r.yaml:2: prune.a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}{'y' * 55}…: unknown key; allowed: "
    )


def test_no_such_recipe(monkeypatch):
    monkeypatch.setattr("sapp_cli.recipe.shipped._folder", Path)
    for name in ("digits", "text"):
        Path(f"{name}.yaml").write_text("# A title\n", encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        load_recipe("digts")
    assert str(caught.value) == (
        "digts: no such recipe, neither a file nor a shipped name; shipped: digits, text; nearest: 'digits'"
    )
