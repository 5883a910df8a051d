"""Saving: what transformers and vLLM load again, in the dtype asked for, a shard at a time."""

import gc
import json
from itertools import pairwise

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.core_model_loading import Chunk, WeightConverter

from lockstep.model import saving
from lockstep.model.loading import ModelError, load_model
from lockstep.model.saving import save_model
from tests.conftest import QWEN3_MOE, randomised

TOKENS = torch.arange(2, 82).view(2, 40)

# The public bfloat16 GPT-OSS folders, and the one shape vLLM's loader for unquantised GPT-OSS takes: [E, in, out].
GPT_OSS_LAYER = {
    "input_layernorm.weight": [64],
    "post_attention_layernorm.weight": [64],
    "self_attn.q_proj.weight": [128, 64],
    "self_attn.q_proj.bias": [128],
    "self_attn.k_proj.weight": [32, 64],
    "self_attn.k_proj.bias": [32],
    "self_attn.v_proj.weight": [32, 64],
    "self_attn.v_proj.bias": [32],
    "self_attn.o_proj.weight": [64, 128],
    "self_attn.o_proj.bias": [64],
    "self_attn.sinks": [8],
    "mlp.router.weight": [8, 64],
    "mlp.router.bias": [8],
    "mlp.experts.gate_up_proj": [8, 64, 64],
    "mlp.experts.gate_up_proj_bias": [8, 64],
    "mlp.experts.down_proj": [8, 32, 64],
    "mlp.experts.down_proj_bias": [8, 64],
}
QWEN3_MOE_LAYER = {
    "input_layernorm.weight": [64],
    "post_attention_layernorm.weight": [64],
    "self_attn.q_proj.weight": [64, 64],
    "self_attn.k_proj.weight": [32, 64],
    "self_attn.v_proj.weight": [32, 64],
    "self_attn.o_proj.weight": [64, 64],
    "self_attn.q_norm.weight": [16],
    "self_attn.k_norm.weight": [16],
    "mlp.gate.weight": [8, 64],
    **{f"mlp.experts.{expert}.gate_proj.weight": [32, 64] for expert in range(8)},
    **{f"mlp.experts.{expert}.up_proj.weight": [32, 64] for expert in range(8)},
    **{f"mlp.experts.{expert}.down_proj.weight": [64, 32] for expert in range(8)},
}
LAYER = {"gpt_oss": GPT_OSS_LAYER, "qwen3_moe": QWEN3_MOE_LAYER}


def shapes(folder):
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  (no mapping)
    return found


def plain(folder, dtype="auto"):
    """As anyone loads it who has no Lockstep; every weight must be there, and none besides."""
    model, found = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", experts_implementation="eager", output_loading_info=True
    )
    assert not any(found.values()), found
    return model.eval()


@torch.no_grad()
def logits(model):
    return model(input_ids=TOKENS, use_cache=False).logits


def test_float32_comes_back_to_the_bit(model, eager, tmp_path):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    save_model(model, tmp_path, dtype=torch.float32)
    back = plain(tmp_path)
    assert back.dtype == torch.float32
    assert torch.equal(logits(back), logits(eager))
    assert all(torch.equal(value, before[name]) for name, value in back.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())  # the model itself too


def test_bfloat16_is_each_weight_rounded_once(model, eager, tmp_path):
    save_model(model, tmp_path, dtype=torch.bfloat16)
    back = plain(tmp_path)
    assert {value.dtype for value in back.state_dict().values()} == {torch.bfloat16}
    with torch.no_grad():
        for parameter in eager.parameters():
            parameter.copy_(parameter.bfloat16())
    expected = eager.state_dict()
    assert all(torch.equal(value.float(), expected[name]) for name, value in back.state_dict().items())
    assert torch.equal(logits(plain(tmp_path, dtype=torch.float32)), logits(eager))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, None])
def test_lockstep_loads_what_it_saved(model, tmp_path, dtype):
    save_model(model, tmp_path, dtype=dtype)
    loaded = load_model(tmp_path).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded[name], value.to(dtype or torch.float32).float()), name


