"""The command `lockstep`: train, sft, eval, plan, doctor. Each is a thin call; a user's mistake is one line on stderr
and exit code 2."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence

HELP = """\
usage: lockstep COMMAND ...

Reinforcement learning of language-model agents, trainer and engine in lockstep.

commands:
  train RECIPE [--resume RUN] [options]    cold start, then reinforcement learning
  sft RECIPE [--resume RUN] [options]      the cold start alone, and an evaluation
  eval CHECKPOINT [--environment NAME]     success of a checkpoint, on its own tasks or on others
  plan RECIPE [options]                    what a run would need: parameters, bytes, tokens; nothing is run
  doctor sandbox                           which sandbox this machine can have, and why not a stronger one

RECIPE is a Python file with a module-level `run = Run(...)`, for example recipes/ledger.py.
`lockstep train RECIPE --help` lists every option of that recipe. Beside those, --algorithm NAME and --correction NAME
take an algorithm (grpo, ppo, gspo, ...) and a rollout correction (token-tis, none, ...) by name.
"""

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENOTDIR)
WRITABLE = "give a folder that can be written and has space; a run that was begun goes on with --resume"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 done, 1 an invariant broke, 2 a user's mistake, 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if arguments[0] == "--version":
        from lockstep import __version__

        print(f"lockstep {__version__}")
        return 0
    return _guarded(lambda: _dispatch(arguments[0], arguments[1:]))


def _dispatch(command: str, arguments: list[str]) -> None:
    commands: dict[str, Callable[[list[str]], None]] = {
        "train": _train,
        "sft": _sft,
        "eval": _eval,
        "plan": _plan,
        "doctor": _doctor,
    }
    if command not in commands:
        from lockstep.options import nearest
        from lockstep.types import UserError

        raise UserError(f"no command {command!r}{nearest(command, commands)}; the commands are {', '.join(commands)}")
    commands[command](arguments)


def _guarded(action: Callable[[], None]) -> int:
    from lockstep.types import InvariantError, UserError

    try:
        action()
    except InvariantError as error:
        print(f"lockstep: invariant broken: {error}", file=sys.stderr)
        return 1
    except UserError as error:
        print(f"lockstep: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        print(f"lockstep: {error.filename or 'a file'}: {error.strerror}; {WRITABLE}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"lockstep: interrupted{'; ' if str(stop) else ''}{stop}", file=sys.stderr)
        return 130
    return 0


def _train(arguments: list[str]) -> None:
    from lockstep.options import recipe_and_options
    from lockstep.train import train

    run, resume = recipe_and_options("train", arguments)
    train(run, resume=resume)


def _sft(arguments: list[str]) -> None:
    from lockstep.options import recipe_and_options
    from lockstep.train import train

    run, resume = recipe_and_options("sft", arguments)
    train(run, resume=resume, sft_only=True)


def _eval(arguments: list[str]) -> None:
    from lockstep.evaluate_checkpoint import main as evaluate_checkpoint

    evaluate_checkpoint(arguments)


def _plan(arguments: list[str]) -> None:
    from lockstep.options import recipe_and_options
    from lockstep.plan import show
    from lockstep.types import UserError

    run, resume = recipe_and_options("plan", arguments)
    if resume is not None:
        raise UserError(f"--resume {resume}: nothing is run; leave it out")
    show(run)


def _doctor(arguments: list[str]) -> None:
    from lockstep.doctor import main as doctor

    doctor(arguments)


def run() -> None:
    """The console script's entry."""
    # Before torch is loaded: threads that spin while they wait cost more than they gain on a machine that is shared.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(main())


if __name__ == "__main__":
    run()
