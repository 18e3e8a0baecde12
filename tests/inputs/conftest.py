import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[EOS]"]
WORDS = [*SPECIAL, *"abcdefghijklmnopqrst"]  # a is 6, b is 7, …


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory, monkeypatch):
    """Tables are cached here and not in the user's home."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def write_tokenizer(folder, *, bert, **tokens):
    """A folder with a tokenizer of one letter a token; `bert` puts [CLS] and [SEP] around texts."""
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(SPECIAL)
    if bert:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    inputs = ["input_ids", "token_type_ids", "attention_mask"] if bert else ["input_ids", "attention_mask"]
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "[UNK]",
        "model_input_names": inputs,
        **tokens,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def bert(tmp_path):
    return write_tokenizer(
        tmp_path / "bert", bert=True, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]"
    )


@pytest.fixture
def gpt(tmp_path):
    """No padding token and no mask, as GPT-2."""
    return write_tokenizer(tmp_path / "gpt", bert=False, eos_token="[EOS]")
