"""What is written loads again to the same, and strange input never raises anything but our errors."""

import json
import tempfile
from pathlib import Path

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sapp_cli.errors import RecipeError
from sapp_cli.recipe.keys import all_keys
from sapp_cli.recipe.load import Flag, load_recipe

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
WORDS = st.sampled_from(["on", "yes", "3e-4", "1_0", "null", "2020-01-01", "1:30", "*a", "a: b", "a #b", "-", "", " "])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**17), 10**17),
    st.floats(allow_nan=False, allow_infinity=False),
    TEXT,
    WORDS,
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT | WORDS, inner, max_size=3), max_leaves=6
)
KWARGS = st.dictionaries(TEXT | WORDS, VALUES, max_size=3)
POSITIVE = st.floats(1e-9, 1e9)
SHARES = st.floats(0, 1, exclude_max=True)
SIDES = st.integers(1, 64)
BLOCKS = SIDES | st.tuples(SIDES, SIDES).map(list)
NAMES = TEXT.filter(lambda text: text and "\0" not in text)
RULES = st.fixed_dictionaries({"match": NAMES, "sparsity": SHARES}, optional={"block_size": BLOCKS}) | st.builds(
    lambda name: {"match": name, "dense": True}, NAMES
)
RECIPES = st.fixed_dictionaries(
    {"train": st.fixed_dictionaries({"steps": st.integers(1, 10**9)}) | st.fixed_dictionaries({"epochs": POSITIVE})},
    optional={
        "model": st.fixed_dictionaries({}, optional={"kwargs": KWARGS, "factory": st.just("a b/m.py:f")}),
        "data": st.fixed_dictionaries(
            {"files": st.fixed_dictionaries({"train": st.lists(NAMES, min_size=1, max_size=3) | NAMES})},
            optional={"columns": st.fixed_dictionaries({"text": TEXT}), "kwargs": KWARGS},
        ),
        "objective": st.fixed_dictionaries({"higher_is_better": st.dictionaries(TEXT, st.booleans(), max_size=2)}),
        "optimizer": st.fixed_dictionaries({"lr": POSITIVE, "betas": st.tuples(SHARES, SHARES).map(list)}),
        "prune": st.fixed_dictionaries(
            {},
            optional={
                "block_size": BLOCKS,
                "sparsity": SHARES,
                "phases": st.sampled_from(
                    ["paper", {"dense": 0.05, "rounds": 3, "last_round": 0.3, "final_sparse": 0.55, "exponent": 0}]
                ),
                "attention": st.fixed_dictionaries({"lr": st.just("same") | POSITIVE | st.none()}),
                "rules": st.lists(RULES, max_size=2),
            },
        ),
    },
)


@settings(max_examples=60, deadline=None)
@given(RECIPES)
def test_a_written_recipe_loads_to_an_equal_one(values):
    with tempfile.TemporaryDirectory() as folder:
        source, written, annotated = (Path(folder, name, "r.yaml") for name in ("source", "written", "annotated"))
        for path in (source, written, annotated):
            path.parent.mkdir()
        source.write_text(json.dumps(values, ensure_ascii=True), encoding="utf-8")
        loaded = load_recipe(source)
        written.write_text(loaded.dump(), encoding="utf-8")
        annotated.write_text(loaded.dump(with_origins=True), encoding="utf-8")
        again = load_recipe(written)
        assert again.recipe == loaded.recipe
        assert again.dump() == loaded.dump()  # types too: 1, 1.0 and true are equal in Python
        assert load_recipe(annotated).dump() == loaded.dump()


def test_the_annotated_recipe_names_the_origin_of_each_value(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("train:\n  epochs: 1\nprune:\n  rules:\n    - {match: '*.bias', dense: true}\n", encoding="utf-8")
    sets = ["optimizer.betas.1=0.99", "model.kwargs={on: yes}", f"data.files.train={'/long' * 9}"]
    printed = load_recipe(path, sets, {"train.steps": Flag("--steps", 7)}).dump(with_origins=True).splitlines()
    assert printed[:8] == [
        "model:",
        "  factory: null                  # default",
        "  kwargs:",
        "    'on': 'yes'                  # --set",
        "data:",
        "  source: datasets               # default",
        "  files:",
        f"    train: {'/long' * 9}  # --set",
    ]
    assert "  betas: [0.9, 0.99]             # default, --set" in printed
    assert "  steps: 7                       # --steps" in printed
    assert "  epochs: null                   # --steps" in printed
    assert "  score: null                    # default: fisher" in printed
    assert "  allocation: null               # default: balanced" in printed
    assert printed[-6:-3] == [
        "  rules:",
        "    - match: '*.bias'            # r.yaml:5",
        "      dense: true                # r.yaml:5",
    ]


def test_every_key_is_written_and_any_yaml_reader_reads_the_same(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        "train: {steps: 5}\nmodel: {kwargs: {a: 'on', b: '3e-4', c: 1e-9, d: '2020-01-01'}}", encoding="utf-8"
    )
    loaded = load_recipe(path)
    assert yaml.safe_load(loaded.dump()) == json.loads(loaded.recipe.model_dump_json())


KEYS = st.sampled_from([key.replace("[]", ".0") for key in all_keys()]) | st.text(max_size=8)
ODD = st.text(st.sampled_from(list("ab01.:-?[]{},&*!|'\"%~ \n\x00é")), max_size=12) | SCALARS.map(json.dumps)


def complaints(path: Path, sets: list[str], flags: dict[str, Flag]) -> tuple[str, ...]:
    try:
        load_recipe(path, sets, flags)
    except RecipeError as error:
        return error.problems
    return ()


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=80) | RECIPES.map(lambda values: json.dumps(values).encode()), st.data())
def test_strange_input_raises_our_errors_only(data, draw):
    sets = draw.draw(st.lists(st.tuples(KEYS, ODD).map("=".join) | ODD, max_size=3))
    known = st.sampled_from([key for key in all_keys() if "[]" not in key])
    flags = draw.draw(
        st.dictionaries(known, st.builds(Flag, st.just("--flag"), VALUES | st.floats() | st.text()), max_size=2)
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "r.yaml")
        path.write_bytes(data)
        for line in complaints(path, sets, flags):
            assert line.startswith((str(path), "--set: ", "--flag: "))
            assert "Input should" not in line, "pydantic's words are translated"
