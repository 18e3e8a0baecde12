"""`sapp recipes`: listing, copying, and beginning a recipe for a checkpoint."""

import json
from fnmatch import fnmatch

import numpy as np
import pytest
import torch
import transformers
import yaml
from safetensors.numpy import load_file, save_file

from sapp_cli.recipe.shipped import find_recipe
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


def make_roomy_bert(folder):
    """Wide enough for a hundred blocks of 16×16 in every layer, as those that people have."""
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=192, num_hidden_layers=1, num_attention_heads=2, intermediate_size=384
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder)


def values(section, *above):
    """{dotted key: value} of a recipe as its file has it."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from values(value, *above, key)
        else:
            yield ".".join((*above, key)), value


@pytest.mark.parametrize(
    ("make", "shipped", "smaller"),
    [
        (make_roomy_bert, "text-classification", {}),
        (make_vit, "image-classification", {"prune.block_size": 8}),
        (
            make_gpt2,
            "causal-lm",
            {"prune.block_size": 16, "data.max_length": 128},
        ),  # as large as its layers and texts are
    ],
    ids=["text", "images", "language"],
)
def test_a_new_recipe_has_the_values_of_the_shipped_one(sapp, tmp_path, make, shipped, smaller):
    make(tmp_path / "model")
    new = dict(values(yaml.safe_load(sapp("recipes", "init", tmp_path / "model").out)))
    told = dict(values(yaml.safe_load(find_recipe(shipped).read_text())))
    rules, (pattern,) = new.pop("prune.rules", []), told.pop("prune.rules")  # names of this checkpoint; any of its kind
    assert all(fnmatch(rule["match"], pattern["match"]) for rule in rules)
    assert new == told | smaller


@pytest.mark.parametrize(
    ("head", "absent"), [("ForSequenceClassification", "classifier.weight"), ("ForMaskedLM", "cls.predictions.bias")]
)
def test_a_model_without_its_head_is_not_its_own_teacher(sapp, tmp_path, head, absent):
    """Its outputs would be random, as those of a pretrained body that config.json calls a classifier."""
    make_bert(tmp_path / "body", head="Model")
    config = tmp_path / "body" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"architectures": [f"Bert{head}"]}))
    make_bert(tmp_path / "whole", head=head)
    of_body, of_whole = (sapp("recipes", "init", tmp_path / name).out for name in ("body", "whole"))
    assert yaml.safe_load(of_whole)["objective"]["distill"]["weight"] > 0
    assert "distill" not in yaml.safe_load(of_body)["objective"]
    assert f'  # no distill: the file has no "{absent}", so the dense model has nothing to teach yet' in of_body.split(
        "\n"
    )


def test_a_tied_head_is_in_the_file(sapp, tmp_path):
    make_gpt2(tmp_path / "model")
    assert not any(name.startswith("lm_head") for name in load_file(tmp_path / "model" / "model.safetensors"))
    assert yaml.safe_load(sapp("recipes", "init", tmp_path / "model").out)["objective"]["distill"]["weight"] == 0.5


def test_a_head_that_the_class_does_not_know_gets_no_rule(sapp, tmp_path):
    """As in bert-base-uncased, whose file has the head of BertForPreTraining and whose class is BertForMaskedLM."""
    make_bert(tmp_path / "model", head="ForMaskedLM")
    file = tmp_path / "model" / "model.safetensors"
    save_file({**load_file(file), "cls.seq_relationship.weight": np.ones((2, 96), np.float32)}, file)
    assert sapp("recipes", "init", tmp_path / "model", "-o", tmp_path / "new.yaml").code == 0
    rules = yaml.safe_load((tmp_path / "new.yaml").read_text())["prune"]["rules"]
    assert [rule["match"] for rule in rules] == ["cls.predictions.transform.dense.weight"]
    planned = sapp("plan", tmp_path / "model", "-r", tmp_path / "new.yaml")
    assert planned.code == 0, planned.err


NETWORK = """
from torch import nn

def build():
    return nn.ModuleDict({"rnn": nn.LSTM(8, 32), "gru": nn.GRU(32, 16), "h": nn.Linear(32, 32), "fc": nn.Linear(32, 4)})
