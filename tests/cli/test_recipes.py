"""`sapp recipes`: listing, copying, and beginning a recipe for a checkpoint."""

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from scripts.make_checkpoints import make_bert, make_gpt2, make_llama, make_resnet, make_vit


@pytest.mark.parametrize(
    ("make", "task", "output_layers"),
    [
        (make_bert, "classification", ["classifier.weight"]),
        (lambda folder: make_bert(folder, head="ForMaskedLM"), "masked-lm", ["cls.predictions.transform.dense.weight"]),
        (make_gpt2, "causal-lm", []),
        (make_llama, "causal-lm", ["lm_head.weight"]),
        (make_vit, "classification", ["classifier.weight"]),
        (make_resnet, "classification", ["classifier.1.weight"]),
    ],
)
def test_plan_accepts_a_new_recipe_as_it_is(sapp, tmp_path, make, task, output_layers):
    make(tmp_path / "model")
    ran = sapp("recipes", "init", tmp_path / "model", "-o", tmp_path / "new.yaml")
    assert (ran.code, ran.out) == (0, f"{tmp_path / 'new.yaml'}\n{tmp_path / 'recipe.schema.json'}\n")
    recipe = yaml.safe_load((tmp_path / "new.yaml").read_text())
    assert recipe["objective"]["task"] == task
    assert [rule["match"] for rule in recipe["prune"].get("rules", [])] == output_layers
    plan = sapp("plan", tmp_path / "model", "-r", tmp_path / "new.yaml", "--json", "--set", "prune.min_blocks=20")
    assert plan.code == 0, plan.err
    dense = {layer["name"] for layer in plan.json["layers"] if layer["reason"].startswith("rule")}
    assert dense == set(output_layers)


def test_a_bare_file_gets_a_factory_to_fill_in(sapp, tmp_path):
    save_file({"first.weight": np.ones((160, 160), np.float32)}, tmp_path / "net.safetensors")
    ran = sapp("recipes", "init", tmp_path / "net.safetensors")
    assert ran.out.startswith("# net.safetensors: classification, 80 % in 16×16 blocks\n")
    recipe = yaml.safe_load(ran.out)
    assert recipe["model"] == {"factory": "model.py:build"}
    assert recipe["data"]["source"] == "tensors"
    assert "  #    8×8 : 100% of the matrix weights lie in layers of 100 blocks and more\n" in ran.out
    assert "  #   32×32:   0% of the matrix weights lie in layers of 100 blocks and more\n" in ran.out


def test_editors_find_the_schema_of_a_new_recipe(sapp, tmp_path):
    """It lies beside the file, and is left as it is where one is there; what is printed has nothing beside it."""
    save_file({"first.weight": np.ones((160, 160), np.float32)}, tmp_path / "net.safetensors")
    printed = sapp("recipes", "init", tmp_path / "net.safetensors").out
    recipe, schema = tmp_path / "new.yaml", tmp_path / "recipe.schema.json"
    ran = sapp("recipes", "init", tmp_path / "net.safetensors", "-o", recipe, "--json")
    assert recipe.read_text() == f"# yaml-language-server: $schema=recipe.schema.json\n{printed}"
    assert ran.json == {"written": [str(recipe), str(schema)], "recipe": recipe.read_text()}
    assert schema.read_text() == sapp("recipes", "schema").out
    schema.write_text("mine")
    ran = sapp("recipes", "init", tmp_path / "net.safetensors", "-o", recipe, "--overwrite")
    assert ran.out == f"{recipe}\n"
    assert schema.read_text() == "mine"


def test_names_out_of_a_file_cannot_become_yaml(sapp, tmp_path):
    name = 'fc."}]\nmodel: {factory: "os:system"}\n#'
    save_file({name: np.ones((160, 160), np.float32)}, tmp_path / "net.safetensors")
    recipe = yaml.safe_load(sapp("recipes", "init", tmp_path / "net.safetensors").out)
    assert recipe["model"] == {"factory": "model.py:build"}
    assert recipe["prune"]["rules"] == [{"match": name, "dense": True}]


def test_a_file_that_is_there_stays(sapp, tmp_path):
    save_file({"first.weight": np.ones((160, 160), np.float32)}, tmp_path / "net.safetensors")
    (tmp_path / "mine.yaml").write_text("mine")
    arguments = ("recipes", "init", tmp_path / "net.safetensors", "-o", tmp_path / "mine.yaml")
    ran = sapp(*arguments)
    assert ran.code == 2
    assert ran.err == (
        f"error: {tmp_path / 'mine.yaml'}: exists already; give another name with -o, or --overwrite to replace it\n"
    )
    assert (tmp_path / "mine.yaml").read_text() == "mine"
    assert sapp(*arguments, "--overwrite").code == 0


def test_listing_and_copying(sapp, tmp_path):
    listed = sapp("recipes", "ls", "--json").json
    assert {row["name"] for row in listed} >= {"digits", "sentence-embedding", "imagenet-resnet50"}
    ran = sapp("recipes", "cp", "digits", tmp_path / "mine.yaml")
    assert (tmp_path / "recipe.schema.json").read_text() == sapp("recipes", "schema").out
    names = ("mine.yaml", "digits.py", "recipe.schema.json")
    assert ran.out.splitlines() == [str(tmp_path / name) for name in names]


@pytest.mark.parametrize("verb", [("ls",), ("cp", "digits"), ("init", "net.safetensors"), ("schema",)], ids=" ".join)
def test_more_is_said_on_stderr_when_asked(sapp, tmp_path, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    save_file({"weight": np.zeros((64, 64), np.float32)}, tmp_path / "net.safetensors")
    rest = ("--overwrite",) if verb[0] == "cp" else ()
    sapp("recipes", *verb, *rest)  # afterwards everything is there already
    ran, talkative, both = (sapp("recipes", *verb, *rest, *flags) for flags in ((), ("-v",), ("-v", "-q")))
    assert ran.out == talkative.out == both.out
    assert ran.err == both.err == ""
    assert talkative.err
