"""MXFP4 checkpoints: every code at every scale, in its place, and a model that is plain afterwards."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, GptOssConfig, Mxfp4Config
from transformers.utils import logging

from lockstep.model.loading import ModelError, load_model
from lockstep.model.saving import save_model
from tests.model.mxfp4_checkpoint import (
    CONFIG,
    EXPERTS,
    HIDDEN,
    INTERMEDIATE,
    checkpoint_tensors,
    dequantised,
    plain_tensors,
    write_checkpoint,
)

# OCP Microscaling Formats 1.0, table of E2M1: codes 0-7, then the same with the sign bit.
POSITIVE = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
VALUES = POSITIVE + [-value for value in POSITIVE]
EXPERTS_NAME = "model.layers.1.mlp.experts"
TOKENS = torch.arange(2, 42)[None]  # longer than the window of 8


@pytest.fixture(scope="module")
def tensors():
    return checkpoint_tensors()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tensors):
    return write_checkpoint(tmp_path_factory.mktemp("mxfp4"), tensors)


def same_bits(ours, theirs):
    """Equal, and zeros of the same sign."""
    return torch.equal(ours, theirs) and torch.equal(ours.signbit(), theirs.signbit())


def by_hand(tensors, dtype):
    """A GPT-OSS of transformers' own that never heard of MXFP4, given the values worked out from the bits."""
    config = GptOssConfig(**{key: value for key, value in CONFIG.items() if key != "quantization_config"})
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()  # .to(dtype) would round rotary frequencies
    model.load_state_dict({name: value.to(dtype) for name, value in plain_tensors(tensors).items()})
    return model


def test_the_oracle_knows_all_16_codes_and_the_scales_extremes():
    blocks = torch.tensor([code + 16 * ((code + 1) % 16) for code in range(16)], dtype=torch.uint8).view(1, 1, 1, 16)
    for scale in (0, 1, 126, 127, 128, 252, 254):
        found = dequantised(blocks, torch.full((1, 1, 1), scale, dtype=torch.uint8))
        assert found.shape == (1, 32, 1)
        expected = [VALUES[code] * 2.0 ** (scale - 127) for n in range(16) for code in (n, (n + 1) % 16)]  # low first
        assert found.flatten().tolist() == expected


