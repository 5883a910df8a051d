"""The tiny model and its tokenizer: functions of the seed and the texts, and a plain Hugging Face folder."""

import hashlib
import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lockstep.model.loading import ModelError, load_model, load_tokenizer
from lockstep.model.tiny import CONTROL_TOKENS, TinyModel, build_model, build_tiny, build_tokenizer

TEXTS = [
    f'{name} has {n} apples. functions.calculator {{"e":"{n}+1"}}' for name in ("Ann", "Ben") for n in range(0, 1000, 7)
]
SIZES = TinyModel(vocab_size=420, hidden_size=32, intermediate_size=16, num_layers=2, num_experts=4)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(TEXTS, SIZES.vocab_size)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    build_tiny(folder, TEXTS, SIZES, seed=0)
    return folder


def test_the_vocabulary_is_a_function_of_the_texts(tokenizer):
    """The digest changes only when the way the vocabulary is made changes: every tiny run would change with it."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    assert hashlib.sha256(vocabulary.encode()).hexdigest()[:16] == "59dcb2fad953d351"
    assert len(tokenizer) == SIZES.vocab_size
    again = build_tokenizer(iter(TEXTS), SIZES.vocab_size)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_numbers_up_to_99_are_single_tokens(tokenizer):
    for n in range(100):
        assert len(tokenizer.encode(str(n))) == 1, n
    assert len(tokenizer.encode("1234567")) >= 3  # chunks of at most three digits


def test_control_tokens_are_single_special_and_first(tokenizer):
    assert tokenizer.convert_tokens_to_ids(list(CONTROL_TOKENS)) == list(range(len(CONTROL_TOKENS)))
    for token in CONTROL_TOKENS:
        assert tokenizer.encode(f"a{token}b") == [
            *tokenizer.encode("a"),
            tokenizer.convert_tokens_to_ids(token),
            *tokenizer.encode("b"),
        ]


def test_any_text_survives(tokenizer):
    for text in (TEXTS[3], "  two  spaces\n\ttabs", "Zoë 你好 🙂 \u0000", "{[(,;:!?)]}", ""):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_weights_are_a_function_of_the_seed_alone(tokenizer):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build_model(SIZES, tokenizer, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    second = build_model(SIZES, tokenizer, seed=3).state_dict()
    other = build_model(SIZES, tokenizer, seed=4).state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_the_folder_is_plain_hugging_face(folder, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(folder)
    expected = build_model(SIZES, tokenizer, seed=0).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert model.config.layer_types == ["sliding_attention", "full_attention"]
    loaded = AutoTokenizer.from_pretrained(folder)
    assert loaded.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])
    stops = loaded.convert_tokens_to_ids(["<|return|>", "<|call|>"])
    assert model.generation_config.eos_token_id == stops
    assert loaded.eos_token == "<|return|>"


def test_lockstep_loads_it_ready_to_train(folder):
    model = load_model(folder)
    assert model.config._attn_implementation == model.config._experts_implementation == "lockstep"
    assert model.dtype == torch.float32
    assert not model.training
    assert all(p.requires_grad for p in model.parameters())
    assert len(load_tokenizer(folder)) == SIZES.vocab_size


@pytest.mark.parametrize("damaged", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_damaged_folder_is_one_line_with_the_fix(folder, tmp_path, damaged):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / damaged).write_bytes((copy / damaged).read_bytes()[:-10])
    with pytest.raises(ModelError, match="give a Hugging Face folder or id") as error:
        (load_tokenizer if damaged == "tokenizer.json" else load_model)(copy)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_what_cannot_be_loaded_is_one_line_with_the_fix(load, tmp_path):
    with pytest.raises(ModelError, match="give a Hugging Face folder or id") as error:
        load(tmp_path / "none")
    assert "\n" not in str(error.value)