"""


def test_a_state_dict_alone_needs_a_factory_and_says_what_stays_dense(sapp, tmp_path):
    scope = {}
    exec(NETWORK, scope)
    state = scope["build"]().state_dict()
    torch.save({"net": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "net.pt")
    recipe = tmp_path / "new.yaml"
    assert sapp("recipes", "init", tmp_path / "net.pt", "-o", recipe).code == 0
    lines = recipe.read_text().splitlines()
    # LSTM: 4·32·(8 + 32) = 5,120; GRU: 3·16·(32 + 16) = 2,304; 1,152 of the two Linears
    assert "  #   'module.rnn' (LSTM): 5,120 weights, 60% of the matrix weights, stay dense" in lines
    assert "  #   'module.gru' (GRU): 2,304 weights, 27% of the matrix weights, stay dense" in lines
    line = lines.index("  factory: model.py:build") + 1
    planned = sapp("plan", tmp_path / "net.pt", "-r", recipe)
    assert planned.code == 2
    assert planned.err.startswith(
        f"error: {recipe}:{line}: model.factory: '{tmp_path / 'model.py'}:build': there is no such"
    )
    (tmp_path / "model.py").write_text(NETWORK)
    planned = sapp("plan", tmp_path / "net.pt", "-r", recipe, "--json")
    assert planned.code == 0, planned.err
    assert {layer["name"] for layer in planned.json["layers"] if layer["pruned"]} == {"module.h.weight"}


SMALL = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128}
T5 = (
    "T5ForConditionalGeneration",
    {
        "d_model": 64,
        "d_ff": 256,
        "d_kv": 32,
        "num_layers": 1,
        "num_heads": 2,
        "vocab_size": 60,
        "decoder_start_token_id": 0,
    },
)
SOUND = ("Wav2Vec2ForSequenceClassification", {**SMALL, "conv_dim": [16] * 7, "num_conv_pos_embedding_groups": 4})


@pytest.mark.parametrize(
    ("architecture", "settings", "task", "data"),
    [
        (*T5, "factory", {"source": "tensors"}),
        ("BertForTokenClassification", {**SMALL, "vocab_size": 60}, "factory", {"source": "tensors"}),
        (*SOUND, "classification", {"source": "tensors"}),
        ("ViTModel", {**SMALL, "image_size": 16, "patch_size": 8}, "embedding-distillation", {"format": "imagefolder"}),
        ("BertModel", {**SMALL, "vocab_size": 60}, "embedding-distillation", {"format": "text"}),
        (
            "CLIPModel",
            {"text_config": SMALL, "vision_config": {**SMALL, "image_size": 32}},
            "factory",
            {"source": "tensors"},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_model_takes_and_gives_decides_on_the_data(sapp, tmp_path, architecture, settings, task, data):
    cls = getattr(transformers, architecture)
    cls(cls.config_class(**settings)).save_pretrained(tmp_path / "model")
    recipe = tmp_path / "new.yaml"
    assert sapp("recipes", "init", tmp_path / "model", "-o", recipe).code == 0
    begun = yaml.safe_load(recipe.read_text())
    assert begun["objective"]["task"] == task
    assert {key: begun["data"].get(key) for key in data} == data
    planned = sapp("plan", tmp_path / "model", "-r", recipe)
    assert planned.code == 0, planned.err


LOSS = """
def loss(model, batch):
    answer = model(input_ids=batch["question"], labels=batch["answer"])
    return {"loss": answer.loss, "metrics": {"loss": (answer.loss.detach() * len(batch["answer"]), len(batch["answer"]))}}
"""


def test_a_model_of_another_kind_is_pruned_by_its_new_recipe_and_a_loss_of_ones_own(sapp, tmp_path):
    cls = getattr(transformers, T5[0])
    cls(cls.config_class(**T5[1])).save_pretrained(tmp_path / "model")
    recipe = tmp_path / "new.yaml"
    sapp("recipes", "init", tmp_path / "model", "-o", recipe)
    (tmp_path / "objective.py").write_text(LOSS)
    for name, count in (("train", 32), ("validation", 8)):
        tokens = np.random.default_rng(count).integers(2, 60, (count, 6))
        np.savez(tmp_path / f"{name}.npz", question=tokens, answer=tokens[:, ::-1].copy())
    ran = sapp(
        "prune", tmp_path / "model", "-r", recipe, "-o", tmp_path / "out", "--steps", 20, "--set", "data.batch_size=8"
    )
    assert ran.code == 0, ran.err
    pruned = [layer for layer in sapp("report", tmp_path / "out", "--json").json["layers"] if layer["pruned"]]
    assert {layer["name"].split(".")[0] for layer in pruned} == {"encoder", "decoder"}
    assert sum(layer["kept_blocks"] for layer in pruned) / sum(layer["blocks"] for layer in pruned) == pytest.approx(
        0.2, abs=0.01
    )


def test_a_sound_model_is_pruned_on_its_processors_arrays(sapp, tmp_path):
    cls = getattr(transformers, SOUND[0])
    cls(cls.config_class(**SOUND[1])).save_pretrained(tmp_path / "model")
    recipe = tmp_path / "new.yaml"
    sapp("recipes", "init", tmp_path / "model", "-o", recipe)
    noise = np.random.default_rng(0)
    for name, count in (("train", 32), ("validation", 8)):
        inputs = noise.normal(size=(count, 4000)).astype(np.float32)
        np.savez(tmp_path / f"{name}.npz", inputs=inputs, targets=noise.integers(0, 2, count))
    ran = sapp(
        "prune", tmp_path / "model", "-r", recipe, "-o", tmp_path / "out", "--steps", 20, "--set", "prune.min_blocks=20"
    )
    assert ran.code == 0, ran.err


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
    ran = sapp(*arguments, "--overwrite")
    assert ran.code == 2
    assert ran.err == (
        f"error: {tmp_path / 'mine.yaml'}: exists already and is not a recipe that sapp wrote; give another name, or move "
        "that file elsewhere first\n"
    )
    assert (tmp_path / "mine.yaml").read_text() == "mine"
    assert sapp(*arguments[:-1], tmp_path / "net.safetensors", "--overwrite").code == 2
    (tmp_path / "mine.yaml").write_text("# yaml-language-server: $schema=recipe.schema.json\nprune: {}\n")
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
