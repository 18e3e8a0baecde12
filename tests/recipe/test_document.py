import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapp_cli.errors import RecipeError
from sapp_cli.recipe.document import MAX_BYTES, Document, read_document


def read(text: str | bytes) -> Document:
    return read_document(text.encode() if isinstance(text, str) else text, "r.yaml")


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("3e-4", 0.0003),
        ("1E5", 100000.0),
        ("-.5", -0.5),
        ("3.", 3.0),
        ("10_000", 10000),
        ("+7", 7),
        ("010", 10),
        ("true", True),
        ("FALSE", False),
        ("yes", "yes"),
        ("on", "on"),
        ("Off", "Off"),
        ("n", "n"),
        ("2024-05-01", "2024-05-01"),
        ("1:30", "1:30"),
        ("0x10", "0x10"),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("3e-4x", "3e-4x"),
        ("'3e-4'", "3e-4"),
        ('"true"', "true"),
        ("~", None),
        ("", None),
        ("[1, a, [2.5]]", [1, "a", [2.5]]),
        ("{b: {c: 1}}", {"b": {"c": 1}}),
        ("|\n  two\n  lines", "two\nlines"),
        ("naïve 😀", "naïve 😀"),
    ],
)
def test_values(written, value):
    read_back = read(f"a: {written}").value["a"]
    assert read_back == value
    assert type(read_back) is type(value)


def test_each_key_and_item_knows_its_line():
    text = """\
train:
  steps: 5
prune:
  rules:

    - match: a
      dense: true
    - {match: b,
       sparsity: 1}
"""
    assert read(text).lines == {
        ("train",): 1,
        ("train", "steps"): 2,
        ("prune",): 3,
        ("prune", "rules"): 4,
        ("prune", "rules", 0): 6,
        ("prune", "rules", 0, "match"): 6,
        ("prune", "rules", 0, "dense"): 7,
        ("prune", "rules", 1): 8,
        ("prune", "rules", 1, "match"): 8,
        ("prune", "rules", 1, "sparsity"): 9,
    }


def test_an_alias_repeats_its_value_and_a_byte_order_mark_is_skipped():
    document = read(b"\xef\xbb\xbfa: &x {b: 1}\nc: *x\n")
    assert document.value == {"a": {"b": 1}, "c": {"b": 1}}
    assert document.lines["c",] == 2


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{inner}'] * 10)}]\n" for inner, name in zip("abcde", "bcdef", strict=True)
)
QUOTES = "; put it in quotes"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "r.yaml: empty; a recipe needs at least data, and train.steps or train.epochs"),
        ("# nothing\n", "r.yaml: empty; a recipe needs at least data, and train.steps or train.epochs"),
        ("- a\n", "r.yaml: holds a list, not sections with keys, such as train: {steps: 1000}"),
        ("hello", "r.yaml: holds 'hello', not sections with keys, such as train: {steps: 1000}"),
        (b"a: 1\nb: \xe4\n", "r.yaml:2: not UTF-8 text; save the file in that encoding"),
        ("a: ä".encode("utf-16"), "r.yaml:1: not UTF-8 text; save the file in that encoding"),
        ("a: 1\nb: \x00\n", "r.yaml:2: holds a control character; is this a text file?"),
        ("train:\n\tsteps: 1\n", "r.yaml:2: a tab; YAML is indented with spaces"),
        ("a: 1\n---\nb: 2\n", "r.yaml:2: a second document (---) begins; a recipe is one document"),
        (
            "a: 1\nb: !!python/object/apply:os.system [ls]\n",
            "r.yaml:2: the tag '!!python/object/apply:os.system' is not allowed; a recipe holds plain values only",
        ),
        ("a: !mine x\n", "r.yaml:1: the tag '!mine' is not allowed; a recipe holds plain values only"),
        ("a: !!int 3\n", "r.yaml:1: the tag '!!int' is not allowed; a recipe holds plain values only"),
        (f"a: {'[' * 50}", "r.yaml:1: nested more than 32 levels deep, or an alias inside itself"),
        ("a: 1\nb: &b [*b]\n", "r.yaml:2: nested more than 32 levels deep, or an alias inside itself"),
        (BOMB, "r.yaml:1: more than 10000 values, those that aliases repeat included"),
        ("a: [" + "1," * 10_001 + "]", "r.yaml:1: more than 10000 values, those that aliases repeat included"),
        ("match: *.weight\n", "r.yaml:1: a value that begins with * is an alias; put a pattern in quotes"),
        ("a: 1\nmatch: *norm\n", "r.yaml:2: a value that begins with * is an alias; put a pattern in quotes"),
        ("a: &\n", "r.yaml:1: a value that begins with & is an anchor; put text in quotes"),
        ("a: @x\n", f"r.yaml:1: a value cannot begin with '@'{QUOTES}"),
        ("a: %x\n", f"r.yaml:1: a value cannot begin with '%'{QUOTES}"),
        ("a: b: c\n", "r.yaml:1: a ': ' where none can stand; see the line above, or put the value in quotes"),
        (
            "prune:\n  sparsity 0.5\n  method: x\n",
            "r.yaml:3: a ': ' where none can stand; see the line above, or put the value in quotes",
        ),
        ("a: 1\nsteps 5\n", "r.yaml:2: a key without ': '; a line reads `key: value`"),
        ("a:\n  b: 1\n c: 2\n", "r.yaml:3: does not fit what stands above; check indentation, quotes and brackets"),
        ("a: [1]]\n", "r.yaml:1: does not fit what stands above; check indentation, quotes and brackets"),
        ("a: 1\nb: [1, 2\nc: 3\n", "r.yaml:2: a bracket that is not closed, or a comma is missing"),
        ("a: {x: 1\n", "r.yaml:1: a bracket that is not closed, or a comma is missing"),
        ("a: 1\nb: 'x\nc: 3\n", "r.yaml:2: a quote that is not closed"),
        ('a: "\\UFFFFFFFF"\n', "r.yaml:1: not valid YAML: an escape that is no character"),
        ('a: "\\q"\n', "r.yaml:1: not valid YAML: found unknown escape character 'q'"),
        ('a: "\\ud800"\n', "r.yaml:1: text with half of a surrogate pair; write the character itself"),
        ("a: 1e999\n", "r.yaml:1: 1e999 is too large for a number; put it in quotes if it is text"),
        (
            "a: 1234567890123456789\n",
            "r.yaml:1: 1234567890123456789… has more than 18 digits; put it in quotes if it is text",
        ),
        ("a" * (MAX_BYTES + 1), "r.yaml: larger than 1 MB; a recipe is a few kilobytes of YAML"),
    ],
)
def test_text_that_cannot_be_read_is_one_problem(text, message):
    with pytest.raises(RecipeError) as caught:
        read(text)
    assert caught.value.problems == (message,)


