"""Log-probs and entropies of chosen tokens against log_softmax, and what they cost: memory, products, passes."""

import math
from types import SimpleNamespace

import pytest
import torch
from allocations import peak_bytes
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from lockstep.model import logprobs as module
from lockstep.model.forward import square_norms, token_logprobs
from lockstep.model.logprobs import collision_probabilities, selected_logprobs
from lockstep.model.precision import Precision

ROWS, WIDTH, VOCABULARY = 37, 12, 101


def inputs(dtype=torch.float64, rows=ROWS):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, WIDTH, generator=generator).to(dtype).requires_grad_()
    head = torch.randn(VOCABULARY, WIDTH, generator=generator).to(dtype).requires_grad_()
    return hidden, head, torch.randint(VOCABULARY, (rows,), generator=generator)


def plain(hidden, head, targets, temperature=1.0, **_):
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    logp = torch.log_softmax(hidden.to(dtype) @ head.to(dtype).T / temperature, -1)
    return logp.gather(1, targets[:, None]).squeeze(1), -(logp.exp() * logp).sum(-1)


def with_gradients(function, hidden, head, targets, temperature=1.0, **options):
    """Of a sum in which every log-prob and every entropy has a weight of its own."""
    logprobs, entropies = function(hidden, head, targets, temperature=temperature, **options)
    weights = torch.linspace(-1, 2, 2 * len(targets)).to(logprobs.dtype).view(2, -1)
    total = (weights[0] * logprobs + weights[1] * entropies).sum()
    return [logprobs.detach(), entropies.detach(), *torch.autograd.grad(total, (hidden, head))]


def tiled(monkeypatch, rows, columns):
    monkeypatch.setattr(module, "CPU_TILE", (rows, columns))


def assert_close(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 1.7])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_values_and_gradients_equal_log_softmax(monkeypatch, temperature, dtype, tolerance):
    tiled(monkeypatch, 5, 13)  # 37 rows of 101 columns: the last tiles are cut short both ways
    arguments = (*inputs(dtype), temperature)
    found = with_gradients(selected_logprobs, *arguments)
    assert {x.dtype for x in found} == {dtype}
    assert_close(found, with_gradients(plain, *arguments), tolerance)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_gradcheck(monkeypatch, temperature):
    tiled(monkeypatch, 2, 3)
    hidden, head, targets = inputs(rows=5)
    head = head[:7].detach().requires_grad_()
    assert gradcheck(lambda h, w: selected_logprobs(h, w, targets % 7, temperature=temperature), (hidden, head))


@pytest.mark.parametrize("rows", [1, 7, 37, 1000])
@pytest.mark.parametrize("columns", [1, 10, 100, 101, 1000])
def test_the_tiles_do_not_matter(monkeypatch, rows, columns):
    whole = with_gradients(plain, *inputs())
    tiled(monkeypatch, rows, columns)
    assert_close(with_gradients(selected_logprobs, *inputs()), whole, 1e-12)


@pytest.mark.parametrize("column", [0, 12, 13, 50, 90, 91, 100])
def test_a_target_at_the_edge_of_a_block(monkeypatch, column):
    tiled(monkeypatch, 5, 13)
    hidden, head, targets = inputs()
    targets = torch.full_like(targets, column)
    assert_close(
        with_gradients(selected_logprobs, hidden, head, targets), with_gradients(plain, hidden, head, targets), 1e-12
    )


@pytest.mark.parametrize("highest", [1e4, -9e3])
@pytest.mark.parametrize("order", [1, -1])
def test_logits_of_ten_thousand_either_way(monkeypatch, order, highest):
    """Rising and falling across the blocks, so that the running maximum moves always or never; and none above 0."""
    tiled(monkeypatch, 2, 3)
    hidden = torch.tensor([[1.0], [-1.0], [1e-4], [0.0]]).double().requires_grad_()
    head = torch.linspace(*(-1e4, highest)[::order], 10).double()[:, None].requires_grad_()
    arguments = hidden, head, torch.tensor([9, 0, 4, 3])
    expected = with_gradients(plain, *arguments)
    found = with_gradients(selected_logprobs, *arguments)
    assert order == 1 or expected[0].min() < -999
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-11 * b.abs().max().clamp(min=1)
    rounded = with_gradients(
        selected_logprobs, *(x.detach().float().requires_grad_() for x in arguments[:2]), arguments[2]
    )
    assert_close(rounded, [x.float() for x in expected], 1e-3)


