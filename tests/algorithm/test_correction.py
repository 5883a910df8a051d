"""Rollout correction against numbers worked by hand, and against exact expectations over small vocabularies."""

import itertools
import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from lockstep.algorithm.correction import Correction, DivergenceMask, ImportanceWeights, Rejection, Veto
from lockstep.algorithm.tokens import ActionTokens, sum_by

LN2, LN3, LN5 = math.log(2), math.log(3), math.log(5)
INF = math.inf


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def corrected(correction, difference, sequence, num_sequences=None):
    """The correction of tokens whose trainer's log-probs exceed the engine's by `difference`."""
    difference = torch.as_tensor(difference, dtype=torch.float64)
    sequence = torch.tensor(sequence)
    engine = torch.linspace(-3, -1, len(difference), dtype=torch.float64)
    size = int(sequence.max()) + 1 if num_sequences is None else num_sequences
    return correction(engine + difference, engine, sequence, size)


def weights_of(weights, difference, sequence, **options):
    return corrected(Correction(weights=weights, **options), difference, sequence).weights


def kept_of(difference, sequence, **options):
    return corrected(Correction(weights=None, **options), difference, sequence).kept.tolist()


# --- golden numbers -------------------------------------------------------------------------------------------------

# Ratios 2, 1/2, 3 of sequence 0: product 3, geometric mean 3^(1/3). 1/5 of sequence 1.
DIFFERENCE, SEQUENCE = [LN2, -LN2, LN3, -LN5], [0, 0, 0, 1]
ROOT = 3 ** (1 / 3)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"level": "token", "upper": INF}, [2, 0.5, 3, 0.2]),
        ({"level": "token", "upper": 2.5}, [2, 0.5, 2.5, 0.2]),
        ({"level": "token", "upper": 2.5, "lower": 0.3}, [2, 0.5, 2.5, 0.3]),
        ({"level": "token", "upper": 2.5, "lower": 0.3, "outside": "drop"}, [2, 0.5, 0, 0]),
        ({"level": "token", "upper": 2.5, "outside": "drop"}, [2, 0.5, 0, 0.2]),
        ({"level": "token", "upper": INF, "lower": 0.3, "outside": "drop"}, [2, 0.5, 3, 0]),
        ({"level": "sequence", "upper": INF}, [3, 3, 3, 0.2]),
        ({"level": "sequence", "upper": 2}, [2, 2, 2, 0.2]),
        ({"level": "sequence", "upper": 2, "lower": 0.1, "outside": "drop"}, [0, 0, 0, 0.2]),
        ({"level": "sequence", "upper": 4, "lower": 0.3, "outside": "drop"}, [3, 3, 3, 0]),
        ({"level": "geometric", "upper": INF}, [ROOT, ROOT, ROOT, 0.2]),
        ({"level": "geometric", "upper": 1.4}, [1.4, 1.4, 1.4, 0.2]),
        ({"level": "geometric", "upper": 1.4, "lower": 0.1, "outside": "drop"}, [0, 0, 0, 0.2]),
        # means of the kept tokens: 5.7 / 4; 2.5 / 2, the two dropped ones neither summed nor counted
        ({"level": "token", "upper": INF, "normalize": True}, [2 * 4 / 5.7, 2 / 5.7, 12 / 5.7, 0.8 / 5.7]),
        ({"level": "token", "upper": 2.5, "lower": 0.3, "outside": "drop", "normalize": True}, [1.6, 0.4, 0, 0]),
        # over tokens, not sequences: (3 + 3 + 3 + 0.2) / 4 = 2.3
        ({"level": "sequence", "upper": INF, "normalize": True}, [3 / 2.3, 3 / 2.3, 3 / 2.3, 0.2 / 2.3]),
    ],
)
def test_weights(options, expected):
    found = corrected(Correction(weights=ImportanceWeights(**options)), DIFFERENCE, SEQUENCE)
    torch.testing.assert_close(found.weights, doubles(*expected))
    assert found.kept.tolist() == [weight > 0 for weight in expected]
    if not options.get("normalize"):  # alone they say the same
        alone = ImportanceWeights(**options)(doubles(*DIFFERENCE), torch.tensor(SEQUENCE), 2)
        torch.testing.assert_close(alone.weights, found.weights)
        assert torch.equal(alone.kept, found.kept)


