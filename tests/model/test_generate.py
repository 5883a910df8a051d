"""`attn_implementation="lockstep"` outside Lockstep: what transformers' own forward and `generate` do with eager
attention, with padding, packs and every cache. Sinks are large, windows shorter than the text."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, StaticCache

from lockstep.model.attention_mask import attention_layout

TOLERANCE = 1e-5
LENGTHS = (40, 13, 1, 29)  # of a batch's prompts; the window is 16
GREEDY = {
    "do_sample": False,
    "max_new_tokens": 30,
    "eos_token_id": None,  # no row ends before the others
    "pad_token_id": 0,
    "return_dict_in_generate": True,
    "output_logits": True,
}


@pytest.fixture(autouse=True)
def large_sinks(request):
    """Normal with a standard deviation of 4, the same in both models."""
    if "model" not in request.fixturenames:
        return
    model, eager = (request.getfixturevalue(name) for name in ("model", "eager"))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for ours, theirs in zip(model.parameters(), eager.parameters(), strict=True):
            if ours.ndim == 1 and len(ours) == model.config.num_attention_heads:
                ours.copy_(4 * torch.randn(len(ours), generator=generator))
                theirs.copy_(ours)


def prompts(lengths=LENGTHS, side="left", seed=0):
    """input_ids and attention_mask [B, longest]; the padding's tokens are not all the same."""
    width = max(lengths)
    tokens = torch.randint(2, 97, (len(lengths), width), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(tokens)
    for row, length in enumerate(lengths):
        mask[row, slice(width - length) if side == "left" else slice(length, width)] = 0
    return tokens, mask


def difference(ours, theirs, mask=None):
    error = (ours - theirs).abs().amax(-1)
    return (error if mask is None else error * mask).max().item()


def assert_same_text(model, eager, tokens, mask, **options):
    ours, theirs = (m.generate(tokens, attention_mask=mask, **GREEDY | options) for m in (model, eager))
    assert ours.sequences.tolist() == theirs.sequences.tolist()
    assert len(ours.logits) == len(theirs.logits) > 5
    assert max(difference(a, b) for a, b in zip(ours.logits, theirs.logits, strict=True)) <= TOLERANCE


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"num_beams": 3},
        {"prefill_chunk_size": 7},
    ],
    ids=lambda options: next(iter(options), "dynamic"),
)
@torch.no_grad()
def test_greedy_text_and_logits_of_a_ragged_batch_are_those_of_eager(model, eager, options):
    assert_same_text(model, eager, *prompts(), **options)


@torch.no_grad()
def test_prompts_of_one_token(model, eager):
    assert_same_text(model, eager, *prompts((1, 1)))


@torch.no_grad()
def test_a_prompt_as_long_as_its_static_cache(model, eager):
    """Then the cache returns as many keys as there are queries."""
    tokens, mask = prompts()
    caches = [StaticCache(config=m.config, max_cache_len=tokens.shape[1]) for m in (model, eager)]
    ours, theirs = (
        m(tokens, attention_mask=mask, past_key_values=cache).logits
        for m, cache in zip((model, eager), caches, strict=True)
    )
    assert difference(ours, theirs, mask) <= TOLERANCE


@pytest.mark.parametrize("helper", ["prompt lookup", "assistant"])
@torch.no_grad()
def test_assisted_generation_is_that_of_eager(model, eager, helper):
    """Several guessed tokens at once against the cache, which is cropped where they were wrong."""
    tokens, mask = prompts((20,))
    tokens = tokens.repeat(1, 2)  # something to look up
    if helper == "prompt lookup":
        assert_same_text(model, eager, tokens, mask.repeat(1, 2), prompt_lookup_num_tokens=4)
        return
    assistants = [copy.deepcopy(m) for m in (model, eager)]
    texts = []
    for m, assistant in zip((model, eager), assistants, strict=True):
        with torch.no_grad():
            assistant.get_output_embeddings().weight[::2] *= 0.7  # guesses right often, not always
        options = {"assistant_model": assistant, "attention_mask": mask.repeat(1, 2)}
        texts.append(m.generate(tokens, **GREEDY | options).sequences.tolist())
    assert texts[0] == texts[1] == eager.generate(tokens, **GREEDY).sequences.tolist()


