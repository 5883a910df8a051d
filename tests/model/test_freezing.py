"""Freezing by pattern: what is frozen, what a wrong pattern is answered, and that it is all or nothing."""

import re

import pytest
import torch
from torch import nn
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from lockstep.model.freezing import FreezeError, freeze
from lockstep.types import UserError

TOKENS = torch.tensor([[3, 14, 15, 92, 65, 35]])


def frozen_names(model):
    return [name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad]


@pytest.fixture
def tied():
    config = Qwen3MoeConfig(
        vocab_size=97,
        hidden_size=16,
        intermediate_size=8,
        moe_intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        num_experts=2,
        num_experts_per_tok=1,
        tie_word_embeddings=True,
    )
    return Qwen3MoeForCausalLM(config)


def test_names_of_all_patterns_in_the_models_order_and_nothing_else(gpt_oss):
    names = freeze(gpt_oss, ["*.sinks", "*.router.*", "model.layers.0.mlp.*"])
    expected = [
        name
        for name, _ in gpt_oss.named_parameters()
        if name.endswith(".sinks") or ".router." in name or name.startswith("model.layers.0.mlp.")
    ]
    assert list(names) == expected == frozen_names(gpt_oss)
    assert len(names) == 4 + 2 * 4 + 4  # sinks; routers' weight and bias; layer 0's experts


def test_a_pattern_is_about_the_whole_name_and_minds_case(gpt_oss):
    assert freeze(gpt_oss, ["model.layers.[12].self_attn.q_proj.bia?"]) == (
        "model.layers.1.self_attn.q_proj.bias",
        "model.layers.2.self_attn.q_proj.bias",
    )
    for pattern in ("router", "*.ROUTER.*", "layers.0.*", ""):
        with pytest.raises(FreezeError, match="matches no parameter"):
            freeze(gpt_oss, [pattern])


def test_no_pattern_freezes_nothing_and_a_second_call_adds(gpt_oss):
    assert freeze(gpt_oss, ()) == ()
    assert frozen_names(gpt_oss) == []
    freeze(gpt_oss, ["model.norm.weight"])
    assert freeze(gpt_oss, ["lm_head.weight"]) == ("lm_head.weight",)
    assert frozen_names(gpt_oss) == ["model.norm.weight", "lm_head.weight"]
    assert freeze(gpt_oss, ["lm_head.weight"]) == ("lm_head.weight",)  # again: no harm


@pytest.mark.parametrize("pattern", ["lm_head.*", "*embed_tokens*"])
def test_either_name_of_a_tied_weight_freezes_both(tied, pattern):
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert freeze(tied, [pattern]) == ("model.embed_tokens.weight", "lm_head.weight")
    assert frozen_names(tied) == ["model.embed_tokens.weight", "lm_head.weight"]


@pytest.mark.parametrize(
    ("pattern", "close"),
    [
        ("*.rooter.*", "model.layers.0.mlp.router.weight"),
        ("*.sink", "model.layers.0.self_attn.sinks"),
        ("model.layers.3.mlp.expert.*", "model.layers.3.mlp.experts."),
        ("*embedtokens*", "model.embed_tokens.weight"),
        ("LM_head", "lm_head.weight"),
        ("*.ROUTER.*", "model.layers.0.mlp.router.weight"),
    ],
)
def test_a_pattern_without_a_match_is_one_line_that_names_it_and_what_is_close(gpt_oss, pattern, close):
    with pytest.raises(UserError) as error:
        freeze(gpt_oss, ["*.sinks", pattern])
    message = str(error.value)
    assert repr(pattern) in message
    assert close in message.split("close names are ")[1].split(",")[0]
    assert "\n" not in message
    assert frozen_names(gpt_oss) == []  # not even what the first pattern matched


def test_close_names_are_of_different_kinds(gpt_oss):
    with pytest.raises(FreezeError) as error:
        freeze(gpt_oss, ["*.rooter.*"])
    close = str(error.value).split("close names are ")[1].split(", ")
    assert close[:2] == ["'model.layers.0.mlp.router.weight'", "'model.layers.0.mlp.router.bias'"]
    assert len({re.sub(r"\d", "", name) for name in close}) == 3  # not the same of other layers


@pytest.mark.parametrize("patterns", [["*"], ["model.*", "lm_head.*"]])
def test_freezing_everything_is_refused_and_freezes_nothing(gpt_oss, patterns):
    with pytest.raises(FreezeError, match="leave nothing to train"):
        freeze(gpt_oss, patterns)
    assert frozen_names(gpt_oss) == []


def test_what_was_frozen_before_counts_as_frozen(gpt_oss):
    freeze(gpt_oss, ["model.*"])
    with pytest.raises(FreezeError, match="leave nothing to train"):
        freeze(gpt_oss, ["lm_head.*"])
    assert gpt_oss.lm_head.weight.requires_grad
    gpt_oss.requires_grad_(False)
    assert freeze(gpt_oss, ()) == ()  # asked for nothing, it finds no fault


def test_one_string_is_no_sequence_of_patterns(gpt_oss):
    with pytest.raises(FreezeError, match=r"write \('\*\.sinks',\)"):
        freeze(gpt_oss, "*.sinks")


def test_frozen_sinks_still_count_and_let_the_other_gradients_through(gpt_oss):
    def run():
        gpt_oss.zero_grad()
        logits = gpt_oss(input_ids=TOKENS, use_cache=False).logits
        logits.square().mean().backward()
        return logits.detach(), {name: p.grad for name, p in gpt_oss.named_parameters() if p.grad is not None}

    logits, gradients = run()
    freeze(gpt_oss, ["*.sinks"])
    frozen_logits, frozen_gradients = run()
    assert torch.equal(frozen_logits, logits)
    assert gradients.keys() - frozen_gradients.keys() == {f"model.layers.{i}.self_attn.sinks" for i in range(4)}
    assert all(torch.equal(value, gradients[name]) for name, value in frozen_gradients.items())
    with torch.no_grad():
        for name, parameter in gpt_oss.named_parameters():
            if name.endswith(".sinks"):
                parameter.add_(1)
    assert not torch.allclose(run()[0], logits)


def test_any_module_will_do():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert freeze(model, ["0.*"]) == ("0.weight", "0.bias")
