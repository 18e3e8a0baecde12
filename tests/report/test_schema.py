"""The JSON Schema: what is published is what the code has, and real documents fit."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from sapp_cli.report.schema import sparsity_schema
from tests.checkpoint.files import save_floats
from tests.report.outputs import count_work, write_output

PUBLISHED = Path(__file__).resolve().parents[2] / "docs/sparsity.schema.json"


@pytest.fixture(scope="module")
def validator():
    jsonschema.Draft202012Validator.check_schema(sparsity_schema())
    return jsonschema.Draft202012Validator(sparsity_schema())


def test_the_published_schema_is_this_one():
    assert PUBLISHED.read_text() == json.dumps(sparsity_schema(), indent=2, ensure_ascii=False) + "\n"


def test_reports_fit(validator, sapp, tmp_path):
    foreign = save_floats(
        tmp_path / "m.safetensors", **{"a.weight": np.ones((2, 2)), "b.experts.up": np.ones((2, 2, 2))}
    )
    out = write_output(tmp_path / "out")
    for arguments in ([foreign], [out], [out, "--against", foreign], [out / "sparse", "--block-size", "1x2"]):
        validator.validate(sapp("report", *arguments, "--json").json)


def test_what_is_left_to_compute_fits(validator, sapp, tmp_path):
    document = sapp("report", count_work(write_output(tmp_path / "out")), "--json").json
    validator.validate(document)
    assert [layer["multiply_adds_share"] for layer in document["layers"]] == [0.4, 0.6]
    assert (document["model"]["multiply_adds"], document["model"]["kept_multiply_adds"]) == (360, 200)


def test_plans_fit(validator, sapp, digits):
    ran = sapp("plan", digits / "dense.safetensors", "-r", digits / "recipe.yaml", "--json")
    validator.validate(ran.json)
    assert ran.json["schedule"]["steps"] == 60


def test_the_schema_refuses_what_is_no_report(validator, sapp, tmp_path):
    document = sapp("report", write_output(tmp_path / "out"), "--json").json
    for key, value in (("sparsity", 1.2), ("kept_blocks", -1), ("block", [2]), ("pruned", None), ("layout", "spiral")):
        layers = [{**document["layers"][0], key: value}]
        with pytest.raises(jsonschema.ValidationError):
            validator.validate({**document, "layers": layers})
    with pytest.raises(jsonschema.ValidationError):
        validator.validate({**document, "version": 2})