def test_a_weight_on_a_bound_stays():
    """On policy every weight is exactly 1, which [0.5, 1] and [1, 2] contain."""
    for level in ("token", "sequence", "geometric"):
        for bounds in ({"upper": 1.0, "lower": 0.5}, {"upper": 2.0, "lower": 1.0}):
            drop = made(ImportanceWeights, level=level, outside="drop", **bounds)
            assert weights_of(drop, [0.0, 0.0], [0, 0]).tolist() == [1, 1]


def test_default_is_token_weights_truncated_at_2():
    found = corrected(Correction(), DIFFERENCE, SEQUENCE)
    torch.testing.assert_close(found.weights, doubles(2, 0.5, 2, 0.2))
    assert found.kept.all()
    assert Correction() == Correction(weights=ImportanceWeights(level="token", upper=2, lower=0, outside="truncate"))


# d = 0.5 and -0.1 in sequence 0; -0.5 in 1; 0.2 and 0 in 2.
#   k1: -0.5 0.1 | 0.5 | -0.2 0      sums -0.4, 0.5, -0.2          means -0.2, 0.5, -0.1
#   k2: 0.125 0.005 | 0.125 | 0.02 0 sums 0.13, 0.125, 0.02        means 0.065, 0.125, 0.01
#   k3: 0.1487 0.0048 | 0.1065 | 0.0214 0  sums 0.1536, 0.1065, 0.0214  means 0.0768, 0.1065, 0.0107
REJECTED, OF = [0.5, -0.1, -0.5, 0.2, 0.0], [0, 0, 1, 2, 2]


@pytest.mark.parametrize(
    ("statistic", "over", "lower", "upper", "expected"),
    [
        ("k1", "token", None, 0.3, [1, 1, 0, 1, 1]),
        ("k1", "token", None, 0.05, [1, 0, 0, 1, 1]),
        ("k1", "token", -0.3, 0.6, [0, 1, 1, 1, 1]),
        ("k1", "token", -0.1, INF, [0, 1, 1, 0, 1]),
        ("k1", "sequence_sum", -0.3, 1, [0, 0, 1, 1, 1]),
        ("k1", "sequence_sum", None, 0.4, [1, 1, 0, 1, 1]),
        ("k1", "sequence_mean", -0.3, 0.4, [1, 1, 0, 1, 1]),
        ("k1", "sequence_mean", -0.15, 0.6, [0, 0, 1, 1, 1]),
        ("k2", "token", None, 0.1, [0, 1, 0, 1, 1]),
        ("k2", "token", None, 0.01, [0, 1, 0, 0, 1]),
        ("k2", "sequence_sum", None, 0.127, [0, 0, 1, 1, 1]),
        ("k2", "sequence_mean", None, 0.1, [1, 1, 0, 1, 1]),
        ("k2", "sequence_max", None, 0.1, [0, 0, 0, 1, 1]),
        ("k3", "token", None, 0.12, [0, 1, 1, 1, 1]),
        ("k3", "token", None, 0.02, [0, 1, 0, 0, 1]),
        ("k3", "sequence_sum", None, 0.15, [0, 0, 1, 1, 1]),
        ("k3", "sequence_mean", None, 0.1, [1, 1, 0, 1, 1]),
        ("k3", "sequence_mean", None, 0.05, [0, 0, 0, 1, 1]),
        ("k3", "sequence_max", None, 0.12, [0, 0, 1, 1, 1]),
    ],
)
def test_rejection(statistic, over, lower, upper, expected):
    rejection = Rejection(statistic=statistic, over=over, lower=lower, upper=upper)
    assert kept_of(REJECTED, OF, rejection=rejection) == [bool(kept) for kept in expected]


@pytest.mark.parametrize("over", ["token", "sequence_sum", "sequence_mean", "sequence_max"])
def test_a_statistic_on_its_bound_stays(over):
    """d = +-2 has k2 = 2 exactly, and k1 = -+2."""
    difference, sequence = doubles(2.0, -2.0), torch.tensor([0, 1])
    assert Rejection(statistic="k2", over=over, upper=2.0)(difference, sequence, 2).tolist() == [True, True]
    assert Rejection(statistic="k2", over=over, upper=1.999)(difference, sequence, 2).tolist() == [False, False]
    if over != "sequence_max":
        both = Rejection(statistic="k1", over=over, lower=-2.0, upper=2.0)
        assert both(difference, sequence, 2).tolist() == [True, True]
        assert Rejection(statistic="k1", over=over, upper=1.9)(difference, sequence, 2).tolist() == [True, False]
        assert Rejection(statistic="k1", over=over, upper=3, lower=-1.9)(difference, sequence, 2).tolist() == [
            False,
            True,
        ]


