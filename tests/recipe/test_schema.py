"""Every key speaks for itself, and editors are told the same as the loader holds."""

from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from sapp_cli.recipe.document import read_document
from sapp_cli.recipe.keys import all_keys, field_at, section_in
from sapp_cli.recipe.names import key_path
from sapp_cli.recipe.schema import recipe_schema
from sapp_cli.recipe.wording import allowed

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = recipe_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_shipped_recipes_are_valid_in_an_editor(path, validator):
    validator.validate(read_document(path.read_bytes(), path.name).value)


@pytest.mark.parametrize(
    "text",
    [
        "prune: {sparsty: 0.5}",
        "sparsity: 0.5",
        "data: {columns: {txt: a}}",
        "prune: {rules: [{match: a, dens: true}]}",
        "prune: {rules: [{dense: true}]}",
        "prune: {phases: {dense: 0.1, rounds: 1, last_round: 0.2, final_sparse: 0.7, c: 1}}",
        "prune: {attention: {lr: [1]}}",
        "prune: {sparsity: 1}",
        "prune: {block_size: [1, 2, 3]}",
        "train: {device: gpu}",
        "train: {steps: '5'}",
        "optimizer: {lr: 0}",
        "model: {factory: model.py}",
    ],
)
def test_what_the_loader_refuses_an_editor_marks(text, validator):
    with pytest.raises(ValidationError):
        validator.validate(yaml.safe_load(text))


@pytest.mark.parametrize("key", all_keys())
def test_every_key_is_described(key):
    _, field = field_at(key_path(key.replace("[]", ".0")))
    assert field.description or section_in(field.annotation).__doc__
    assert allowed(field.annotation, field.metadata)
