"""What is wrong with an author's environment is one line, before anything is written."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from lockstep.config import Run
from lockstep.rollout.environment import ToolEnvironment
from lockstep.setup import prepare
from lockstep.sft import SFT
from lockstep.types import Demonstration, Message, Task, UserError

TASK = Task(id="1", messages=(Message(role="user", content="hello"),))


@dataclass(frozen=True, kw_only=True)
class Own(ToolEnvironment):
    """Gives what it is told to give."""

    given: Callable[..., object] | None = None

    def tasks(self, split):
        return [TASK]


class Undeclared(ToolEnvironment):
    """No dataclass."""


class Lazy(Own):
    def tasks(self, split):
        yield TASK


class OneMessage(Own):
    def tasks(self, split):
        return [Task(id="1", messages=TASK.messages[0])]  # pyright: ignore[reportArgumentType]


class Texts(Own):
    def tasks(self, split):
        return ["hello"]


class LazyDemonstrations(Own):
    def demonstrations(self, seed):
        yield Demonstration(task=TASK, messages=TASK.messages)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        (Own, r"environment=Own is a class: make an object of it, environment=Own\(\)"),
        (Undeclared(), r"Undeclared is no dataclass; write @dataclass above the class"),
        (Own(given=len), r"environment\.given=<built-in function len>: an option is written to the run's config"),
        (Lazy(), "Lazy.tasks returned generator, not Sequence"),
        (OneMessage(), r"OneMessage.tasks returned one message .*: make it a tuple, \(message,\)"),
        (Texts(), "Texts.tasks returned str: it must return a list of Task"),
        (LazyDemonstrations(), "LazyDemonstrations.demonstrations returned generator, not Sequence"),
    ],
)
def test_an_authors_mistake_is_one_line(environment, said):
    with pytest.raises(UserError, match=said) as error:
        prepare(
            Run(
                name="own", environment=environment, sft=SFT(num_steps=int(environment.__class__ is LazyDemonstrations))
            )
        )
    assert "\n" not in str(error.value)
