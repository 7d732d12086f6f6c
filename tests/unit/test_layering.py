"""Who may import whom, read from the source: the algorithm knows nothing of the machinery."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = sorted((ROOT / "csr_ray").rglob("*.py"))
MACHINERY = sorted((ROOT / "actors").rglob("*.py"))
# Where a command is put together of its parts: a run, and the commands that are none.
COMPOSITION_ROOTS = {"csr_ray/app/run.py", "csr_ray/app/commands.py"}
MACHINERY_LIBRARIES = {"ray", "vllm", "deepspeed", "trl"}
HEAVY = ("torch", "ray", "vllm", "transformers", "deepspeed", "trl")
LIGHT_MODULES = (
    "csr_ray.config.schema",
    "csr_ray.loop",
    "csr_ray.data.prompts",
    "csr_ray.app.doctor",
    "csr_ray.app.inputs",
    "csr_ray.app.plan",
    "csr_ray.machine.memory",
    "csr_ray.evaluation.answers",
    "csr_ray.__main__",
)
LOOP_LINES = 120
# The rooms, from the ground up: a room imports lower levels only, never one beside it.
LEVELS = (
    ("records", "errors", "counters", "metrics", "redaction", "spans", "waiting"),
    ("config", "ports", "store"),
    ("data", "judging", "machine", "policy", "rollout", "world"),
    ("training", "evaluation"),
    ("methods",),
    ("stages",),
    ("loop", "report", "run_data", "tracking"),
    ("annotation",),
    ("app",),
    ("cli",),
    ("__main__",),
)
# Rooms of the machinery meet in the composition roots; what they take from each other otherwise is listed here.
ROOMS_OF_ACTORS = {
    "process": set(),
    "cluster": {"process"},
    "handover": {"process"},
    "score": {"process"},
    "generate": {"handover", "process", "score"},
    "pool": {"handover", "process"},
    "train": {"process"},
    "turns": {"pool", "train"},
    "data": {"generate", "process", "score"},
    "runtime": {"cluster", "data", "generate", "pool", "process", "score", "train", "turns"},
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_both_packages_are_looked_at() -> None:
    assert len(PRODUCT) > 5
    assert {name_of(path) for path in PRODUCT} >= {"csr_ray/records.py", "csr_ray/evaluation/pope.py"}
    assert MACHINERY


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(top-level package, whether it is imported when the module is) for each import of a file.

    A function's body runs later; everything else (class bodies, if, try, with) runs at import.
    """

    def visit(node: ast.AST, *, at_import: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], at_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: a relative import hides its package"
            yield str(node.module).split(".")[0], at_import
        inside = at_import and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_import=inside)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), at_import=True)


def rooms_used(path: Path) -> tuple[str, set[str]]:
    """The room of a file, and the other rooms of its package that it imports from, wherever in the file."""
    package, room = path.relative_to(ROOT).with_suffix("").parts[:2]
    modules = [
        str(node.module).split(".")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
    ]
    return room, {parts[1] for parts in modules if parts[0] == package and len(parts) > 1} - {room}


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_imports_between_rooms_go_downhill(path: Path) -> None:
    level_of = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
    room, used = rooms_used(path)
    if room == "__init__":  # it offers names of many rooms, and imports none: tests/unit/test_interface.py
        return
    assert all(level_of[other] < level_of[room] for other in used), (room, used)


@pytest.mark.parametrize("path", MACHINERY, ids=name_of)
def test_rooms_of_the_machinery_take_from_each_other_what_is_listed(path: Path) -> None:
    room, used = rooms_used(path)
    assert used <= ROOMS_OF_ACTORS.get(room, set()), (room, used)


def test_the_machinery_has_no_circle() -> None:
    order = list(ROOMS_OF_ACTORS)
    assert all(order.index(other) < order.index(room) for room, used in ROOMS_OF_ACTORS.items() for other in used)


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_the_algorithm_imports_no_machinery_library_at_module_level(path: Path) -> None:
    assert {package for package, at_import in imports(path) if at_import} & MACHINERY_LIBRARIES == set()


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_only_a_composition_root_reaches_for_actors_and_only_inside_a_function(path: Path) -> None:
    found = {at_import for package, at_import in imports(path) if package == "actors"}
    assert found <= ({False} if name_of(path) in COMPOSITION_ROOTS else set())


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_ray_get_is_called_under_actors_only(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ray":
            assert node.attr not in ("get", "wait"), f"{name_of(path)}:{node.lineno}"
        if isinstance(node, ast.ImportFrom) and node.module == "ray":
            assert not {alias.name for alias in node.names} & {"get", "wait"}, f"{name_of(path)}:{node.lineno}"


@pytest.mark.parametrize("path", [*PRODUCT, *MACHINERY], ids=name_of)
def test_nothing_that_ships_imports_tests_or_benchmarks(path: Path) -> None:
    assert {package for package, _ in imports(path)} & {"tests", "benchmarks", "cluster"} == set()


def test_the_loop_is_one_screen_and_knows_no_ray() -> None:
    path = ROOT / "csr_ray" / "loop.py"
    assert "ray" not in {package for package, _ in imports(path)}
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LOOP_LINES


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_importing_it_in_a_fresh_interpreter_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_driver_imports_ray_and_nothing_else_that_is_heavy() -> None:
    """What joins loop and actors runs before anything is started; imports there are seconds of waiting."""
    heavy = tuple(name for name in HEAVY if name != "ray")
    code = f"import sys, actors.runtime; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