def test_k1_bounds_are_nats_where_verls_are_ratios_of_engine_to_trainer():
    """verl's "0.5_4": 1/r in [0.5, 4], so r in [0.25, 2]: r = 3 goes, r = 0.3 stays."""
    rejection = Rejection(statistic="k1", over="token", lower=math.log(0.5), upper=math.log(4))
    assert kept_of([LN3, math.log(1.9), math.log(0.3), -LN5], [0] * 4, rejection=rejection) == [0, 1, 1, 0]


def test_k3_is_exact_near_0_and_saturates_far_off():
    """k3 of d = 1e-8 is 5e-17, which exp(d) - 1 - d cannot see; of d = 100, that of 20."""
    small, large = doubles(1e-8), doubles(100.0)
    one = torch.tensor([0])
    assert Rejection(statistic="k3", over="token", upper=5.01e-17)(small, one, 1).all()
    assert not Rejection(statistic="k3", over="token", upper=4.99e-17)(small, one, 1).any()
    assert Rejection(statistic="k3", over="token", upper=math.exp(20))(large, one, 1).all()
    assert not Rejection(statistic="k3", over="token", upper=math.exp(20) - 22)(large, one, 1).any()
    assert not Rejection(statistic="k3", over="token", upper=100)(doubles(1e12), one, 1).any()
    assert Rejection(statistic="k3", over="token", upper=19.1)(doubles(-1e12), one, 1).all()  # exp(-20) - 1 + 20


def test_veto_takes_the_whole_sequence_of_a_catastrophic_token():
    """Ratios 1, 1/20 | 1/5, 1 | 40: a threshold of 0.1 vetoes the first sequence, 0.01 none, 0.3 two."""
    difference, sequence = [0.0, -math.log(20), -LN5, 0.0, math.log(40)], [0, 0, 1, 1, 2]
    assert kept_of(difference, sequence, veto=Veto(threshold=0.1)) == [0, 0, 1, 1, 1]
    assert kept_of(difference, sequence, veto=Veto(threshold=0.01)) == [1] * 5
    assert kept_of(difference, sequence, veto=Veto(threshold=0.3)) == [0, 0, 0, 0, 1]
    assert kept_of([-9.2, -9.3], [0, 1], veto=Veto()) == [1, 0]  # log(1e-4) = -9.21
    assert kept_of([-41.0, -42.0], [0, 1], veto=Veto(threshold=1e-18)) == [1, 0]  # log = -41.4, beyond the clamp


def tokens_of(engine, advantages, sequence, num_sequences):
    size = len(sequence)
    return ActionTokens(
        engine_logprobs=engine,
        old_logprobs=torch.full((size,), -50.0, dtype=torch.float64),  # nothing reads them
        advantages=advantages,
        sequence=torch.tensor(sequence),
        trajectory=torch.zeros(size, dtype=torch.int64),
        turn=torch.zeros(size, dtype=torch.int64),
        num_sequences=num_sequences,
        num_trajectories=1,
    )


def test_divergence_mask_takes_bad_sequences_the_policy_left():
    """Mean log(mu / pi): 0.6, 0.6, -0.6, 0.4; advantages -, +, -, -: only the first is bad and left behind."""
    current = doubles(-1, -2, -1, -1, -1)
    lost = doubles(1.0, 0.2, 0.6, -0.6, 0.4)
    tokens = tokens_of(current + lost, doubles(-1, -1, 1, -1, -1), [0, 0, 1, 2, 3], 5)
    mask = DivergenceMask(threshold=0.5)
    assert mask(current, tokens).tolist() == [0, 0, 1, 1, 1]
    assert DivergenceMask(threshold=0.3)(current, tokens).tolist() == [0, 0, 1, 1, 0]
    assert DivergenceMask(threshold=0.61)(current, tokens).all()
    assert Correction(divergence_mask=mask).keeps(current, tokens).tolist() == [0, 0, 1, 1, 1]
    assert Correction().keeps(current, tokens).tolist() == [True] * 5
    assert mask == DivergenceMask()


def test_divergence_mask_at_its_edges():
    """An advantage of 0 is not bad; a mean on the threshold is not above it; a token's own advantage decides."""
    current = doubles(-1, -1, -1, -1)
    tokens = tokens_of(current + doubles(1, 0.5, 2, 2), doubles(0, -1, -1, 1), [0, 1, 2, 2], 3)
    assert DivergenceMask(threshold=0.5)(current, tokens).tolist() == [1, 1, 0, 1]
    assert not DivergenceMask(threshold=0.5)(current.requires_grad_(), tokens).requires_grad


