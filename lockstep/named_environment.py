"""From a name to an environment's class: one of Lockstep's, MODULE:CLASS, or a recipe's.

In: what a user wrote, or what a checkpoint says of itself. Out: the class, and the recipe it came with. Every mistake
is one line.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from lockstep.config import ConfigError, Run
from lockstep.options import load_recipe, nearest

METHODS = ("tasks", "demonstrations", "start", "step", "reward", "close")
WAYS = "give one of Lockstep's, MODULE:CLASS, or a recipe (--environment recipes/NAME.py)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An environment's class; run: that of the recipe it was found in, if it was one."""

    kind: type
    run: Run | None = None

    @property
    def name(self) -> str:
        """As a checkpoint writes it."""
        return f"{self.kind.__module__}.{self.kind.__qualname__}"


def find_environment(name: str) -> Found:
    """What 'ledger', 'package.module:Class', 'package.module.Class', 'recipes/shop.py' or 'recipes/shop.py:Shop' names.
    Modules are also looked for in the working directory. Raises ConfigError when there is none, or it cannot be
    loaded."""
    if not name.strip():
        raise ConfigError(f"--environment {name!r}: names nothing; {WAYS}")
    file, colon, class_name = name.partition(".py:")
    if colon or name.endswith(".py"):
        return _of_recipe(Path(f"{file}.py" if colon else name), class_name)
    module_name, _, class_name = name.replace(":", ".").rpartition(".")
    if not module_name:
        module_name, class_name = f"lockstep.environments.{name}", ""
    module = _module(module_name, name)
    return Found(kind=_checked(name, getattr(module, class_name, None) if class_name else _only(module, name)))


def _of_recipe(path: Path, class_name: str) -> Found:
    try:
        names = load_recipe(path)
    except (ImportError, SyntaxError) as error:
        raise ConfigError(f"{path} cannot be loaded: {_said(error)}") from error
    run: Run = names["run"]
    kind = type(run.environment) if not class_name else names.get(class_name)
    return Found(kind=_checked(f"{path}:{class_name}", kind), run=run if kind is type(run.environment) else None)


def _module(module_name: str, name: str) -> ModuleType:
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise ConfigError(f"no environment {name!r}; {WAYS}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last, where no package has the module's name
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(f"environment {name!r}: {module_name} cannot be loaded: {_said(error)}") from error
        raise ConfigError(f"no environment {name!r}{_way(module_name, name)}") from error
    except (ImportError, SyntaxError) as error:
        raise ConfigError(f"environment {name!r}: {module_name} cannot be loaded: {_said(error)}") from error


def _way(module_name: str, name: str) -> str:
    if module_name.startswith("recipe_"):
        stem = module_name.removeprefix("recipe_")
        return f": a recipe defines it; give the recipe: --environment recipes/{stem}.py"
    offered = sorted(path.stem for path in Path(__file__).with_name("environments").glob("[a-z]*.py"))
    return f"{nearest(name, offered)}; {WAYS}"


def _only(module: ModuleType, name: str) -> type:
    own = [
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and kind.__module__ == module.__name__ and hasattr(kind, "demonstrations")
    ]
    if len(own) != 1:
        raise ConfigError(
            f"no environment {name!r}: {module.__name__} has {len(own)} environment classes; give MODULE:CLASS"
        )
    return own[0]


def _checked(name: str, kind: object) -> type:
    """Raise ConfigError for what is no dataclass with an environment's methods."""
    if kind is None:
        raise ConfigError(f"no environment {name!r}: its module has no such class; {WAYS}")
    if not isinstance(kind, type):
        raise ConfigError(f"no environment {name!r}: it is a {type(kind).__name__}, not a class; {WAYS}")
    if missing := [method for method in METHODS if not callable(getattr(kind, method, None))]:
        raise ConfigError(f"no environment {name!r}: {kind.__name__} has no method {missing[0]}; {WAYS}")
    if not dataclasses.is_dataclass(kind):
        raise ConfigError(f"environment {name!r}: {kind.__name__} is no dataclass; write @dataclass above the class")
    return kind


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
