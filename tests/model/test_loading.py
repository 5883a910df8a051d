"""Loading: nothing drawn at random, nothing dropped, nothing quantised in disguise; each fault in one line."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen3MoeForCausalLM

from lockstep.model.loading import ModelError, load_model
from tests.conftest import QWEN3_MOE, randomised

FIX = "give the complete folder, with the config.json that belongs to it"


@pytest.fixture
def altered(tmp_path, gpt_oss_folder, qwen3_moe_folder):
    """altered(kind, change, config): a copy of a model's folder, its dictionary of tensors edited by `change`, and
    `config` put into its config.json."""

    def altered(kind, change=lambda tensors: None, config=None):
        source = {"gpt_oss": gpt_oss_folder, "qwen3_moe": qwen3_moe_folder}[kind]
        folder = shutil.copytree(source, tmp_path / "copy")
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        if config:
            settings = json.loads((folder / "config.json").read_text()) | config
            (folder / "config.json").write_text(json.dumps(settings))
        return folder

    return altered


def fault(folder):
    with pytest.raises(ModelError) as error:
        load_model(folder)
    message = str(error.value)
    assert "\n" not in message
    assert repr(str(folder)) in message
    return message


def remove(*names):
    def change(tensors):
        for name in names:
            del tensors[name]

    return change


@pytest.mark.parametrize("name", ["model.layers.2.self_attn.sinks", "lm_head.weight", "model.norm.weight"])
def test_a_missing_weight_is_named(altered, name):
    assert fault(altered("gpt_oss", remove(name))).endswith(f"(missing: {name}); {FIX}")


def test_many_missing_weights_are_counted(altered):
    message = fault(altered("gpt_oss", lambda tensors: [tensors.pop(n) for n in list(tensors) if ".bias" in n]))
    names = [f"model.layers.0.{n}.bias" for n in ("mlp.router", "self_attn.k_proj", "self_attn.o_proj")]
    assert f"(missing: {', '.join(names)} and 17 more)" in message


def test_an_unexpected_weight_is_named(altered):
    name = "model.layers.4.self_attn.sinks"  # the model has layers 0 to 3
    assert fault(altered("gpt_oss", lambda t: t.update({name: torch.zeros(8)}))).endswith(
        f"(unexpected: {name}); {FIX}"
    )


def test_all_kinds_of_fault_are_told_at_once(altered):
    def change(tensors):
        tensors["model.stranger"] = tensors.pop("model.norm.weight")
        tensors["lm_head.weight"] = torch.zeros(96, 64)

    told = "(missing: model.norm.weight; unexpected: model.stranger; of another shape: lm_head.weight)"
    assert told in fault(altered("gpt_oss", change))


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (["up_proj"], "missing or of another shape: model.layers.1.mlp.experts.3.up_proj.weight"),
        (["gate_proj", "up_proj", "down_proj"], "of another shape: model.layers.1.mlp.experts.down_proj, "),
    ],
)
def test_a_missing_expert_is_found_out(altered, names, named):
    change = remove(*(f"model.layers.1.mlp.experts.3.{name}.weight" for name in names))
    assert named in fault(altered("qwen3_moe", change))


def test_an_expert_of_another_shape_is_found_out(altered):
    name = "model.layers.0.mlp.experts.7.gate_proj.weight"
    assert name in fault(altered("qwen3_moe", lambda tensors: tensors.update({name: torch.zeros(31, 64)})))


@pytest.mark.parametrize("kept", ["model.embed_tokens.weight", "lm_head.weight", None])
def test_a_tied_head_is_not_missing(tmp_path, kept):
    config = QWEN3_MOE.to_dict() | {"tie_word_embeddings": True}
    model = randomised(Qwen3MoeForCausalLM(type(QWEN3_MOE)(**config)), 4)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    weight = tensors.pop("model.embed_tokens.weight")
    assert "lm_head.weight" not in tensors
    if kept is not None:
        tensors[kept] = weight
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    if kept is None:
        assert "missing: " in fault(tmp_path)
    else:
        loaded = load_model(tmp_path)
        assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
        assert torch.equal(loaded.lm_head.weight, weight)


@pytest.mark.parametrize("method", ["awq", "gptq", "bitsandbytes", "fp8", "compressed-tensors", "someones-own"])
def test_other_quantisations_are_refused_with_the_fix(altered, method):
    message = fault(altered("gpt_oss", config={"quantization_config": {"quant_method": method, "bits": 4}}))
    assert f"quantised with {method!r}" in message
    assert "give the bfloat16 weights it was made from" in message


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_a_quantisation_without_a_name_is_refused(altered, key):
    assert "quantised with None" in fault(altered("gpt_oss", config={key: {"load_in_4bit": True}}))


@pytest.mark.parametrize("kind", ["gpt_oss", "qwen3_moe"])
def test_in_bfloat16_every_parameter_is_and_in_float32_none(altered, kind):
    folder = altered(kind)
    for dtype, expected in ((torch.bfloat16, torch.bfloat16), (None, torch.float32), (torch.float64, torch.float64)):
        model = load_model(folder, dtype=dtype)
        assert {parameter.dtype for parameter in model.parameters()} == {expected}
        assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}  # rotary frequencies
        assert model.config.dtype == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8, torch.float8_e4m3fn])
def test_other_dtypes_are_refused_with_the_fix(gpt_oss_folder, dtype):
    with pytest.raises(ModelError, match=f"dtype={dtype}: .* give one of them"):
        load_model(gpt_oss_folder, dtype=dtype)


def test_shards_are_read_as_one(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    loaded = load_model(tmp_path).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


def test_a_missing_shard_is_one_line(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    next(tmp_path.glob("model-00002-of-*.safetensors")).unlink()
    assert "give a Hugging Face folder or id" in fault(tmp_path)


def test_a_fault_is_told_once_and_others_hear_transformers_again(altered, caplog):
    folder = altered("gpt_oss", remove("lm_head.weight"))
    fault(folder)
    assert not caplog.records
    AutoModelForCausalLM.from_pretrained(folder)
    assert "lm_head.weight" in caplog.text


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("GraniteConfig", {"logits_scaling": 8.0}, "has logits_scaling=8.0, which log-probs would miss"),
        ("CohereConfig", {"logit_scale": 0.0625}, "has logit_scale=0.0625"),
        ("PhiConfig", {}, "has a head with a bias"),
    ],
)
def test_a_model_that_changes_its_logits_is_refused(kind, options, words, tmp_path):
    """Engine and trainer would agree on log-probs that are not the model's."""
    sizes = {"vocab_size": 97, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = getattr(transformers, kind)(**sizes, **heads, **options)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=words):
        load_model(tmp_path)