@pytest.mark.parametrize("broken", [math.nan, INF, -INF])
@pytest.mark.parametrize("side", ["current", "engine"])
def test_divergence_mask_keeps_a_broken_sequence_to_itself(broken, side):
    current, engine = doubles(-1, -1, -1, -1), doubles(-1, -1, 1, -1)
    (current if side == "current" else engine)[1] = broken
    tokens = tokens_of(engine, doubles(1, 1, -1, -1), [0, 0, 1, 2], 3)
    assert DivergenceMask()(current, tokens).tolist() == [0, 0, 0, 1]


# --- expectations, exactly ------------------------------------------------------------------------------------------

VOCABULARY, LENGTH = 3, 3


def autoregressive(seed):
    """Log-prob tables of a random model, one a history, and all 27 sequences' token log-probs [27, 3]."""
    generator = torch.Generator().manual_seed(seed)
    tables = {}
    for length in range(LENGTH):
        for history in itertools.product(range(VOCABULARY), repeat=length):
            logits = torch.randn(VOCABULARY, generator=generator, dtype=torch.float64)
            tables[history] = logits.log_softmax(0)
    texts = list(itertools.product(range(VOCABULARY), repeat=LENGTH))
    return tables, torch.stack([torch.stack([tables[x[:t]][x[t]] for t in range(LENGTH)]) for x in texts])


