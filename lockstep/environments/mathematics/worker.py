"""The program of one comparison worker; pool.py starts it as a fresh interpreter and speaks to it in JSON lines.

In: {"answer": "...", "reference": "..."}, both LaTeX. Out: first {"ready": true} or {"failed": "why"}, then for each
line in {"equal": true or false}. It imports nothing of Lockstep. Arguments: the processor seconds that one comparison
may take, and the bytes of memory that the process may hold. A comparison beyond its time is ended by the kernel
(SIGPROF), whatever code it is in, and the process with it; so a worker outlives its trainer by that time at most.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
from functools import lru_cache
from typing import Any

WARM_UP = (r"\frac{x}{2}+\sqrt{3}", r"\sqrt{3}+\frac{1}{2}x")
FLOAT_DECIMALS = 12  # decimals that must agree where either side is a decimal; math-verify's own 6 merge small numbers


def limited(memory_bytes: int) -> None:
    """Take from this process what a comparison never needs: memory beyond its share, files, core dumps."""
    for what, most in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))


def comparison() -> Any:
    """The function (answer, reference) -> bool. Raises ImportError without math-verify."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify

    # Only LaTeX is read: the other extraction hands its text to sympy's parse_expr, which evaluates.
    normalization = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all", equations=False
    )
    reading = [LatexExtractionConfig(boxed_match_priority=0, normalization_config=normalization)]

    def read(text: str) -> list[Any]:
        return parse(rf"\boxed{{{text}}}", reading, fallback_mode="no_fallback", parsing_timeout=None)  # pyright: ignore

    read_reference = lru_cache(maxsize=256)(read)

    def equal(answer: str, reference: str) -> bool:
        gold, said = read_reference(reference), read(answer)
        return bool(gold and said) and verify(gold, said, float_rounding=FLOAT_DECIMALS, timeout_seconds=None)

    return equal


def serve(cpu_s: float) -> int:
    """Answer until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints must not be taken for an answer

    def say(**what: object) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    logging.disable(logging.CRITICAL)
    try:
        equal = comparison()
    except ImportError as error:
        say(failed=f"{type(error).__name__}: {error}")
        return 1
    equal(*WARM_UP)
    say(ready=True)
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        try:
            result = equal(request["answer"], request["reference"])
        except (Exception, RecursionError, MemoryError):  # the boundary to sympy on hostile text: not comparable
            result = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        say(equal=bool(result))
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    limited(int(sys.argv[2]))
    sys.exit(serve(float(sys.argv[1])))
