"""docs/algorithms.md: its code runs, and it names every algorithm's parts."""

import re
from pathlib import Path

import torch

from lockstep.algorithm.advantages.rloo import RLOO
from lockstep.algorithm.algorithm import Algorithm
from lockstep.algorithm.correction.presets import PRESET_LINES, PRESETS
from lockstep.algorithm.losses.cispo import CISPO
from lockstep.algorithm.named import ALGORITHMS
from lockstep.algorithm.tokens import ActionTokens

PAGE = (Path(__file__).parent.parent / "docs" / "algorithms.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_composition_is_an_algorithm():
    namespace = {}
    exec(BLOCKS[0], namespace)
    expected = Algorithm(advantages=RLOO(), loss=CISPO(), correction=PRESETS["token-icepop"])
    assert namespace["algorithm"] == expected


def test_the_example_of_a_loss_works_in_an_algorithm():
    namespace = {}
    exec(BLOCKS[1], namespace)
    algorithm = Algorithm(loss=namespace["Hinge"](floor=-0.5))
    logprobs = torch.tensor([-1.0, -2.0], dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([0, 1])
    tokens = ActionTokens(
        engine_logprobs=logprobs.detach(),
        old_logprobs=logprobs.detach(),
        advantages=torch.tensor([1.0, -2.0], dtype=torch.float64),
        sequence=ids,
        trajectory=ids,
        turn=torch.zeros(2, dtype=torch.int64),
        num_sequences=2,
        num_trajectories=2,
        loss_weights=torch.full((2,), 0.5, dtype=torch.float64),
    )
    algorithm.token_losses(logprobs, torch.zeros(2), tokens, None).sum().backward()
    assert logprobs.grad.tolist() == [-0.5, 0.25]
    assert algorithm.loss(logprobs, tokens).clipped.tolist() == [False, True]


def test_every_part_of_a_named_algorithm_is_on_the_page():
    parts = {type(part).__name__ for a in ALGORITHMS.values() for part in (a.advantages, a.loss)}
    assert not [name for name in parts if f"`{name}" not in PAGE]
    assert not [a.aggregation for a in ALGORITHMS.values() if f"`{a.aggregation}`" not in PAGE]
    assert f"has {len(PRESETS)} by name" in PAGE
    assert not [name for name, line in PRESET_LINES.items() if f"| `{name}` | {line} |" not in PAGE]