ENGINE_TABLES, ENGINE = autoregressive(1)
TRAINER_TABLES, TRAINER = autoregressive(2)
MU, PI = ENGINE.sum(1).exp(), TRAINER.sum(1).exp()  # [27]
SIZE = VOCABULARY**LENGTH
VALUE = torch.rand(SIZE, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.1


def sequence_weights(**options):
    """[27]: weights of all sequences of the small language, taken at their first tokens."""
    sequence = torch.arange(SIZE).repeat_interleave(LENGTH)
    correction = Correction(weights=ImportanceWeights(**options))
    found = correction(TRAINER.flatten(), ENGINE.flatten(), sequence, SIZE).weights.view(SIZE, LENGTH)
    return found[:, 0] if options.get("level") != "token" else found


def test_token_weights_are_unbiased_for_one_token():
    """E_mu[w] = 1 and E_mu[w f] = E_pi[f], by the sum over the vocabulary, at every history."""
    for history, engine in ENGINE_TABLES.items():
        trainer = TRAINER_TABLES[history]
        weights = Correction(weights=ImportanceWeights(upper=INF))(trainer, engine, torch.arange(3), 3).weights
        f = VALUE[:VOCABULARY]
        torch.testing.assert_close((engine.exp() * weights).sum(), doubles(1.0)[0])
        torch.testing.assert_close((engine.exp() * weights * f).sum(), (trainer.exp() * f).sum())


def test_sequence_weights_are_unbiased_for_sequences_and_token_weights_are_not():
    """E_mu[w f] = E_pi[f] by enumeration; a token's own weight corrects that token only."""
    weights = sequence_weights(level="sequence", upper=INF)
    torch.testing.assert_close((MU * weights).sum(), doubles(1.0)[0])
    torch.testing.assert_close((MU * weights * VALUE).sum(), (PI * VALUE).sum())
    tokens = sequence_weights(level="token", upper=INF)
    for t in range(LENGTH):
        torch.testing.assert_close((MU * tokens[:, t]).sum(), doubles(1.0)[0])
    starts = torch.arange(SIZE) < SIZE // VOCABULARY  # the first token is 0: the last one's weight says nothing of it
    torch.testing.assert_close((MU * tokens[:, -1] * starts).sum(), ENGINE_TABLES[()][0].exp())
    torch.testing.assert_close((MU * weights * starts).sum(), TRAINER_TABLES[()][0].exp())
    geometric = sequence_weights(level="geometric", upper=INF)
    assert (MU * geometric).sum() < 0.99  # Jensen: E[x^(1/3)] < E[x]^(1/3) = 1


def test_truncation_and_dropping_bias_in_their_direction():
    """min(w, C) <= w, so a positive value is underestimated, less so with a larger C; dropping loses more than cutting,
    and raising small weights overestimates."""
    true = (PI * VALUE).sum()

    def estimate(**options):
        return (MU * sequence_weights(level="sequence", **options) * VALUE).sum()

    assert estimate(upper=1.5) < estimate(upper=3.0) < estimate(upper=INF)
    torch.testing.assert_close(estimate(upper=INF), true)
    assert estimate(upper=1.5, outside="drop") < estimate(upper=1.5)
    assert estimate(upper=INF, lower=0.5, outside="drop") < true < estimate(upper=INF, lower=0.5)
    # what truncation loses is exactly the mass above the bound
    ratio = PI / MU
    torch.testing.assert_close(true - estimate(upper=1.5), (MU * (ratio - 1.5).clamp(min=0) * VALUE).sum())


def test_k1_and_k3_have_the_divergence_of_engine_from_trainer_as_their_mean():
    """E_mu[k1] = E_mu[k3] = KL(mu || pi): the sum of d over pi instead, or of -d, would not be."""
    engine, trainer = ENGINE_TABLES[()], TRAINER_TABLES[()]
    divergence = (engine.exp() * (engine - trainer)).sum()
    for statistic in ("k1", "k3"):
        rejection = Rejection(statistic=statistic, over="token", upper=1.0)
        mean = (engine.exp() * rejection._of_tokens(trainer - engine)).sum()
        torch.testing.assert_close(mean, divergence)


# --- the composition ------------------------------------------------------------------------------------------------


def test_everything_that_drops_drops_and_only_what_is_kept_is_normalised():
    """Ratios 2, 1 | 1/2 | 4, 1 | 8: the veto takes 1/2, k1 over tokens (r <= 5) takes 8, weights above 3 are dropped.
    Kept are 2, 1 and 1, their mean 4/3: weights 1.5, 0.75, 0, 0, 0.75, 0."""
    correction = Correction(
        weights=ImportanceWeights(upper=3, outside="drop", normalize=True),
        rejection=Rejection(statistic="k1", over="token", lower=-LN5, upper=1.0),
        veto=Veto(threshold=0.6),
    )
    found = corrected(correction, [LN2, 0, -LN2, 2 * LN2, 0, 3 * LN2], [0, 0, 1, 2, 2, 3])
    torch.testing.assert_close(found.weights, doubles(1.5, 0.75, 0, 0, 0.75, 0))
    assert found.kept.tolist() == [1, 1, 0, 0, 1, 0]


def test_rejection_and_veto_see_ratios_not_weights():
    """A ratio of 8 that truncation makes 1 is rejected all the same, and truncated weights of rejected tokens are 0."""
    correction = Correction(
        weights=ImportanceWeights(upper=1.5), rejection=Rejection(statistic="k2", over="token", upper=1.0)
    )
    found = corrected(correction, [3 * LN2, LN2], [0, 0])
    torch.testing.assert_close(found.weights, doubles(0, 1.5))
    assert found.kept.tolist() == [False, True]


def test_when_all_is_dropped_nothing_is_nan():
    correction = Correction(weights=ImportanceWeights(upper=1.5, outside="drop", normalize=True))
    found = corrected(correction, [3.0, 4.0], [0, 1])
    assert found.weights.tolist() == [0, 0] and not found.kept.any()


@pytest.mark.parametrize("over", ["token", "sequence_sum", "sequence_mean", "sequence_max"])
def test_no_tokens_and_absent_sequences(over):
    correction = Correction(
        weights=ImportanceWeights(level="geometric", upper=INF),
        rejection=Rejection(statistic="k2", over=over, upper=1.0),
        veto=Veto(),
    )
    empty = correction(doubles(), doubles(), torch.zeros(0, dtype=torch.int64), 3)
    assert empty.weights.shape == empty.kept.shape == (0,)
    found = corrected(correction, [LN2, LN3], [1, 4], num_sequences=7)
    torch.testing.assert_close(found.weights, doubles(2, 3))


def test_weights_are_constants_in_the_trainers_dtype():
    trainer = torch.tensor([-1.0, -2.0], requires_grad=True)
    engine = torch.tensor([-1.5, -1.0], dtype=torch.float64, requires_grad=True)
    found = Correction(weights=ImportanceWeights(normalize=True))(trainer, engine, torch.tensor([0, 0]), 1)
    assert found.weights.dtype == torch.float32 and not found.weights.requires_grad
    assert found.kept.dtype == torch.bool


def test_float32_log_probs_are_summed_in_float64():
    """2^16 tokens of d = 1e-4, log-probs near -30: float32 would round each difference to 2e-6 and their sum more."""
    size = 2**16
    trainer = torch.full((size,), -30.0)
    engine = trainer.double() - 1e-4
    correction = Correction(weights=ImportanceWeights(level="sequence", upper=INF))
    found = correction(trainer, engine, torch.zeros(size, dtype=torch.int64), 1).weights
    assert found[0].item() == pytest.approx(math.exp(1e-4 * size), rel=1e-6)


# --- what may not be said -------------------------------------------------------------------------------------------

TIS, REJECT = ImportanceWeights(), Rejection(statistic="k2", over="token", upper=1.0)
ICEPOP = ImportanceWeights(lower=0.5, upper=5.0, outside="drop")


def made(kind, **options):
    """Also with values that the type checker would refuse."""
    return kind(**options)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: made(ImportanceWeights, level="turn"), "level='turn'"),
        (lambda: made(ImportanceWeights, outside="clip"), "outside='clip'"),
        (lambda: ImportanceWeights(upper=0.9), "upper=0.9"),
        (lambda: ImportanceWeights(upper=math.nan), "upper=nan"),
        (lambda: ImportanceWeights(lower=-0.1), "lower=-0.1"),
        (lambda: ImportanceWeights(lower=1.1), "lower=1.1"),
        (lambda: ImportanceWeights(lower=math.nan), "lower=nan"),
        (lambda: ImportanceWeights(lower=1.0, upper=1.0), "below upper=1.0"),
        (lambda: ImportanceWeights(upper=INF, outside="drop"), "drops nothing"),
        (lambda: made(Rejection, statistic="k4", over="token", upper=1), "statistic='k4'"),
        (lambda: made(Rejection, statistic="k1", over="turn", upper=1), "over='turn'"),
        (lambda: Rejection(statistic="k2", over="token", upper=0), "upper=0"),
        (lambda: Rejection(statistic="k1", over="token", upper=math.nan), "upper=nan"),
        (lambda: Rejection(statistic="k2", over="token", upper=1, lower=-1), "lower=-1: k2 is never negative"),
        (lambda: Rejection(statistic="k3", over="token", upper=1, lower=-1), "lower=-1: k3 is never negative"),
        (lambda: Rejection(statistic="k1", over="token", upper=1, lower=0), "lower=0: must be < 0"),
        (lambda: Rejection(statistic="k1", over="token", upper=1, lower=math.nan), "lower=nan"),
        (lambda: Rejection(statistic="k1", over="sequence_max", upper=1), "over='sequence_max'"),
        (lambda: Rejection(statistic="k3", over="token", upper=INF), "drops nothing"),
        (lambda: Rejection(statistic="k1", over="token", upper=INF, lower=-INF), "drops nothing"),
        (lambda: Veto(threshold=0), "threshold=0"),
        (lambda: Veto(threshold=1.0), "threshold=1.0"),
        (lambda: DivergenceMask(threshold=0), "threshold=0"),
        (lambda: DivergenceMask(threshold=INF), "threshold=inf"),
        (lambda: DivergenceMask(threshold=math.nan), "threshold=nan"),
        (lambda: made(Correction, anchor="engine"), "anchor='engine'"),
        (lambda: Correction(rejected_in_denominator=False), "rejected_in_denominator=False"),
        (lambda: Correction(divergence_mask=DivergenceMask(), rejected_in_denominator=False), "nothing is rejected"),
        (lambda: Correction(weights=None, rejected_in_denominator=False), "nothing is rejected"),
        (lambda: Correction(anchor="bypass").check(True), "weight already"),
        (lambda: Correction(anchor="bypass", rejection=REJECT).check(True), "weight already"),
        (lambda: Correction(weights=None, anchor="bypass").check(False), "corrects nothing"),
        (
            lambda: Correction(weights=None, anchor="bypass", divergence_mask=DivergenceMask()).check(False),
            "corrects nothing",
        ),
    ],
)
def test_what_means_nothing_is_refused_in_one_line(build, message):
    with pytest.raises(ValueError, match=r".") as error:
        build()
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("correction", "loss_uses_ratio"),
    [
        (Correction(), True),
        (Correction(), False),
        (Correction(weights=None), True),
        (Correction(weights=None), False),
        (Correction(anchor="bypass"), False),
        (Correction(weights=None, anchor="bypass"), True),
        (Correction(weights=None, rejection=REJECT, anchor="bypass"), True),
        (Correction(weights=None, rejection=REJECT, anchor="bypass"), False),
        (Correction(weights=None, veto=Veto(), anchor="bypass"), False),
    ],
)
def test_what_goes_together_passes(correction, loss_uses_ratio):
    correction.check(loss_uses_ratio)