@pytest.mark.parametrize("cache_of", [lambda m: DynamicCache(config=m.config), lambda m: StaticCache(m.config, 80)])
@torch.no_grad()
def test_a_chat_that_goes_on_against_its_cache(model, eager, cache_of):
    """Turns of 40, 1, 25 and 3 tokens, one after the other; rows with padding at the left of the first."""
    tokens, mask = prompts((69, 42, 30, 58))
    caches = [cache_of(model), cache_of(eager)]
    whole = eager(tokens, attention_mask=mask, use_cache=False).logits
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    start = 0
    for length in (40, 1, 25, 3):
        turn = slice(start, start + length)
        options = {"attention_mask": mask[:, : turn.stop], "position_ids": positions[:, turn]}
        ours, theirs = (
            m(tokens[:, turn], past_key_values=cache, **options).logits
            for m, cache in zip((model, eager), caches, strict=True)
        )
        assert difference(ours, theirs, mask[:, turn]) <= TOLERANCE
        assert difference(ours, whole[:, turn], mask[:, turn]) <= TOLERANCE
        start += length


def run(model, tokens, mask):
    """Logits, and the gradients of a scalar of those at real tokens."""
    logits = model(tokens, attention_mask=mask, use_cache=False).logits
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3))
    (logits * weights * mask[..., None]).sum().div(logits.shape[1]).backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("side", ["left", "right"])
def test_training_on_a_ragged_batch_is_that_of_eager(model, eager, side):
    """In train mode, with gradients. Padding's own logits are nobody's."""
    tokens, mask = prompts(side=side)
    (ours, our_grads), (theirs, their_grads) = (run(m.train(), tokens, mask) for m in (model, eager))
    assert difference(ours, theirs, mask) <= TOLERANCE
    for name, theirs in their_grads.items():
        assert (our_grads[name] - theirs).abs().max() <= TOLERANCE * theirs.abs().max().clamp(min=1), name


@pytest.mark.parametrize("padding", ["left", "right"])
def test_what_stands_in_the_padding_changes_nothing(model, padding):
    tokens, mask = prompts(side=padding)
    other = torch.where(mask.bool(), tokens, 96 - tokens)
    ours, our_grads = run(model, tokens, mask)
    model.zero_grad()
    theirs, their_grads = run(model, other, mask)
    assert difference(ours, theirs, mask) <= TOLERANCE
    for name, grad in our_grads.items():
        assert (grad - their_grads[name]).abs().max() <= TOLERANCE, name


@pytest.mark.parametrize("with_cache", [False, True])
@torch.no_grad()
def test_a_pack_told_by_its_positions_alone_does_not_leak(model, eager, with_cache):
    """No cu_seq_lens: transformers' GPT-OSS with eager attention would see across the sequences."""
    lengths = (40, 13, 1, 29)
    tokens = torch.randint(2, 97, (sum(lengths),), generator=torch.Generator().manual_seed(0))
    positions = torch.cat([torch.arange(length) for length in lengths])
    packed = model(tokens[None], position_ids=positions[None], use_cache=with_cache).logits[0]
    alone = torch.cat([eager(sequence[None]).logits[0] for sequence in tokens.split(lengths)])
    assert difference(packed, alone) <= TOLERANCE