def test_the_entropy_of_a_nearly_certain_distribution_does_not_cancel():
    """One logit of 1020 above a thousand of 1000: entropy 4.3e-5, where log-sum-exp minus the mean logit, both 1020,
    would be off by 6e-5. A lone summit has none at all."""
    head = torch.full((1001, 1), 1000.0)
    head[500] = 1020
    targets = torch.tensor([500])
    exact = plain(torch.ones(1, 1).double(), head.double(), targets)[1].item()
    assert exact == pytest.approx(4.3284e-5, abs=1e-9)
    assert selected_logprobs(torch.ones(1, 1), head, targets)[1].item() == pytest.approx(exact, abs=1e-7)
    assert selected_logprobs(torch.full((1, 1), 50.0), head, targets)[1].item() == 0


@pytest.mark.parametrize("rows", [0, 1])
def test_few_tokens(rows):
    arguments = inputs(torch.float32, rows)
    logprobs, entropies, dhidden, dhead = with_gradients(selected_logprobs, *arguments)
    assert logprobs.shape == entropies.shape == (rows,)
    assert dhidden.shape == (rows, WIDTH)
    assert dhead.shape == (VOCABULARY, WIDTH)
    assert bool(dhead.any()) == bool(rows)


def test_bfloat16_hidden_states_meet_a_float32_head(monkeypatch):
    """The values are those of float32 arithmetic on the same numbers; only the gradients are rounded to bfloat16."""
    tiled(monkeypatch, 5, 13)
    hidden, head, targets = inputs(torch.bfloat16)
    found = with_gradients(selected_logprobs, hidden, head, targets)
    exact = [x.detach().float().requires_grad_() for x in (hidden, head)]
    expected = with_gradients(plain, *exact, targets)
    assert [x.dtype for x in found] == [torch.float32, torch.float32, torch.bfloat16, torch.bfloat16]
    assert_close(found[:2], expected[:2], 1e-5)
    for a, b in zip(found[2:], expected[2:], strict=True):
        assert torch.equal(a, b.bfloat16()) or (a.float() - b).abs().max() <= 2**-8 * b.abs().max()


def test_without_a_float32_head_the_logits_are_rounded_and_nothing_else(monkeypatch):
    tiled(monkeypatch, 5, 13)
    hidden, head, targets = inputs(torch.bfloat16)
    found = selected_logprobs(hidden, head, targets, temperature=0.7, fp32_head=False)
    logits = (hidden @ head.T).float() / 0.7
    logp = torch.log_softmax(logits, -1)
    expected = logp.gather(1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)
    assert_close(found, expected, 1e-5)
    assert (found[0] - selected_logprobs(hidden, head, targets, temperature=0.7)[0]).abs().max() > 1e-3
    assert found[0].dtype == torch.float32
    *_, dhidden, dhead = with_gradients(selected_logprobs, hidden, head, targets, fp32_head=False)
    *_, expected_dhidden, expected_dhead = with_gradients(selected_logprobs, hidden, head, targets)
    for a, b in ((dhidden, expected_dhidden), (dhead, expected_dhead)):
        assert a.dtype == torch.bfloat16
        assert 0 < (a - b).abs().max() <= 0.1 * b.abs().max()


def test_without_a_float32_head_a_float32_model_is_the_same():
    arguments = inputs(torch.float32)
    found = with_gradients(selected_logprobs, *arguments, fp32_head=False)
    for a, b in zip(found, with_gradients(selected_logprobs, *arguments), strict=True):
        assert torch.equal(a, b)


def test_products_of_bfloat16_as_on_cuda(monkeypatch):
    """There they are not converted first; a float32 factor becomes two of bfloat16. Emulated: no CPU has the kernel."""
    hidden, head, targets = inputs(torch.bfloat16)
    calls = []

    def mm(a, b, out_dtype):
        calls.append(1)
        assert a.dtype == b.dtype == torch.bfloat16
        return a.to(out_dtype) @ b.to(out_dtype)

    monkeypatch.setattr(module, "_multiplies_wide", lambda a, b: torch.bfloat16 in (a.dtype, b.dtype))
    monkeypatch.setattr(module.torch, "mm", mm)
    logits = module.Logits(hidden, head, 1.0, True)
    tile = logits.tile(slice(0, 5), next(logits.blocks())[1])
    assert torch.equal(tile, hidden[:5].float() @ head.float().T)
    found = with_gradients(selected_logprobs, hidden, head, targets)
    assert len(calls) == 1 + 2 + 2 * 2  # the tile here; a tile forward and backward; two products of two parts
    exact = [x.detach().float().requires_grad_() for x in (hidden, head)]
    assert_close(found[:2], with_gradients(plain, *exact, targets)[:2], 1e-5)
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(20, 30, generator=generator), torch.randn(30, 10, generator=generator).bfloat16()
    assert (module._product(a, b) - a @ b.float()).abs().max() <= 2**-16 * (a.abs() @ b.float().abs()).max()