def test_needs_batch_and_can_drop():
    assert not Correction().needs_batch and not Correction().can_drop
    assert not Correction(weights=None, divergence_mask=DivergenceMask()).can_drop
    assert Correction(weights=ImportanceWeights(normalize=True)).needs_batch
    for dropping in (Correction(weights=ICEPOP), Correction(rejection=REJECT), Correction(weights=None, veto=Veto())):
        assert dropping.can_drop and not dropping.needs_batch
    assert Correction(weights=ICEPOP, rejected_in_denominator=False).needs_batch
    assert Correction(rejection=REJECT, rejected_in_denominator=False).needs_batch
    assert Correction(veto=Veto(), rejected_in_denominator=False).needs_batch
    # the denominator is the caller's: the weights are the same
    held = corrected(Correction(weights=ICEPOP), DIFFERENCE, SEQUENCE)
    shared = corrected(Correction(weights=ICEPOP, rejected_in_denominator=False), DIFFERENCE, SEQUENCE)
    assert torch.equal(held.weights, shared.weights) and torch.equal(held.kept, shared.kept)


# --- every mode changes what it says --------------------------------------------------------------------------------

# Long and short sequences, both signs, one catastrophic token: whatever an option looks at, something here shows it.
FIXTURE = [
    0.9,
    0.8,
    -0.2,
    0.005,
    0.004,
    -1.2,
    2.0,
    -2.1,
    -0.003,
    0.4,
    -10.0,
    0.1,
    0.75,
    -0.7,
    0.6,
    -0.2,
    -0.2,
    -0.64,
    -0.54,
    0.5,
    0.5,
    0.5,
    0.85,
    0.0,
]
FIXTURE_OF = [0, 0, 0, 1, 1, 2, 3, 3, 4, 5, 6, 6, 7, 7, 7, 8, 8, 9, 9, 10, 10, 10, 11, 11]
MODES = {
    "none": Correction(weights=None),
    "default": Correction(),
    "sequence": Correction(weights=ImportanceWeights(level="sequence")),
    "geometric": Correction(weights=ImportanceWeights(level="geometric")),
    "upper": Correction(weights=ImportanceWeights(upper=5)),
    "lower": Correction(weights=ImportanceWeights(lower=0.5)),
    "drop": Correction(weights=ImportanceWeights(outside="drop")),
    "drop lower": Correction(weights=ImportanceWeights(lower=0.5, outside="drop")),
    "normalize": Correction(weights=ImportanceWeights(normalize=True)),
    "veto": Correction(veto=Veto()),
    "veto higher": Correction(veto=Veto(threshold=0.2)),
    **{
        f"{statistic} {over}": Correction(rejection=Rejection(statistic=statistic, over=over, upper=0.3))
        for statistic in ("k1", "k2", "k3")
        for over in ("token", "sequence_sum", "sequence_mean", "sequence_max")
        if (statistic, over) != ("k1", "sequence_max")
    },
    "k1 with lower": Correction(rejection=Rejection(statistic="k1", over="token", upper=0.3, lower=-0.5)),
    "k2 upper": Correction(rejection=Rejection(statistic="k2", over="token", upper=0.03)),
}


