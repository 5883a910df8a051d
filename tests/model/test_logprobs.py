"""Log-probs and entropies of chosen tokens against log_softmax, and that the vocabulary is never held for all rows."""

import pytest
import torch
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from lockstep.model import logprobs as module
from lockstep.model.logprobs import selected_logprobs

ROWS, WIDTH, VOCABULARY = 37, 12, 101


def inputs(dtype=torch.float64, rows=ROWS):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, WIDTH, generator=generator).to(dtype).requires_grad_()
    head = torch.randn(VOCABULARY, WIDTH, generator=generator).to(dtype).requires_grad_()
    return hidden, head, torch.randint(VOCABULARY, (rows,), generator=generator)


def plain(hidden, head, targets, temperature):
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    logp = torch.log_softmax(hidden.to(dtype) @ head.to(dtype).T / temperature, -1)
    return logp.gather(1, targets[:, None]).squeeze(1), -(logp.exp() * logp).sum(-1)


def with_gradients(function, hidden, head, targets, temperature=1.0):
    """Of a sum in which every log-prob and every entropy has a weight of its own."""
    logprobs, entropies = function(hidden, head, targets, temperature=temperature)
    weights = torch.linspace(-1, 2, 2 * len(targets)).to(logprobs.dtype).view(2, -1)
    total = (weights[0] * logprobs + weights[1] * entropies).sum()
    return [logprobs.detach(), entropies.detach(), *torch.autograd.grad(total, (hidden, head))]


def chunked(monkeypatch, rows):
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 * VOCABULARY * rows + 3)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 1.7])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_values_and_gradients_equal_log_softmax(monkeypatch, temperature, dtype, tolerance):
    chunked(monkeypatch, 5)  # 37 rows: the last chunk is cut short
    arguments = (*inputs(dtype), temperature)
    theirs = with_gradients(plain, *arguments)
    for a, b in zip(with_gradients(selected_logprobs, *arguments), theirs, strict=True):
        assert a.dtype == b.dtype == dtype
        assert (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_gradcheck(monkeypatch, temperature):
    chunked(monkeypatch, 2)
    hidden, head, targets = inputs(rows=5)
    head = head[:7].detach().requires_grad_()
    assert gradcheck(lambda h, w: selected_logprobs(h, w, targets % 7, temperature=temperature), (hidden, head))


@pytest.mark.parametrize("rows", [1, 7, 36, 37, 1000])
def test_the_chunk_does_not_matter(monkeypatch, rows):
    whole = with_gradients(selected_logprobs, *inputs())
    chunked(monkeypatch, rows)
    for a, b in zip(with_gradients(selected_logprobs, *inputs()), whole, strict=True):
        assert (a - b).abs().max() <= 1e-12


def test_a_vocabulary_larger_than_a_chunk_is_taken_a_row_at_a_time(monkeypatch):
    theirs = with_gradients(plain, *inputs())
    monkeypatch.setattr(module, "CHUNK_BYTES", 16)
    for a, b in zip(with_gradients(selected_logprobs, *inputs()), theirs, strict=True):
        assert (a - b).abs().max() <= 1e-12


def test_bfloat16_hidden_states_meet_a_float32_head():
    """The values are those of float32 arithmetic on the same numbers; only the gradients are rounded to bfloat16."""
    hidden, head, targets = inputs(torch.bfloat16)
    found = with_gradients(selected_logprobs, hidden, head, targets)
    exact = [x.detach().float().requires_grad_() for x in (hidden, head)]
    expected = with_gradients(plain, *exact, targets)
    assert [x.dtype for x in found] == [torch.float32, torch.float32, torch.bfloat16, torch.bfloat16]
    for a, b in zip(found[:2], expected[:2], strict=True):
        assert (a - b).abs().max() <= 1e-5
    for a, b in zip(found[2:], expected[2:], strict=True):
        assert (a.float() - b).abs().max() <= 2**-8 * b.abs().max()


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.elements = max(self.elements, out.numel())
        return out


def test_no_tensor_is_as_large_as_all_rows_times_the_vocabulary(monkeypatch):
    chunked(monkeypatch, 3)
    hidden, head, targets = inputs()
    with Largest() as largest:
        with_gradients(selected_logprobs, hidden, head, targets)
    assert largest.elements == head.numel()  # a chunk's 3 * 101 logits are fewer


def test_a_certain_distribution_has_no_entropy_and_no_nan():
    hidden = torch.tensor([[1000.0, 0.0]], requires_grad=True)
    head = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    found = with_gradients(selected_logprobs, hidden, head, torch.tensor([0]))
    assert [x.tolist() for x in found] == [[0.0], [0.0], [[0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]


def test_golden():
    """Probabilities 1/6, 2/6, 3/6 by hand: entropy = log(6) - (2 log 2 + 3 log 3) / 6."""
    hidden = torch.tensor([[1.0]]).double()
    head = torch.tensor([[1.0], [2.0], [3.0]]).double().log()
    logprobs, entropies = selected_logprobs(hidden, head, torch.tensor([1]))
    assert logprobs.item() == pytest.approx(-1.0986122886681098, abs=1e-15)
    assert entropies.item() == pytest.approx(1.0114042647073518, abs=1e-15)


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_without_log_probs_is_refused(temperature):
    hidden, head, targets = inputs()
    with pytest.raises(ValueError, match=r"temperature=.*> 0"):
        selected_logprobs(hidden, head, targets, temperature=temperature)