def test_names_and_shapes_are_the_hubs(model, tmp_path):
    save_model(model, tmp_path)
    layer = LAYER[model.config.model_type]
    expected = {"model.embed_tokens.weight": [97, 64], "model.norm.weight": [64], "lm_head.weight": [97, 64]}
    for number in range(model.config.num_hidden_layers):
        expected |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    assert shapes(tmp_path) == expected


def test_a_model_made_here_or_loaded_fused_is_saved_alike(qwen3_moe, tmp_path):
    """The names depend on the model, not on how it came."""
    qwen3_moe.save_pretrained(tmp_path / "fused", save_original_format=False)
    assert "model.layers.0.mlp.experts.gate_up_proj" in shapes(tmp_path / "fused")
    save_model(qwen3_moe, tmp_path / "first")
    save_model(load_model(tmp_path / "fused"), tmp_path / "second")
    made = Qwen3MoeForCausalLM(QWEN3_MOE)
    made.load_state_dict(qwen3_moe.state_dict())
    save_model(made, tmp_path / "third")
    first = (tmp_path / "first" / "model.safetensors").read_bytes()
    assert (tmp_path / "second" / "model.safetensors").read_bytes() == first
    assert (tmp_path / "third" / "model.safetensors").read_bytes() == first


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, None])
def test_the_config_is_plain(model, tmp_path, dtype):
    model.config.quantization_config = {"quant_method": "mxfp4"}  # as a config says that was not cleaned
    save_model(model, tmp_path, dtype=dtype)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == [type(model).__name__]
    assert config["dtype"] == ("bfloat16" if dtype == torch.bfloat16 else "float32")
    assert config["model_type"] == model.config.model_type
    assert "quantization_config" not in config
    assert "lockstep" not in json.dumps(config).lower()
    assert str(model.name_or_path) not in json.dumps(config)
    assert model.config.quantization_config and model.config._attn_implementation == "lockstep"
    assert model.config.dtype == torch.float32


def test_what_stops_a_generation_is_kept_even_where_transformers_would_refuse_it(gpt_oss, tmp_path):
    gpt_oss.generation_config.eos_token_id = [1, 7]
    gpt_oss.generation_config.do_sample, gpt_oss.generation_config.temperature = False, 0.6  # as public folders have it
    with pytest.raises(ValueError):
        gpt_oss.generation_config.save_pretrained(tmp_path / "refused")
    save_model(gpt_oss, tmp_path / "kept")
    assert plain(tmp_path / "kept").generation_config.eos_token_id == [1, 7]


@pytest.mark.parametrize("dtype", [torch.bfloat16, None])
def test_shards_hold_no_more_than_asked_and_read_as_one(model, tmp_path, dtype):
    save_model(model, tmp_path / "one", dtype=dtype)
    save_model(model, tmp_path / "many", dtype=dtype, shard_bytes=150_000)
    whole = load_file(tmp_path / "one" / "model.safetensors")
    files = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 2
    assert files == [f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)]
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    seen, sizes = set(), []
    for file in files:
        tensors = load_file(tmp_path / "many" / file)
        sizes.append(sum(tensor.nbytes for tensor in tensors.values()))
        assert all(torch.equal(tensor, whole[name]) for name, tensor in tensors.items())
        assert all(index["weight_map"][name] == file for name in tensors)
        seen |= tensors.keys()
    assert seen == whole.keys() == index["weight_map"].keys()
    assert max(sizes) <= 150_000 and all(first + second > 150_000 for first, second in pairwise(sizes))
    assert torch.equal(logits(plain(tmp_path / "many")), logits(plain(tmp_path / "one")))


def test_a_tensor_larger_than_a_shard_has_a_file_of_its_own(gpt_oss, tmp_path):
    save_model(gpt_oss, tmp_path, shard_bytes=1000)
    large = [path for path in tmp_path.glob("*.safetensors") if path.stat().st_size > 8000]
    assert large and all(len(load_file(path)) == 1 for path in large)
    plain(tmp_path)


def living_bytes():
    """Of all tensors there are, each storage once."""
    tensors = [found for found in gc.get_objects() if type(found) in (torch.Tensor, torch.nn.Parameter)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, None])
