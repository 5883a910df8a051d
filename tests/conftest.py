"""What every test stands on: no network, one thread, the same examples every time, and two tiny models."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported

import hypothesis
import pytest
import torch
from transformers import AutoModelForCausalLM, GptOssConfig, GptOssForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from lockstep.model.loading import load_model

torch.set_num_threads(1)
hypothesis.settings.register_profile("lockstep", derandomize=True, deadline=None)
hypothesis.settings.load_profile("lockstep")

VOCABULARY = 97

GPT_OSS = GptOssConfig(
    vocab_size=VOCABULARY,
    hidden_size=64,
    intermediate_size=32,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=16,
    num_local_experts=8,
    num_experts_per_tok=2,
    sliding_window=16,  # shorter than the sequences of the tests
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    eos_token_id=1,
    pad_token_id=0,
)
QWEN3_MOE = Qwen3MoeConfig(
    vocab_size=VOCABULARY,
    hidden_size=64,
    intermediate_size=32,
    moe_intermediate_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    num_experts=8,
    num_experts_per_tok=3,
    norm_topk_prob=True,
    eos_token_id=1,
    pad_token_id=0,
)


def randomised(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """The model with every parameter drawn anew: biases and norms off their usual 0 and 1, sinks uniform in [-5, 5]."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".sinks"):
                parameter.uniform_(-5, 5, generator=generator)
            elif "norm" in name:
                parameter.normal_(1, 0.2, generator=generator)
            else:
                parameter.normal_(0, 0.15, generator=generator)
    return model


@pytest.fixture(scope="session")
def gpt_oss_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt_oss")
    randomised(GptOssForCausalLM(GPT_OSS), 1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def qwen3_moe_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen3_moe")
    randomised(Qwen3MoeForCausalLM(QWEN3_MOE), 2).save_pretrained(folder)
    return folder


@pytest.fixture
def gpt_oss(gpt_oss_folder):
    """A tiny random GPT-OSS as Lockstep loads it, fresh for each test."""
    return load_model(gpt_oss_folder)


@pytest.fixture
def qwen3_moe(qwen3_moe_folder):
    """A tiny random Qwen3-MoE as Lockstep loads it, fresh for each test."""
    return load_model(qwen3_moe_folder)


@pytest.fixture(params=["gpt_oss", "qwen3_moe"])
def model(request):
    """Each of the two tiny models in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def eager(model):
    """The weights of `model` in transformers' own eager attention and experts."""
    return AutoModelForCausalLM.from_pretrained(
        model.name_or_path, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    ).eval()
