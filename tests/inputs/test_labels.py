"""Names of classes as numbers: those of the recipe, of config.json, of the data, or none, and what is said of them."""

import pytest
from datasets import ClassLabel, Dataset, Features, Sequence

from sapp_cli.errors import CheckpointError, DataError, SettingError
from sapp_cli.inputs.classes import Classes, classes_of, recipes_classes
from sapp_cli.inputs.labels import read_labels
from sapp_cli.inputs.tables import Table

TWELVE = {"label2id": {f"LABEL_{number}": number for number in range(12)}}
NLI = {"id2label": {"0": "contradiction", "1": "entailment", "2": "neutral"}}
PETS = {"id2label": {"0": "cat", "1": "dog"}}


def labels(values, config=None, task="classification", feature=None, recipe=None):
    features = None if feature is None else Features({"label": feature})
    classes = classes_of(config or {})
    if recipe is not None:
        classes = recipes_classes(recipe, classes)
    table = Table(Dataset.from_dict({"label": values}, features=features), "rows.csv")
    return read_labels(table, "label", task, classes)


@pytest.mark.parametrize("write", [int, str, "LABEL_{}".format, "label_{}".format])
def test_generic_names_are_looked_up_as_they_stand(write):
    """Numbered by the alphabet, 10 and 11 came before 2."""
    assert labels([write(number) for number in range(12)], TWELVE).targets.tolist() == list(range(12))


def test_a_class_label_of_another_case_and_order_is_put_in_the_order_of_the_model():
    feature = ClassLabel(names=["ENTAILMENT", "NEUTRAL", "CONTRADICTION"])
    found = labels([0, 2], NLI, feature=feature)
    assert found.targets.tolist() == [1, 0]
    assert found.note == (
        "labels: CONTRADICTION = 0, ENTAILMENT = 1: the numbers of config.json, whatever the case of the names"
    )


def test_names_that_are_those_of_the_model_need_no_word():
    feature = ClassLabel(names=["dog", "cat"])
    found = labels([0, 1, -1], PETS, feature=feature)
    assert (found.targets.tolist(), found.note) == ([1, 0, -1], None)  # −1 is refused later, with its row
    assert labels(["dog", "cat"], PETS).note is None
    assert labels(["no", "yes"], {"label2id": {"no": 0, "yes": 1}}, "binary").targets.tolist() == [0.0, 1.0]


def test_numbers_stay_what_they_are():
    assert labels([3, 0, 7]).targets.tolist() == [3, 0, 7]
    assert labels([True, False]).targets.tolist() == [1, 0]
    assert labels([0.5, 2.0], task="regression").targets.tolist() == [0.5, 2.0]
    assert labels([1, 0], PETS, "binary").targets.tolist() == [1.0, 0.0]
    assert labels([0, 1], PETS, feature=ClassLabel(names=["0", "1"])).targets.tolist() == [0, 1]


def test_digits_that_are_names_of_the_model_are_names():
    stars = {"id2label": {"0": "1", "1": "2", "2": "3"}}
    assert labels(["1", "3"], stars).targets.tolist() == [0, 2]


def test_what_nobody_numbered_is_numbered_by_the_alphabet_with_a_warning():
    found = labels(["dog", "cat", "dog"])
    assert found.targets.tolist() == [1, 0, 1]
    assert found.classes == Classes({"cat": 0, "dog": 1}, "the training rows")
    assert found.note == (
        "warning: labels: cat = 0, dog = 1: numbered by the alphabet, as nothing else says; data.labels sets other numbers"
    )


def test_numbers_of_the_data_are_shown_if_the_model_names_no_classes():
    found = labels([0, 1], {"num_labels": 2}, feature=ClassLabel(names=["pear", "apple"]))
    assert found.targets.tolist() == [0, 1]
    assert found.note == "labels: pear = 0, apple = 1: the data's own numbers, as config.json names no classes"


