"""Takes each protection of the sandbox away, in a copy, and shows which hostile cases then get through.

    python tests/sandbox/mutation.py [NAME ...]

Each mutation is a change of text in one copy of the package, a tier, and the cases that must fail there. A case that
still holds with one protection off has another layer behind it: such layers are taken away as a pair, and the table
says which of the two held alone. Every named case is first run on an unchanged copy, where it must hold. Ends with 1
when a mutation survives, does not apply any more, or keeps the sandbox from opening where that was not expected.

Nothing here harms the machine: the cases are bounded, and every run has a deadline and is ended with all it started.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.sandbox.hostile.cases import CASES
from tests.sandbox.hostile.trial import kill_marked
from tests.sandbox.mutations import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 150.0


def copy_to(folder: Path) -> None:
    """What the sandbox and its cases need, readable by every user."""
    for name in ("lockstep/__init__.py", "pyproject.toml"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for name in ("lockstep/sandbox", "tests/sandbox/hostile"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    folder.chmod(0o755)


def change(folder: Path, mutation: Mutation) -> str | None:
    """Apply it; what is wrong where it does not apply."""
    for name, old, new in mutation.edits:
        path = folder / "lockstep" / "sandbox" / name
        text = path.read_text()
        if text.count(old) != 1:
            return f"{name} has {text.count(old)} places like {old!r}, not 1"
        path.write_text(text.replace(old, new))
    return None


def end_supervisors(folder: Path) -> None:
    """Those that a mutation keeps from ending: of this copy, and nobody else's."""
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{folder}/lockstep/sandbox/start.py".encode() in (entry / "cmdline").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)


def run_cases(folder: Path, tier: str, names: Sequence[str]) -> dict[str, list[str]]:
    """{case: what did not hold}; {"refused": ...} where no sandbox opened; {} past the deadline."""
    command = [sys.executable, "-m", "tests.sandbox.hostile.run", tier, *names]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        text, _ = process.communicate(timeout=DEADLINE_S)
    except subprocess.TimeoutExpired:
        text = b"{}"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kill_marked(f"hostile-{process.pid}")
        end_supervisors(folder)
    lines = text.decode().strip().splitlines()
    return json.loads(lines[-1]) if lines else {}


def attempt(mutation: Mutation) -> tuple[str, str]:
    """(verdict, detail): 'killed', 'refused' (the sandbox did not open, as expected), or what is wrong."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as place:
        folder = Path(place)
        copy_to(folder)
        if (wrong := change(folder, mutation)) is not None:
            return "DOES NOT APPLY", wrong
        found = run_cases(folder, mutation.tier, mutation.fails)
    if "refused" in found:
        text = str(found["refused"]).strip().splitlines()[-1].strip()
        return ("refused", text) if not mutation.fails else ("NOT OPENED", text)
    if not mutation.fails:
        return "OPENED", "it was expected to refuse"
    held = [name for name in mutation.fails if not found.get(name, ["the run did not end"])]
    if mutation.held_by:
        return ("held", mutation.held_by) if len(held) == len(mutation.fails) else ("NOT HELD", str(found))
    return ("SURVIVED", f"held: {', '.join(held)}") if held else ("killed", "")


def baseline(mutations: Sequence[Mutation]) -> list[str]:
    """Cases that do not hold even in an unchanged copy: nothing can be shown with them."""
    wrong = []
    for tier in sorted({each.tier for each in mutations}):
        names = sorted({name for each in mutations if each.tier == tier for name in each.fails})
        with tempfile.TemporaryDirectory(prefix="mutation-") as place:
            copy_to(Path(place))
            found = run_cases(Path(place), tier, names)
        wrong += [f"{tier}: {name}: {found.get(name, 'not run')}" for name in names if found.get(name) != []]
    return wrong


def main(only: Sequence[str]) -> int:
    chosen = [each for each in MUTATIONS if not only or each.name in only]
    if unknown := sorted({name for each in chosen for name in each.fails} - set(CASES)):
        raise SystemExit(f"no such cases: {', '.join(unknown)}")
    failures = [f"unchanged, does not hold: {text}" for text in baseline(chosen)]
    print("\n".join(failures), flush=True)
    print("| protection taken away | tier | cases | verdict |\n|---|---|---|---|")
    for mutation in chosen:
        verdict, detail = attempt(mutation)
        cases = ", ".join(mutation.fails) or "(none can run)"
        print(
            f"| {mutation.name} | {mutation.tier} | {cases} | {verdict}{': ' if detail else ''}{detail} |", flush=True
        )
        if verdict not in ("killed", "refused", "held"):
            failures.append(f"{mutation.name} ({mutation.tier}): {verdict}: {detail}")
    kinds = [each for each in chosen if not each.held_by]
    print(f"\n{len(kinds)} mutations, {len(chosen) - len(kinds)} layers shown to hold alone, {len(failures)} failures")
    print("\n".join(failures))
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
