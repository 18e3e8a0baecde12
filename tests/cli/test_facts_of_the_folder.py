"""What a folder's own files say of labels, pooling, task and weights is read, by every verb; a contradiction is an error."""

import json
from functools import partial

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from scripts.make_checkpoints import make_bert, make_gpt2

RUN = (
    "data: {files: {train: rows.jsonl, validation: rows.jsonl}, batch_size: 8, evaluation_batch_size: 8}\n"
    "train: {steps: 20}\nprune: {block_size: 8, min_blocks: 20, rules: [{match: classifier*, dense: true}]}\n"
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {"bert": make_bert(folder / "bert"), "bare": make_bert(folder / "bare", head="Model")}


@pytest.fixture
def work(models, tmp_path, monkeypatch):
    """A folder with a recipe, rows of three classes, and a function that puts a changed copy of a model into it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "text.yaml").write_text(RUN)
    rows(tmp_path, [number % 3 for number in range(24)])

    def put(kind="bert", drop="", **config):
        target = tmp_path / "model"
        target.mkdir(exist_ok=True)
        for file in models[kind].iterdir():
            (target / file.name).write_bytes(file.read_bytes())
        known = {**json.loads((target / "config.json").read_text()), **config}
        (target / "config.json").write_text(
            json.dumps({key: value for key, value in known.items() if value is not None})
        )
        tensors = load_file(target / "model.safetensors")
        kept = {name: value.clone() for name, value in tensors.items() if not drop or not name.startswith(drop)}
        save_file(kept, target / "model.safetensors", {"format": "pt"})
        return tmp_path

    return put


def rows(folder, labels, name="rows.jsonl"):
    lines = [json.dumps({"text": f"text number {n}", "label": label}) for n, label in enumerate(labels)]
    (folder / name).write_text("\n".join(lines) + "\n")


def metrics(ran):
    assert ran.code == 0, ran.err
    return ran.json["metrics"]


def test_numbers_digits_and_generic_names_score_the_same(sapp, work):
    """Of twelve classes the strings were numbered by the alphabet: 0, 1, 10, 11, 2, …"""
    names = {str(number): f"LABEL_{number}" for number in range(12)}
    folder = work(drop="classifier", id2label=names, label2id={name: int(number) for number, name in names.items()})
    file = folder / "model" / "model.safetensors"
    torch.manual_seed(0)
    head = {"classifier.weight": torch.randn(12, 96), "classifier.bias": torch.randn(12)}
    save_file({**load_file(file), **head}, file, {"format": "pt"})
    found = []
    for write in (int, str, "LABEL_{}".format):
        rows(folder, [write(number % 12) for number in range(24)])
        found.append(metrics(sapp("eval", "model", "-r", "text.yaml", "--json")))
    assert found[0] == found[1] == found[2]


def test_a_class_label_of_another_case_and_order(sapp, work):
    """roberta-large-mnli and GLUE: the numbers were taken as they stand, and accuracy 1 became 0."""
    labels = ["contradiction", "entailment", "neutral"]
    folder = work(id2label=dict(enumerate(labels)), label2id={name: number for number, name in enumerate(labels)})
    own = ["ENTAILMENT", "NEUTRAL", "CONTRADICTION"]
    plain = [number % 3 for number in range(24)]
    rows(folder, plain)
    theirs = [own.index(labels[number].upper()) for number in plain]
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=own))
    table = {"text": [f"text number {n}" for n in range(24)], "label": theirs}
    datasets.Dataset.from_dict(table, features=features).to_parquet(str(folder / "rows.parquet"))
    one = sapp("eval", "model", "-r", "text.yaml", "--json")
    files = ["--set", "data.files.train=rows.parquet", "--set", "data.files.validation=rows.parquet"]
    other = sapp("eval", "model", "-r", "text.yaml", "--json", *files)
    assert metrics(one) == metrics(other)
    assert other.err == (
        "labels: CONTRADICTION = 0, ENTAILMENT = 1, NEUTRAL = 2: the numbers of config.json, whatever the case of the names\n"
    )


def pooled(folder, **modes):
    (folder / "model" / "1_Pooling").mkdir()
    (folder / "model" / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 96, **modes}))
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense", "3_Normalize": "Normalize"}
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (path, kind) in enumerate(kinds.items())
    ]
    (folder / "model" / "modules.json").write_text(json.dumps(modules))


EMBEDDING = ["--set", "objective.task=embedding-distillation", "--set", "prune.rules=[]"]


def test_pooling_is_that_of_the_folder(sapp, work):
    pooled(work("bare"), pooling_mode_cls_token=True, pooling_mode_mean_tokens=False)
    written = sapp("recipes", "init", "model").out
    assert "  pooling: cls                    # as 1_Pooling/config.json says\n" in written
    assert "  # model/2_Dense (Dense) is not computed: the vectors compared are those before it\n" in written
    planned = sapp("plan", "model", "-r", "text.yaml", *EMBEDDING)
    assert planned.code == 0
    assert planned.err == "warning: model/2_Dense (Dense) is not computed: the vectors compared are those before it\n"
    for verb in ("plan", "bench"):
        refused = sapp(verb, "model", "-r", "text.yaml", *EMBEDDING, "--set", "objective.pooling=mean")
        assert refused.code == 2
        assert "objective.pooling: mean, but model/1_Pooling/config.json says cls; leave it out here" in refused.err


@pytest.mark.parametrize("verb", ["eval", "bench"])
def test_no_figure_of_a_head_that_the_file_lacks(sapp, work, verb):
    """eval printed the accuracy of a random head."""
    work(drop="classifier")
    ran = sapp(verb, "model", "-r", "text.yaml")
    assert ran.code == 4
    assert ran.err.startswith(
        "error: model: the checkpoint has no 'classifier.bias', 'classifier.weight'; the model would start there at random"
    )


@pytest.mark.parametrize("verb", [["prune", "-o", "out", "-q"], ["plan", "-q"]])
def test_a_head_that_the_file_lacks_does_not_teach(sapp, work, verb):
    work(drop="classifier")
    ran = sapp(verb[0], "model", "-r", "text.yaml", *verb[1:], "--set", "objective.distill.weight=0.5")
    assert ran.code == 2
    assert "objective.distill.teacher: null: the checkpoint itself, which has no 'classifier." in ran.err


def test_plan_warns_of_the_head_as_prune_does(sapp, work):
    work(drop="classifier")
    lines = [
        f"the checkpoint has no '{name}'; it starts at random" for name in ("classifier.bias", "classifier.weight")
    ]
    planned = sapp("plan", "model", "-r", "text.yaml").err
    assert all(line in planned for line in lines)
    pruned = sapp("prune", "model", "-r", "text.yaml", "-o", "out").err
    assert all(line in pruned for line in lines)


def test_weights_that_no_figure_depends_on_may_be_missing(sapp, work):
    """Encoders of sentences are often stored without their pooler, which mean pooling does not read."""
    work("bare", drop="pooler")
    ran = sapp("eval", "model", "-r", "text.yaml", *EMBEDDING, "--teacher", "model", "--json")
    assert metrics(ran)["cosine"] == pytest.approx(1)


def test_several_labels_a_row(sapp, work):
    folder = work(problem_type="multi_label_classification")
    written = sapp("recipes", "init", "model").out
    assert '  task: binary\n  # config.json has "problem_type": "multi_label_classification"\n' in written
    assert '"label": [0, 1, …]}' in written
    for verb in (["plan"], ["eval"], ["bench"], ["prune", "-o", "out"]):
        refused = sapp(verb[0], "model", "-r", "text.yaml", *verb[1:])
        assert refused.code == 2
        assert refused.err == (
            'error: text.yaml: objective.task: classification, but model/config.json has "problem_type": '
            '"multi_label_classification"; take the task binary, whose rows have a number for each label or a list of names\n'
        )
    targets = [[n % 2, int(n % 3 == 0), 1] for n in range(24)]
    rows(folder, targets)
    done = sapp("prune", "model", "-r", "text.yaml", "-o", "out", "-q", "--json", "--set", "objective.task=binary")
    assert done.code == 0, done.err
    assert list(done.json["metrics"]) == ["logloss", "auc", "accuracy"]
    names = [[f"LABEL_{k}" for k in range(3) if row[k]] for row in targets]
    same = [metrics(sapp("eval", "model", "-r", "text.yaml", "--json", "--set", "objective.task=binary"))]
    rows(folder, names)
    same.append(metrics(sapp("eval", "model", "-r", "text.yaml", "--json", "--set", "objective.task=binary")))
    assert same[0] == same[1]


def test_one_output_is_regression(sapp, work):
    work(id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0}, drop="classifier")
    assert "  task: regression\n  # config.json has one label (id2label)\n" in sapp("recipes", "init", "model").out
    refused = sapp("prune", "model", "-r", "text.yaml", "-o", "out", "-q")
    assert refused.code == 2
    assert refused.err == (
        "error: text.yaml: objective.task: classification, but model/config.json has one label (id2label); take the task "
        "regression or binary\n"
    )


def test_a_model_that_needs_a_padding_token_says_where_to_write_it(sapp, work, tmp_path):
    work()
    make_gpt2(tmp_path / "gpt")
    place = tmp_path / "gpt" / "config.json"
    config = {**json.loads(place.read_text()), "architectures": ["GPT2ForSequenceClassification"], "num_labels": 3}
    place.write_text(json.dumps({**config, "pad_token_id": None}))
    ran = sapp("plan", "gpt", "-r", "text.yaml", "--set", "prune.rules=[]")
    assert ran.code == 2
    assert 'set "pad_token_id" in config.json' in ran.err
    place.write_text(json.dumps(config))
    assert sapp("plan", "gpt", "-r", "text.yaml", "--set", "prune.rules=[]").code == 0


@pytest.mark.parametrize("verb", [["plan"], ["prune", "-o", "out", "-q"], ["eval"], ["bench"]])
def test_rows_longer_than_the_positions_are_refused_by_all(sapp, work, verb):
    work()
    ran = sapp(verb[0], "model", "-r", "text.yaml", *verb[1:], "--set", "data.max_length=129")
    assert ran.code == 2
    assert ran.err.endswith("129 is more than the model's 128 positions (max_position_embeddings of config.json)\n")


@pytest.mark.parametrize("verb", [["plan"], ["prune", "-o", "out", "-q"]])
def test_too_few_passes_are_told_before_the_model_is_loaded(sapp, digits, tmp_path, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.savez("few.npz", inputs=rng.random((120, 64), np.float32), targets=np.arange(120) % 10)
    torch.save({"not": torch.ones(2, 2), "it": torch.ones(3)}, "other.pt")  # would be refused if it was loaded
    files = [f"data.files.{part}=few.npz" for part in ("train", "validation")]
    sets = [part for text in (*files, "data.batch_size=64") for part in ("--set", text)]
    ran = sapp(verb[0], "other.pt", "-r", digits / "recipe.yaml", *verb[1:], "--epochs", "5", *sets)
    assert ran.code == 2
    assert ran.err == (
        "error: --epochs: train.epochs: 5 passes over 120 rows in batches of 64 are 5 steps; this schedule needs at least "
        "10: lower data.batch_size or raise train.epochs\n"
    )


def test_figures_far_below_guessing_are_worth_a_warning(sapp, work):
    """Labels that are permuted: right everywhere, and accuracy 0."""
    folder = work()
    file = folder / "model" / "model.safetensors"
    tensors = load_file(file)
    tensors["classifier.bias"] = torch.tensor([0.0, 0.0, 1e4])  # always the class 2
    save_file(tensors, file, {"format": "pt"})
    rows(folder, [0, 1] * 12)
    ran = sapp("eval", "model", "-r", "text.yaml")
    assert ran.err == (
        "warning: accuracy 0 of the checkpoint is far worse than guessing (0.5); do the targets of the rows mean what the "
        "model learned?; config.json: LABEL_0 = 0, LABEL_1 = 1, LABEL_2 = 2\n"
    )


def test_plan_goes_without_data_that_are_not_there_and_refuses_those_that_are_wrong(sapp, work):
    folder = work()
    (folder / "rows.jsonl").unlink()
    gone = sapp("plan", "model", "-r", "text.yaml")
    assert gone.code == 0
    assert gone.err.startswith("planned without the data: ")
    rows(folder, [7] * 24)
    wrong = partial(sapp, "plan", "model", "-r", "text.yaml")()
    assert (wrong.code, "has label 7, but the model has 3 classes" in wrong.err) == (4, True)