def test_the_recipe_numbers_labels():
    found = labels(["bad", "good", "bad"], {"num_labels": 2}, recipe={"bad": 1, "good": 0})
    assert (found.targets.tolist(), found.note) == ([1, 0, 1], None)
    assert labels([1, 5], {"num_labels": 5}, recipe={"1": 0, "5": 4}).targets.tolist() == [0, 4]
    feature = ClassLabel(names=["yes", "no"])
    assert labels([0, 1], NLI, feature=feature, recipe={"yes": 1, "no": 0}).targets.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("values", "config", "task", "message"),
    [
        (["cat", "dgo"], PETS, "classification", "has 'dgo' in row 1 (counted from 0), which is not a class; labels: cat, dgo; "
         "config.json: cat = 0, dog = 1; nearest: 'dog'; correct the rows, or map them with data.labels: {name: number}"),
        (["LABEL_0", "LABEL_1"], PETS, "classification", "has 'LABEL_0' in row 0 (counted from 0), which is not a class; "
         "labels: LABEL_0, LABEL_1; config.json: cat = 0, dog = 1; correct the rows, or map them with data.labels: {name: "
         "number}"),
        ([0.0, 1.5], PETS, "classification", "holds 0.0 in row 0 (counted from 0); objective.task classification takes whole "
         "numbers or names of classes; for numbers to be met set objective.task regression"),
        ([0, None], PETS, "classification", "is empty in row 1 (counted from 0)"),
        ([0.0, float("inf")], PETS, "regression", "is inf in row 1 (counted from 0), which is not a finite number"),
        (["1.5"], PETS, "regression", "is '1.5' in row 0 (counted from 0), which is not a finite number"),
        ([0, 2], PETS, "binary", "is 2 in row 1 (counted from 0); objective.task binary takes 0 to 1"),
        ([[1, 0], [0, 2]], PETS, "binary", "is [0, 2] in row 1 (counted from 0); objective.task binary takes 0 to 1"),
        ([[1, 0], [0]], PETS, "binary", "has 1 numbers in row 1 (counted from 0), expected 2, one for each label"),
        ([["cat"], ["dog", "cow"]], PETS, "binary", "has 'cow' in row 1 (counted from 0), which is not a class; config.json: "
         "cat = 0, dog = 1; correct the rows, or map them with data.labels: {name: number}"),
        ([[1, 0]], PETS, "classification", "holds [1, 0] in row 0 (counted from 0); objective.task classification takes one "
         "class a row; for several labels a row set objective.task binary, for numbers to be met regression"),
    ],
)  # fmt: skip
def test_labels_that_cannot_be(values, config, task, message):
    with pytest.raises(DataError) as error:
        labels(values, config, task)
    assert str(error.value) == f"rows.csv: column 'label' {message}"


def test_names_and_a_model_that_names_none_are_both_shown():
    with pytest.raises(DataError) as error:
        labels(["positive", "negative", "neutral"], {"num_labels": 3})
    assert str(error.value) == (
        "rows.csv: column 'label': labels: negative, neutral, positive; config.json: LABEL_0 = 0, LABEL_1 = 1, LABEL_2 = 2; "
        "map them with data.labels: {negative: 0, neutral: 1, positive: 2}, or with the other numbers that the model was "
        "trained with"
    )


def test_a_class_named_anew_in_the_validation_rows():
    known = labels(["dog", "cat"]).classes
    with pytest.raises(
        DataError, match=r"'cow' in row 0 .* not a class; labels: cow; the training rows: cat = 0, dog = 1"
    ):
        read_labels(Table(Dataset.from_dict({"label": ["cow"]}), "rows.csv"), "label", "classification", known)


@pytest.mark.parametrize(
    ("values", "feature"),
    [
        ([["dog"], ["cat", "DOG"], []], None),
        ([[0], [1, 0], []], Sequence(ClassLabel(names=["dog", "cat"]))),
        ([[0, 1], [1, 1], [0, 0]], None),
    ],
)
def test_several_labels_a_row(values, feature):
    found = labels(values, PETS, "binary", feature)
    assert found.targets.tolist() == [[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]


def test_names_of_several_labels_that_nobody_numbered():
    found = labels([["b", "a"], ["b"]], task="binary")
    assert found.targets.tolist() == [[1.0, 1.0], [0.0, 1.0]]
    assert found.note.startswith("warning: labels: a = 0, b = 1: numbered by the alphabet")


def test_several_numbers_to_be_met():
    assert labels([[0.5, 2], [1, -3]], task="regression").targets.tolist() == [[0.5, 2.0], [1.0, -3.0]]


def test_classes_of_a_config():
    assert classes_of({}) is None
    assert classes_of({"label2id": {"no": 0, "yes": "1"}}).numbers == {"no": 0, "yes": 1}
    assert classes_of({"id2label": {"0": "no", "1": "yes"}}).numbers == {"no": 0, "yes": 1}
    assert classes_of({"num_labels": 3}).generic
    assert classes_of({"architectures": ["BertForSequenceClassification"]}).numbers == {"LABEL_0": 0, "LABEL_1": 1}
    halves = {"label2id": {"LABEL_0": 0, "LABEL_1": 1}, "id2label": {"0": "no", "1": "yes"}}
    assert classes_of(halves).numbers == {"no": 0, "yes": 1}
    turned = {"label2id": {"no": 0, "yes": 1}, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}}
    assert classes_of(turned).numbers == {"no": 0, "yes": 1}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"label2id": {"no": 0, "yes": 1}, "id2label": {"0": "yes", "1": "no"}},
            "config.json contradicts itself: label2id has no = 0, yes = 1; id2label has yes = 0, no = 1; correct one of them",
        ),
        (
            {"num_labels": 3, **PETS},
            "config.json contradicts itself: num_labels is 3, and id2label has 2 classes: cat = 0, dog = 1; correct one of "
            "them",
        ),
    ],
)
def test_a_config_that_contradicts_itself(config, message):
    with pytest.raises(CheckpointError) as error:
        classes_of(config)
    assert str(error.value) == message


def test_a_recipe_that_contradicts_the_model():
    with pytest.raises(SettingError) as error:
        recipes_classes({"Cat": 1, "mouse": 0}, classes_of(PETS))
    problem = (
        "Cat is 1, but config.json has Cat = 0; leave them out here, or correct id2label and label2id of config.json"
    )
    assert error.value.problems == (("data.labels", problem),)
