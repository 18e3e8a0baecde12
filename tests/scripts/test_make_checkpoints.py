"""scripts/make_checkpoints.py: every kind loads as what it says it is."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from scripts.make_checkpoints import KINDS, main, make_bert, make_llama

TEXT_KINDS = ("bert", "bert-mlm", "gpt2", "llama", "llama-tied")
SMALL_KINDS = (*TEXT_KINDS, "vit")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One bf16 checkpoint of each kind."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {kind: KINDS[kind](root / kind, torch.bfloat16, 0) for kind in (*SMALL_KINDS, "resnet")}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("kind", [*SMALL_KINDS, "resnet"])
def test_transformers_loads_it_whole_in_the_dtype_asked_for(folders: dict[str, Path], kind: str) -> None:
    (architecture,) = json.loads((folders[kind] / "config.json").read_text())["architectures"]
    model_class = getattr(transformers, architecture)
    model, loaded = model_class.from_pretrained(folders[kind], output_loading_info=True)
    assert not loaded["missing_keys"]
    assert not loaded["unexpected_keys"]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert isinstance(transformers.AutoModel.from_pretrained(folders[kind]), model.base_model.__class__)


@pytest.mark.parametrize("kind", [*SMALL_KINDS, "resnet"])
def test_no_vector_is_constant(folders: dict[str, Path], kind: str) -> None:
    vectors = {name: tensor for name, tensor in tensors(folders[kind]).items() if tensor.dim() == 1}
    assert vectors
    assert [name for name, vector in vectors.items() if vector.unique().numel() == 1] == []


def test_llama_has_two_shards_and_a_head_of_its_own_unless_tied(folders: dict[str, Path], tmp_path: Path) -> None:
    for folder, tied in (
        (folders["llama"], False),
        (folders["llama-tied"], True),
        (make_llama(tmp_path / "untied"), False),
        (make_llama(tmp_path / "tied", tied=True), True),
    ):
        shards = sorted(file.name for file in folder.glob("*.safetensors"))
        index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        assert shards == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
        assert sorted(set(index.values())) == shards
        assert ("lm_head.weight" in index) is not tied


def test_gpt2_stores_in_by_out_and_its_head_once(folders: dict[str, Path]) -> None:
    with safe_open(folders["gpt2"] / "model.safetensors", "np") as file:
        names = list(file.keys())
        assert file.get_slice("transformer.h.0.attn.c_attn.weight").get_shape() == [96, 288]
    assert "lm_head.weight" not in names


def test_resnet_is_resnet_50(folders: dict[str, Path]) -> None:
    parameters = {
        name: tensor.numel()
        for name, tensor in tensors(folders["resnet"]).items()
        if "running" not in name and "batches" not in name
    }
    assert sum(parameters.values()) == 25_557_032
    assert parameters["classifier.1.weight"] == 2048 * 1000


def test_one_seed_gives_the_same_bytes_again_and_another_does_not(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    folders = [make_bert(tmp_path / str(number), seed=seed) for number, seed in enumerate((0, 0, 1))]
    digests = [hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() for folder in folders]
    assert digests[0] == digests[1] != digests[2]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_the_tokenizer_knows_every_text(folders: dict[str, Path], kind: str) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[kind])
    config = transformers.AutoConfig.from_pretrained(folders[kind])
    text = "Größe ≠ 5 €, isn't it?\n"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode()) + 2
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id) == (1, 2)
    assert max(ids) < config.vocab_size == len(tokenizer)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    pair = tokenizer("a", "b")
    assert pair.get("token_type_ids") == ([0, 0, 0, 1, 1] if kind.startswith("bert") else None)
    assert tokenizer.pad_token_id == config.pad_token_id == 0


@pytest.mark.parametrize(("kind", "side"), [("vit", 32), ("resnet", 224)])
def test_images_become_what_the_model_takes(folders: dict[str, Path], kind: str, side: int) -> None:
    processor = transformers.AutoImageProcessor.from_pretrained(folders[kind])
    pixels = processor(Image.new("RGB", (300, 280), (255, 0, 0)), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, side, side)
    red, green, blue = pixels.mean((0, 2, 3)).tolist()
    assert red == pytest.approx((1 - 0.485) / 0.229, rel=1e-3)
    assert (green, blue) == pytest.approx((-0.456 / 0.224, -0.406 / 0.225), rel=1e-3)


def test_untrained_resnet_is_as_transformers_initializes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--kind", "resnet-untrained", "--out", str(tmp_path / "r"), "--dtype", "bf16"])
    assert capsys.readouterr().out == (f"{tmp_path / 'r'}: config.json, model.safetensors, preprocessor_config.json\n")
    vectors = {name: tensor for name, tensor in tensors(tmp_path / "r").items() if "normalization" in name}
    for name, tensor in vectors.items():
        assert tensor.eq(1.0 if name.endswith(("weight", "running_var")) else 0.0).all(), name
