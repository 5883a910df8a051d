"""Runs cases on the sandbox that is importable here, and prints {case: what did not hold} as JSON.

    python -m tests.sandbox.hostile.run TIER [CASE ...]

Ends with 2 and {"refused": text} when the tier cannot be opened. Not a test itself: `mutation.py` starts it in copies.
"""

from __future__ import annotations

import json
import sys
import time

from lockstep.sandbox.interface import SandboxFailure, SandboxUnavailable
from tests.sandbox.hostile.cases import CASES
from tests.sandbox.hostile.trial import staged


def main(tier: str, names: list[str]) -> int:
    found: dict[str, list[str]] = {}
    try:
        with staged(tier) as trial:
            for name in names or [name for name, case in CASES.items() if tier in case.tiers]:
                began = time.monotonic()
                found[name] = trial.problems(CASES[name])
                took = time.monotonic() - began
                if found[name] or took > 2:
                    print(f"{name}: {took:.1f} s, {found[name] or 'held'}", file=sys.stderr, flush=True)
    except (SandboxUnavailable, SandboxFailure) as error:
        print(json.dumps({"refused": str(error), **found}))
        return 2
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