class Work(TorchDispatchMode):
    """Of the operations within: the elements of the largest result, how many are products, and how many, views aside,
    give a result of `size` elements."""

    def __init__(self, size=None):
        super().__init__()
        self.size, self.largest, self.products, self.passes = size, 0, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.products += func is torch.ops.aten.mm.default
        if isinstance(out, torch.Tensor):
            self.largest = max(self.largest, out.numel())
            self.passes += out.numel() == self.size and not func.is_view
        return out


def test_no_tensor_is_as_large_as_all_rows_times_the_vocabulary(monkeypatch):
    tiled(monkeypatch, 3, 50)
    hidden, head, targets = inputs()
    with Work() as work:
        with_gradients(selected_logprobs, hidden, head, targets)
    assert work.largest == head.numel()  # a tile's 3 * 50 logits are fewer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peak_memory(monkeypatch, dtype):
    """The gradients of the inputs, float32 sums of one of them, a block of the head converted, and a few tiles: less
    than a float32 copy of the head (4 MB here), and nothing like all logits (16 MB)."""
    tiled(monkeypatch, 64, 256)
    rows, width, vocabulary = 500, 128, 8000
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, width, generator=generator).to(dtype).requires_grad_()
    head = torch.randn(vocabulary, width, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    peak, _ = peak_bytes(lambda: with_gradients(selected_logprobs, hidden, head, targets))
    gradients = (hidden.numel() + head.numel()) * dtype.itemsize
    assert peak - gradients <= 4 * (rows * width + 2 * 256 * width + 12 * rows + 6 * 64 * 256)


@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
def test_nothing_is_computed_for_what_needs_no_gradient(monkeypatch, needs):
    tiled(monkeypatch, 10, 50)
    hidden, head, targets = inputs()
    expected = with_gradients(selected_logprobs, hidden, head, targets)[2:]
    for x, needed in zip((hidden, head), needs, strict=True):
        x.requires_grad_(needed)
    logprobs, entropies = selected_logprobs(hidden, head, targets)
    weights = torch.linspace(-1, 2, 2 * len(targets)).double().view(2, -1)
    with Work() as work:
        ((weights[0] * logprobs).sum() + (weights[1] * entropies).sum()).backward()
    num_tiles = math.ceil(ROWS / 10) * math.ceil(VOCABULARY / 50)
    assert work.products == num_tiles * (1 + sum(needs))
    for x, needed, gradient in zip((hidden, head), needs, expected, strict=True):
        assert (x.grad is not None) == needed
        assert not needed or (x.grad - gradient).abs().max() <= 1e-12


@pytest.mark.parametrize(("used", "passes"), [(False, 6), (True, 9)])
def test_entropies_without_a_gradient_cost_the_backward_nothing(monkeypatch, used, passes):
    """Operations on a tile: product, subtraction, two for exp, mul, scatter; an entropy's gradient takes three more."""
    tiled(monkeypatch, 10, 50)
    hidden, head, targets = inputs(rows=10)
    head = head[:50].detach().requires_grad_()
    logprobs, entropies = selected_logprobs(hidden, head, targets % 50)
    with Work(size=10 * 50) as work:
        (logprobs.sum() + entropies.sum() if used else logprobs.sum()).backward()
    assert work.passes == passes


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


def test_a_row_has_the_same_bits_wherever_it_is_among_32():
    """What the deterministic mode builds on."""
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(32, 24, generator=generator)
    head = torch.randn(5003, 24, generator=generator)  # an odd number of columns in the last block
    targets = torch.randint(5003, (32,), generator=generator)
    found = torch.stack(selected_logprobs(hidden, head, targets))
    for _ in range(5):
        order = torch.randperm(32, generator=generator)
        moved = torch.stack(selected_logprobs(hidden[order], head, targets[order]))
        assert torch.equal(moved, found[:, order])


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_without_log_probs_is_refused(temperature):
    hidden, head, targets = inputs()
    with pytest.raises(ValueError, match=r"temperature=.*> 0"):
        selected_logprobs(hidden, head, targets, temperature=temperature)


@pytest.mark.parametrize("token", [-1, VOCABULARY])
def test_a_token_outside_the_vocabulary_is_refused(token):
    hidden, head, targets = inputs()
    targets[3] = token
    with pytest.raises(ValueError, match=rf"token {token} is outside.*{VOCABULARY}"):
        selected_logprobs(hidden, head, targets)


# Collision probabilities and square norms


def collisions(hidden, head, temperature=1.0):
    """In float64, over all logits at once."""
    return torch.softmax(hidden.detach().double() @ head.detach().double().T / temperature, -1).square().sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 3e-6), (torch.bfloat16, 3e-6)]
)
@pytest.mark.parametrize("tile", [(5, 13), (1, 1), (64, 101), (64, 1000)])
def test_collision_probabilities_equal_those_of_a_softmax(monkeypatch, tile, dtype, tolerance, temperature):
    """37 rows of 101 columns: tiles cut short both ways, of single logits, exact, and too large."""
    tiled(monkeypatch, *tile)
    hidden, head, _ = inputs(dtype)
    found = collision_probabilities(hidden, head, temperature=temperature)
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    assert not found.requires_grad
    assert (found - collisions(hidden, head, temperature)).abs().max() <= tolerance


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("highest", [1e4, -9e3])
def test_collisions_of_logits_of_ten_thousand_either_way(monkeypatch, order, highest):
    """As in the test of log-probs above: the running maximum moves always or never."""
    tiled(monkeypatch, 2, 3)
    hidden = torch.tensor([[1.0], [-1.0], [1e-4], [0.0]])
    head = torch.linspace(*(-1e4, highest)[::order], 10)[:, None]
    found = collision_probabilities(hidden, head)
    assert (found - collisions(hidden, head)).abs().max() <= 1e-5
    assert found[0] == 1.0
    assert found[3] == pytest.approx(0.1, abs=1e-7)