def test_every_code_at_every_finite_scale_is_exact(tmp_path, tensors):
    """All scales whose numbers bfloat16 can hold, 0 (2^-127: subnormal numbers) to 252, with all codes under each."""
    name = f"{EXPERTS_NAME}.gate_up_proj"
    blocks = tensors[f"{name}_blocks"]
    shape = blocks.shape[:-1]  # [E, 2I, H / 32]
    scales = (torch.arange(shape.numel()) % 253).to(torch.uint8).view(shape)
    codes = torch.stack([blocks % 16, blocks // 16], -1).flatten(-2)
    assert (codes + 16 * scales[..., None].int()).unique().numel() == 16 * 253
    loaded = load_model(write_checkpoint(tmp_path, tensors | {f"{name}_scales": scales})).state_dict()[name]
    expected = dequantised(blocks, scales)
    assert torch.equal(expected.bfloat16().double(), expected)
    assert same_bits(loaded, expected.bfloat16())


def test_a_number_lands_in_its_place(tmp_path, tensors):
    """Expert 2, output 5, second block of inputs, fourth byte, high nibble: weight [2, 32 + 2 * 3 + 1, 5]."""
    for part, width, inner in (("gate_up_proj", 2 * INTERMEDIATE, HIDDEN), ("down_proj", HIDDEN, INTERMEDIATE)):
        blocks = torch.zeros(EXPERTS, width, inner // 32, 16, dtype=torch.uint8)
        blocks[2, 5, 1, 3] = 0xD0  # 1101: minus three
        scales = torch.full((EXPERTS, width, inner // 32), 100, dtype=torch.uint8)
        scales[2, 5, 1] = 128
        name = f"{EXPERTS_NAME}.{part}"
        changed = tensors | {f"{name}_blocks": blocks, f"{name}_scales": scales}
        weight = load_model(write_checkpoint(tmp_path / part, changed)).state_dict()[name]
        assert weight.shape == (EXPERTS, inner, width)
        assert weight.nonzero().tolist() == [[2, 39, 5]]
        assert weight[2, 39, 5] == -6.0


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float32, torch.float64])
def test_every_weight_is_the_checkpoints_in_the_dtype_asked_for(folder, tensors, dtype):
    model = load_model(folder, dtype=dtype)
    expected = plain_tensors(tensors)
    loaded = model.state_dict()
    assert loaded.keys() == expected.keys()
    for name, value in expected.items():
        assert loaded[name].dtype == (dtype or torch.bfloat16), name
        assert same_bits(loaded[name], value.to(loaded[name].dtype)), name
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not model.training
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_those_of_a_model_set_by_hand(folder, tensors, dtype):
    model, hand = load_model(folder, dtype=dtype), by_hand(tensors, dtype)
    assert model.config._attn_implementation == model.config._experts_implementation == "lockstep"
    hand.set_attn_implementation("lockstep")
    hand.set_experts_implementation("lockstep")
    with torch.no_grad():
        logits = model(input_ids=TOKENS, use_cache=False).logits
        assert torch.equal(logits, hand(input_ids=TOKENS, use_cache=False).logits)
        hand.set_attn_implementation("eager")
        hand.set_experts_implementation("eager")
        eager = hand(input_ids=TOKENS, use_cache=False).logits
    error = (logits - eager).abs().max() / eager.abs().max()
    assert error < (1e-5 if dtype == torch.float32 else 0.05)


@pytest.mark.parametrize("save", [save_model, lambda model, folder: model.save_pretrained(folder)])
def test_what_is_saved_is_a_plain_folder(folder, tensors, tmp_path, save):
    """transformers' own save_pretrained too: it would undo the unpacking, and write one layer's experts for all."""
    model = load_model(folder)
    save(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "bfloat16"
    plain, found = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager", output_loading_info=True)
    assert not any(found.values())
    assert plain.dtype == torch.bfloat16
    for name, value in plain_tensors(tensors).items():
        assert torch.equal(plain.state_dict()[name], value.bfloat16()), name


def test_experts_without_scales_are_named(tmp_path, tensors):
    name = f"{EXPERTS_NAME}.down_proj_scales"
    folder = write_checkpoint(tmp_path, {key: value for key, value in tensors.items() if key != name})
    with pytest.raises(ModelError, match=f"missing or of another shape: {name}\\); give the complete folder") as error:
        load_model(folder)
    assert "\n" not in str(error.value)


def test_missing_experts_are_named(tmp_path, tensors):
    name = f"{EXPERTS_NAME}.down_proj"
    folder = write_checkpoint(tmp_path, {key: value for key, value in tensors.items() if f"{name}_" not in key})
    with pytest.raises(ModelError, match=f"missing: {name}, {name}_bias\\); give the complete folder"):
        load_model(folder)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("num_local_experts", 2 * EXPERTS, "of another shape: model.layers.0.mlp.experts.down_proj, "),
        ("hidden_size", 2 * HIDDEN, "model.layers.0.input_layernorm.weight"),
        ("vocab_size", 70, r"\(of another shape: lm_head.weight, model.embed_tokens.weight\)"),
    ],
)
def test_another_models_config_is_found_out(tmp_path, tensors, key, value, named):
    """transformers compares no shapes when it unpacks."""
    with pytest.raises(ModelError, match=named):
        load_model(write_checkpoint(tmp_path, tensors, config=CONFIG | {key: value}))


def test_loading_says_nothing(folder, caplog):
    logging.warning_once.cache_clear()  # what was said once in this process would not be said again
    load_model(folder)
    assert not caplog.records


def test_a_model_unpacked_by_transformers_alone_is_not_saved_under_wrong_names(folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=Mxfp4Config(dequantize=True))
    with pytest.raises(ModelError, match=r"two weights would be saved as .*: load the model with load_model"):
        save_model(model, tmp_path)
