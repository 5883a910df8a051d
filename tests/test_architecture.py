"""Imports point one way, in no circles; importing the package or asking for help loads nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lockstep"

# What a room may import of Lockstep, beside itself. A room that is not listed here may import any of these.
MAY_IMPORT = {
    "types": (),
    "sandbox": (),
    "algorithm": ("types",),
    "data": ("types",),
    "model": ("types",),
    "engine": ("types", "model"),
    "rollout": ("types", "engine.engine"),
    "environments": ("types", "rollout", "sandbox"),
    "trainer": ("types", "algorithm", "data", "model"),
    "learner": ("types", "algorithm", "data", "trainer"),
    "observe": ("types",),
    "cluster": ("types", "algorithm", "data", "model", "engine", "rollout", "environments", "trainer", "learner"),
}
ONLY_IN = {"ray": "cluster", "vllm": "engine.vllm", "sglang": "engine.sglang"}
WITHOUT_TENSORS = ("types", "rollout", "environments", "sandbox", "engine.engine", "engine.scripted", "cli")


def is_in(module, room):
    return module == room or module.startswith(f"{room}.")


def imports_of(path, module):
    """(imported module, whether inside a function) for every import that runs; those for type checkers alone do not."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]

    def visit(node, lazy):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from ((alias.name, lazy) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = (
                    ".".join([*package[: len(package) - child.level + 1], child.module or ""])
                    if child.level
                    else child.module
                )
                yield from ((name, lazy) for name in (base, *(f"{base}.{alias.name}" for alias in child.names)))
            else:
                yield from visit(child, lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))

    return list(visit(ast.parse(path.read_text()), False))


def name_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
IMPORTS = {name: imports_of(path, f"lockstep.{name}") for name, path in MODULES.items()}
OWN = {  # module: the modules of Lockstep that it imports when it is imported
    name: {t.removeprefix("lockstep.") for t, lazy in found if not lazy and t.removeprefix("lockstep.") in MODULES}
    - {name}
    for name, found in IMPORTS.items()
}


def test_the_whole_package_is_seen():
    assert {"types", "train", "model.attention", "engine.embedded", "rollout.trajectory"} <= MODULES.keys()
    assert "rollout.environment" in OWN["rollout.trajectory"]


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_point_one_way(room):
    allowed = (room, *MAY_IMPORT[room])
    against = [
        f"{module} -> {target}"
        for module in MODULES
        if is_in(module, room)
        for target, _ in IMPORTS[module]
        if target.startswith("lockstep.") and target.removeprefix("lockstep.") in MODULES
        if not any(is_in(target.removeprefix("lockstep."), name) for name in allowed)
        if MODULES[target.removeprefix("lockstep.")].stat().st_size  # a package that is only a folder
    ]
    assert against == []


def test_there_is_no_circle():
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            path.append(module)
            for target in sorted(OWN[module]):
                visit(target)
            done.add(path.pop())

    for module in MODULES:
        visit(module)


@pytest.mark.parametrize("package", ONLY_IN)
def test_a_heavy_dependency_has_one_place(package):
    users = {name for name, found in IMPORTS.items() for target, _ in found if is_in(target, package)}
    assert not [name for name in users if not is_in(name, ONLY_IN[package])]


@pytest.mark.parametrize("room", WITHOUT_TENSORS)
def test_it_never_sees_a_tensor(room):
    users = {name for name, found in IMPORTS.items() for target, _ in found if is_in(target, "torch")}
    assert not [name for name in users if is_in(name, room)]


@pytest.mark.parametrize(
    "statement",
    ["import lockstep", "import lockstep.types", "import runpy; runpy.run_module('lockstep.cli', run_name='__main__')"],
)
def test_it_loads_nothing_heavy(statement):
    """The last one is `python -m lockstep.cli --help`, which exits with 0 and its help."""
    code = f"""
import atexit, sys
sys.argv[1:] = ["--help"]
atexit.register(lambda: print("heavy:", sorted({{"torch", "transformers", "numpy", "tyro"}} & set(sys.modules))))
{statement}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "heavy: []" in done.stdout
    assert ("usage: lockstep" in done.stdout) == ("cli" in statement)