def test_no_second_copy_is_held(tmp_path, monkeypatch, dtype):
    """Beside the model there are, when a file is written, what goes into it and one layer's experts, split."""
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**(QWEN3_MOE.to_dict() | {"num_hidden_layers": 10})))
    weights = living_bytes()
    held = []

    def save_file(tensors, path, metadata):
        held.append(living_bytes() - weights)
        safetensors.torch.save_file(tensors, path, metadata)

    monkeypatch.setattr(saving, "save_file", save_file)
    save_model(model, tmp_path, dtype=dtype, shard_bytes=300_000)
    layer = sum(parameter.nbytes for parameter in model.model.layers[0].parameters())
    saved = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert len(held) > 4
    assert max(held) <= 300_000 + layer < saved / 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, None])
def test_a_tied_weight_is_saved_once(tmp_path, dtype):
    config = Qwen3MoeConfig(**(QWEN3_MOE.to_dict() | {"tie_word_embeddings": True}))
    model = randomised(Qwen3MoeForCausalLM(config), 4)
    save_model(model, tmp_path, dtype=dtype)
    assert "model.embed_tokens.weight" in shapes(tmp_path) and "lm_head.weight" not in shapes(tmp_path)
    back = plain(tmp_path)
    assert back.lm_head.weight is back.model.embed_tokens.weight
    assert torch.equal(back.lm_head.weight, model.lm_head.weight.to(back.dtype))


def test_what_an_architecture_keeps_in_float32_and_integers_stay(gpt_oss, tmp_path):
    gpt_oss._keep_in_fp32_modules_strict = {"layers.*.mlp.router"}
    gpt_oss.model.register_buffer("count", torch.tensor([70000]))
    save_model(gpt_oss, tmp_path, dtype=torch.bfloat16)
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors.pop("model.count").tolist() == [70000]
    for name, tensor in tensors.items():
        assert tensor.dtype == (torch.float32 if ".router." in name else torch.bfloat16), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8, torch.float64])
def test_other_dtypes_are_refused_with_the_fix(gpt_oss, tmp_path, dtype):
    with pytest.raises(ModelError, match=f"dtype={dtype}: weights are saved in bfloat16 or float32, or with None"):
        save_model(gpt_oss, tmp_path / "new", dtype=dtype)
    assert not (tmp_path / "new").exists()


def test_old_weights_are_neither_overwritten_nor_mixed_with_new_ones(gpt_oss, tmp_path):
    save_model(gpt_oss, tmp_path, shard_bytes=100_000)
    files = sorted(tmp_path.iterdir())
    with pytest.raises(ModelError, match=r"holds weights already .* give an empty folder"):
        save_model(gpt_oss, tmp_path)
    assert sorted(tmp_path.iterdir()) == files
    file = tmp_path / "config.json"
    with pytest.raises(ModelError, match=r"is a file: .* give another path"):
        save_model(gpt_oss, file)


def test_files_are_marked_as_older_transformers_want_them(gpt_oss, tmp_path):
    save_model(gpt_oss, tmp_path, shard_bytes=150_000)
    for path in tmp_path.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}


def test_tensors_of_a_layer_that_the_hub_has_joined_are_joined(gpt_oss, tmp_path):
    parts = ["self_attn.k_proj.weight", "self_attn.v_proj.weight"]
    gpt_oss._weight_conversions = [WeightConverter("self_attn.kv_proj.weight", parts, [Chunk(dim=0)])]
    save_model(gpt_oss, tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    for number, layer in enumerate(gpt_oss.model.layers):
        expected = torch.cat([layer.self_attn.k_proj.weight, layer.self_attn.v_proj.weight])
        assert torch.equal(saved[f"model.layers.{number}.self_attn.kv_proj.weight"], expected)
    assert not [name for name in saved if "k_proj.weight" in name]


def test_layers_are_told_apart_by_their_number_and_stack():
    assert saving._layer("model.layers.12.mlp.experts.3.up_proj.weight") == "model.layers.12"
    assert saving._layer("model.embed_tokens.weight") == saving._layer("lm_head.weight") == ""