def test_collisions_golden(monkeypatch):
    """Probabilities 1/6, 2/6, 3/6: (1 + 4 + 9) / 36, and at temperature 1/2, 1, 4, 9 of 14: 98 / 196."""
    tiled(monkeypatch, 1, 2)
    hidden, head = torch.tensor([[1.0]]).double(), torch.tensor([[1.0], [2.0], [3.0]]).double().log()
    assert collision_probabilities(hidden, head).item() == pytest.approx(14 / 36, abs=1e-15)
    assert collision_probabilities(hidden, head, temperature=0.5).item() == pytest.approx(98 / 196, abs=1e-15)


def test_collisions_keep_no_logits_of_all_rows(monkeypatch):
    tiled(monkeypatch, 3, 50)
    hidden, head, _ = inputs()
    with Work() as work:
        collision_probabilities(hidden, head)
    assert work.largest == 50 * WIDTH  # a block of the head; a tile's 3 * 50 logits are fewer


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("precision", [Precision(), Precision(deterministic=True)], ids=["default", "deterministic"])
def test_square_norms_are_those_of_the_gradient_in_the_logits(monkeypatch, precision, temperature):
    """Against autograd in float64, the logits being those after the temperature."""
    tiled(monkeypatch, 5, 13)
    hidden, head, targets = inputs(torch.float32)
    model = SimpleNamespace(get_output_embeddings=lambda: SimpleNamespace(weight=head))
    logprobs, _ = token_logprobs(model, hidden, targets, temperature, precision)
    found = square_norms(model, hidden, logprobs, temperature, precision)
    assert not found.requires_grad
    logits = (hidden.detach().double() @ head.detach().double().T / temperature).requires_grad_()
    chosen = torch.log_softmax(logits, -1).gather(1, targets[:, None]).sum()
    (gradient,) = torch.autograd.grad(chosen, logits)
    assert (found - gradient.square().sum(-1)).abs().max() <= 2e-6


def test_square_norms_golden():
    """p = 1/6, 2/6, 3/6 and the second token: (1/6)^2 + (4/6)^2 + (3/6)^2 = 26/36."""
    hidden, head = torch.tensor([[1.0]]), torch.tensor([[1.0], [2.0], [3.0]]).log()
    model = SimpleNamespace(get_output_embeddings=lambda: SimpleNamespace(weight=head))
    found = square_norms(model, hidden, torch.tensor([1 / 3]).log(), 1.0, Precision())
    assert found.item() == pytest.approx(26 / 36, abs=1e-6)