def test_every_mode_changes_what_it_says_it_changes():
    """No two modes give the same weights, and only those that may drop do."""
    found = {name: corrected(mode, FIXTURE, FIXTURE_OF) for name, mode in MODES.items()}
    for one, other in itertools.combinations(found, 2):
        assert not torch.equal(found[one].weights, found[other].weights), (one, other)
    for name, mode in MODES.items():
        assert found[name].kept.all() == (not mode.can_drop), name
        assert torch.equal(found[name].kept, found[name].weights > 0), name
        whole = mode.rejection is None or mode.rejection.over != "token"
        if whole and (mode.weights is None or mode.weights.outside == "truncate"):  # sequences go whole
            sequence = torch.tensor(FIXTURE_OF)
            kept = sum_by(found[name].kept.double(), sequence, 12) / torch.bincount(sequence)
            assert set(kept.tolist()) <= {0.0, 1.0}, name


# --- properties -----------------------------------------------------------------------------------------------------

log_probs = st.floats(-40, 0, width=32)
steps = st.lists(st.lists(st.tuples(log_probs, log_probs), min_size=1, max_size=5), min_size=1, max_size=5)
modes = st.sampled_from(sorted(MODES))


def of_lists(correction, step, ids=None, num_sequences=None, dtype=torch.float64):
    """The correction of sequences given as lists of (trainer, engine); `ids` renames them."""
    ids = list(range(len(step))) if ids is None else ids
    pairs = torch.tensor([pair for tokens in step for pair in tokens], dtype=dtype).view(-1, 2)
    sequence = torch.tensor([name for name, tokens in zip(ids, step, strict=True) for _ in tokens])
    return correction(pairs[:, 0], pairs[:, 1], sequence, num_sequences or len(step))