@pytest.mark.parametrize(
    ("text", "value", "problems"),
    [
        ("a: 1\nb: 2\na: 3\n", {"a": 1, "b": 2}, ["r.yaml:3: a: given twice, first on line 1; keep one of the two"]),
        (
            "a:\n  - b: 1\n    b: 1\n    b: 1\n",
            {"a": [{"b": 1}]},
            [
                "r.yaml:3: a[0].b: given twice, first on line 2; keep one of the two",
                "r.yaml:4: a[0].b: given twice, first on line 2; keep one of the two",
            ],
        ),
        ("a:\n  1: x\n  b: 2\n", {"a": {"b": 2}}, [f"r.yaml:2: a: the key 1 is not text{QUOTES}"]),
        ("true: x\n", {}, [f"r.yaml:1: the key true is not text{QUOTES}"]),
        ("?\n: x\n", {}, ["r.yaml:1: a key is missing before ':'"]),
        ("{{ x }}: 1\n", {}, ["r.yaml:1: a key in brackets; put text that begins with { or [ in quotes"]),
        ("a: 1\n<<: {b: 1}\n", {"a": 1}, ["r.yaml:2: <<: merge keys are not supported; write the keys out"]),
    ],
)
def test_problems_that_leave_the_rest_readable(text, value, problems):
    document = read(text)
    assert document.value == value
    assert list(map(str, document.problems)) == problems


YAML_LIKE = st.text(st.sampled_from(list("ab01.:-?[]{},&*!|>'\"%@#~<\\U\n \t\x00é\u2028")), max_size=60)


@given(st.one_of(st.binary(max_size=200), st.text(max_size=100), YAML_LIKE))
def test_nothing_but_a_recipe_error_is_ever_raised(text):
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    with contextlib.suppress(RecipeError):
        assert isinstance(read(data).value, dict)


def test_pathological_nesting_of_a_megabyte_is_refused_at_once():
    for text in ("[" * 999_990, "- " * 499_990, "{a: " * 249_990, "? " * 499_990):
        with pytest.raises(RecipeError, match="nested more than 32 levels deep"):
            read(text)
