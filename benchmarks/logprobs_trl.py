"""TRL's half of the log-probs in `model.py`: its chunked op, timed inside TRL's own virtual environment.

For every line on the standard input, one line of JSON on the standard output: for "peak" the peak memory in bytes, for
"time" the seconds of one forward and backward, log-probs and entropies both with a gradient, as in `model.py`. The
chunk of the vocabulary is the one that TRL's trainers use.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from trl.kernels import ChunkedLogProbFunction

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.measure import cpu_peak_bytes, cpu_time_s
from lockstep.compute import prepare_cpu

CHUNK = 32768


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("tokens", "vocabulary", "hidden", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    return parser.parse_args()


def main() -> None:
    chosen = options()
    prepare_cpu(chosen.threads)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(chosen.tokens, chosen.hidden, generator=generator).requires_grad_()
    head = torch.randn(chosen.vocabulary, chosen.hidden, generator=generator).mul_(2 * chosen.hidden**-0.5)
    head.requires_grad_()
    targets = torch.randint(chosen.vocabulary, (chosen.tokens,), generator=generator)
    gradients = torch.randn(2, chosen.tokens, generator=generator)

    def work():
        found = ChunkedLogProbFunction.apply(hidden, head, None, targets, 1.0, CHUNK, None, 1.0, ("entropy",))
        return torch.autograd.grad(found[:2], (hidden, head), tuple(gradients))

    for line in sys.stdin:
        value = cpu_peak_bytes(work) if line.strip() == "peak" else cpu_time_s(work)
        print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main()
