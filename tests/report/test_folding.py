"""Layers that are alike in one line, which names them all and no others."""

from hypothesis import given
from hypothesis import strategies as st

from sapp_cli.report.folding import fold, folded_name

NAMES = st.lists(
    st.from_regex(r"[ab]?\.?[0-9]{1,2}\.[xy]\.[0-4]", fullmatch=True), unique=True, min_size=1, max_size=12
)


def folded(names: list[str]) -> list[str]:
    return [folded_name(group) for group in fold([(name, None) for name in names])]


def test_layers_of_one_place_share_a_line() -> None:
    names = [f"layer.{index}.{part}.weight" for index in range(12) for part in ("query", "key")]
    assert folded(["embedding.weight", *names, "head.2.weight"]) == [
        "embedding.weight",
        "layer.{0..11}.query.weight",
        "layer.{0..11}.key.weight",
        "head.2.weight",
    ]


def test_a_layer_that_shows_something_else_stands_alone() -> None:
    rows = [(f"layer.{index}.weight", "dense" if index == 2 else "pruned") for index in range(6)]
    assert [folded_name(group) for group in fold(rows)] == ["layer.{0..1,3..5}.weight", "layer.2.weight"]


def test_experts_fold_by_layer_and_expert_but_only_where_all_are_there() -> None:
    experts = [f"layers.{layer}.experts.{expert}.up" for layer in range(3) for expert in range(4)]
    assert folded(experts) == ["layers.{0..2}.experts.{0..3}.up"]
    assert folded(experts[:-1]) == [f"layers.{layer}.experts.{{0..{3 - layer // 2}}}.up" for layer in range(3)]


def test_a_number_is_a_whole_part_without_leading_zeros() -> None:
    assert folded(["conv1.weight", "conv2.weight", "01.weight", "2.weight", "3.weight"]) == [
        "conv1.weight",
        "conv2.weight",
        "01.weight",
        "{2..3}.weight",
    ]


def test_names_of_several_kinds_are_their_first() -> None:
    assert folded_name(["layer.0.query", "layer.0.key", "layer.1.query"]) == "layer.0.query"
    assert folded_name(["layer.0.a.0", "layer.1.a.1"]) == "layer.0.a.0"


@given(NAMES)
def test_each_name_is_in_one_group(names: list[str]) -> None:
    groups = fold([(name, len(name)) for name in names])
    assert sorted(name for group in groups for name in group) == sorted(names)
    assert len({folded_name(group) for group in groups}) == len(groups)