@torch.no_grad()
def test_a_mask_written_out_by_the_caller_is_obeyed_against_a_cache_and_refused_without(model, eager):
    """Three new tokens that see the past and themselves, but not each other: a tree of guesses."""
    tokens, _ = prompts((15,))  # within the window
    past, new = tokens[:, :12], tokens[:, 12:]
    mask = torch.zeros(1, 1, 3, 15).masked_fill_(
        torch.cat([torch.ones(3, 12), torch.eye(3)], 1) == 0, torch.finfo(torch.float32).min
    )
    found = []
    for m in (model, eager):
        cache = DynamicCache(config=m.config)
        m(past, past_key_values=cache)
        positions = torch.full((1, 3), 12)
        found.append(m(new, attention_mask=mask, past_key_values=cache, position_ids=positions).logits)
    assert difference(*found) <= TOLERANCE
    with pytest.raises(ValueError, match=r"mask of shape \(1, 1, 15, 15\)"):
        model(tokens, attention_mask=torch.ones(1, 1, 15, 15, dtype=torch.bool))


def test_under_autocast(model, eager):
    """Qwen3's queries and keys leave their norms in float32, its values are bfloat16: all are cast, as PyTorch's own
    attention casts them. One layer alone, for in a whole model a rounding may route a token elsewhere."""
    mask = prompts()[1]
    attention = [m.get_decoder().layers[1].self_attn for m in (model, eager)]
    hidden = torch.randn(4, 40, 64, generator=torch.Generator().manual_seed(0))
    rotary = model.get_decoder().rotary_emb(hidden, torch.arange(40)[None])
    seen = torch.ones(40, 40).tril().bool()[None, None] & mask[:, None, None].bool()
    layout = attention_layout(4, 40, 40, attention_mask=mask.bool())
    exact = attention[1](hidden, rotary, torch.where(seen, 0.0, -1e9))[0]
    with torch.autocast("cpu", torch.bfloat16):
        ours = attention[0](hidden, rotary, layout)[0]
        theirs = attention[1](hidden, rotary, torch.where(seen, 0.0, -1e9))[0]
    assert ours.dtype == torch.bfloat16
    error, rounding = (((x - exact) * mask[..., None]).norm().item() for x in (ours, theirs))
    assert error <= 1.5 * rounding
    ours.float().square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in attention[0].parameters())


SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
}


def other_model(kind, **options):
    """A random model of another kind, in Lockstep's and in eager attention."""
    torch.manual_seed(0)
    eager = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES, **options)).eval()
    model = copy.deepcopy(eager)
    eager.set_attn_implementation("eager")
    model.set_attn_implementation("lockstep")
    return model, eager


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("mistral", {"sliding_window": 16}),
        ("gemma3_text", {"sliding_window": 16}),
        ("llama4_text", {"attention_chunk_size": 16, "intermediate_size_mlp": 64, "num_local_experts": 2}),
        ("qwen2_moe", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 3, "num_experts": 4}),
    ],
)
@torch.no_grad()
def test_other_architectures(kind, options):
    """Windows in every layer or in some, named by the layer or by the mask alone; chunks."""
    model, eager = other_model(kind, **options)
    tokens, mask = prompts()
    ours, theirs = (m(tokens, attention_mask=mask, use_cache=False).logits for m in (model, eager))
    assert difference(ours, theirs, mask) <= TOLERANCE
    assert_same_text(model, eager, tokens, mask)


def test_what_another_architecture_asks_beyond_is_refused():
    model, _ = other_model("gemma2", sliding_window=16)
    with pytest.raises(ValueError, match="softcap"):
        model(prompts()[0])


def test_dropout_stays_refused(model):
    model.config.attention_dropout = 0.1
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.1
    tokens, mask = prompts()
    model(tokens, attention_mask=mask)  # evaluation
    with pytest.raises(ValueError, match=r"attention_dropout=0\.1"):
        model.train()(tokens, attention_mask=mask)


def test_attention_weights_are_refused(model):
    tokens, mask = prompts()
    with pytest.raises(ValueError, match="output_attentions"):
        model(tokens, attention_mask=mask, output_attentions=True)