def split_by(step, values):
    return values.split([len(tokens) for tokens in step])


@given(modes, steps, st.randoms(use_true_random=False))
def test_the_order_of_sequences_does_not_matter(name, step, random):
    order = list(range(len(step)))
    random.shuffle(order)
    found = of_lists(MODES[name], step)
    shuffled = of_lists(MODES[name], [step[i] for i in order], ids=[(i * 3) % 17 for i in order], num_sequences=17)
    weights, kept = split_by(step, found.weights), split_by(step, found.kept)
    torch.testing.assert_close(shuffled.weights, torch.cat([weights[i] for i in order]), rtol=1e-12, atol=0)
    assert torch.equal(shuffled.kept, torch.cat([kept[i] for i in order]))


@given(modes, steps, st.integers(0, 5))
def test_parts_by_whole_sequences_are_the_whole(name, step, cut):
    assume(not MODES[name].needs_batch and 0 < cut < len(step))
    whole = of_lists(MODES[name], step)
    ids = list(range(len(step)))
    parts = [of_lists(MODES[name], step[a], ids[a], len(step)) for a in (slice(cut), slice(cut, None))]
    assert torch.equal(whole.weights, torch.cat([part.weights for part in parts]))
    assert torch.equal(whole.kept, torch.cat([part.kept for part in parts]))


@given(modes, steps, st.sampled_from([math.nan, INF, -INF]), st.booleans(), st.data())
def test_a_broken_log_prob_drops_its_sequence_and_no_other(name, step, broken, engine, data):
    """Whichever side is broken, and in `none` too; the others' weights are those without that sequence."""
    place = data.draw(st.integers(0, len(step) - 1))
    token = data.draw(st.integers(0, len(step[place]) - 1))
    spoiled = [list(tokens) for tokens in step]
    trainer_value, engine_value = spoiled[place][token]
    spoiled[place][token] = (trainer_value, broken) if engine else (broken, engine_value)
    found = of_lists(MODES[name], spoiled)
    weights, kept = split_by(step, found.weights), split_by(step, found.kept)
    assert not weights[place].any() and not kept[place].any()
    others = [i for i in range(len(step)) if i != place]
    if others:
        clean = of_lists(MODES[name], [step[i] for i in others])
        torch.testing.assert_close(torch.cat([weights[i] for i in others]), clean.weights, rtol=1e-12, atol=0)
        assert torch.equal(torch.cat([kept[i] for i in others]), clean.kept)


huge = st.floats(-(2.0**127), 2.0**127, width=32)


@given(modes, st.lists(st.lists(st.tuples(huge, huge), min_size=1, max_size=4), min_size=1, max_size=4))
def test_extreme_differences_stay_finite(name, step):
    for dtype in (torch.float32, torch.float64):
        found = of_lists(MODES[name], step, dtype=dtype)
        assert found.weights.isfinite().all() and (found.weights >= 0).all()
        assert found.weights.dtype == dtype
        assert (found.weights[~found.kept] == 0).all() and (found.weights[found.kept] > 0).all()


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
def test_weights_end_at_exp_20(level):
    weights = ImportanceWeights(level=level, upper=INF)
    found = weights_of(weights, [1e4, -1e4], [0, 1])
    torch.testing.assert_close(found, doubles(math.exp(20), math.exp(-20)))


def test_tokens_are_summed_before_they_are_clamped():
    """30 and -30 cancel, 30 and -20 leave 10: clamped one by one they would leave 0."""
    weights = ImportanceWeights(level="sequence", upper=INF)
    found = weights_of(weights, [30.0, -30.0, 30.0, -20.0], [0, 0, 1, 1])
    torch.testing.assert_close(found, doubles(1, 1, math.exp(10), math.exp(10)))
    rejection = Rejection(statistic="k1", over="sequence_sum", upper=5.0, lower=-5.0)
    assert kept_of([30.0, -30.0, 30.0, -20.0], [0, 0, 1, 1], rejection=rejection) == [1, 1, 0, 0]


@given(steps)
def test_on_policy_nothing_changes(step):
    """Engine and trainer agree: weights exactly 1 and all kept, whatever the mode."""
    agreed = [[(trainer, trainer) for trainer, _ in tokens] for tokens in step]
    for mode in MODES.values():
        found = of_lists(mode, agreed, dtype=torch.float32)
        assert (found.weights == 1).all() and found.kept.all()
