"""The rules of the house that CONTRIBUTING.md states: arrows, names of files, docstrings."""

import ast
import graphlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = ("benchmarks", "examples", "experiments")
# From the top down. A room imports from the layers below it, and beside it unless it is in APART.
LAYERS: tuple[set[str], ...] = (
    set(PROGRAMS),
    {"nfnets_jax"},  # The front door.
    {"nfnets_jax.training", "nfnets_jax.serving"},
    {"nfnets_jax.weights", "nfnets_jax.models", "nfnets_jax.data"},
    {"nfnets_jax.kernels", "nfnets_jax.optax_agc"},
    {"nfnets_jax.atomic", "nfnets_jax.devices", "nfnets_jax.errors", "nfnets_jax.ranges"},
)
APART = {"nfnets_jax.training", "nfnets_jax.serving", "nfnets_jax.kernels", "nfnets_jax.optax_agc"}
ALONE = {"nfnets_jax.optax_agc"}  # Imports nothing of the project.
# Rooms whose docstrings do not keep the rule yet.
UNDER_WORK: set[str] = set()


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    name_of(path): path
    for folder in ("nfnets_jax", *PROGRAMS)
    for path in sorted((ROOT / folder).rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}


def room(module: str) -> str:
    """Returns the package of a program, and the file or folder of the library, of a module."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "nfnets_jax" else parts[0]


ROOMS = sorted({room(name) for name in FILES})


def imports(module: str) -> Iterator[str]:
    """Yields the project's modules that a module imports, inside of functions too."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in FILES)
        elif isinstance(node, ast.ImportFrom):
            source = imported_from(module, node)
            for alias in node.names:
                submodule = f"{source}.{alias.name}"
                if submodule in FILES:
                    yield submodule
                elif source in FILES:
                    yield source


def imported_from(module: str, node: ast.ImportFrom) -> str:
    """Returns the full name of what ``from … import`` names, which may be relative."""
    if not node.level:
        return node.module or ""
    inside = FILES[module].name == "__init__.py"  # A package counts as inside of itself.
    package = module.split(".")[: (1 if inside else 0) - node.level or None]
    return ".".join([*package, *([node.module] if node.module else [])])


def absolute(node: ast.AST) -> list[str]:
    """Returns the modules that a statement imports by their full names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [str(node.module)] if isinstance(node, ast.ImportFrom) and not node.level else []


def layer(module: str) -> int:
    return next(index for index, rooms in enumerate(LAYERS) if room(module) in rooms)


def may_import(importer: str, imported: str) -> bool:
    here, there = room(importer), room(imported)
    if here == there:
        return True
    if here in ALONE:
        return False
    beside = layer(importer) == layer(imported) and here not in APART
    return beside or layer(importer) < layer(imported)


@pytest.mark.parametrize("name", ROOMS)
def test_imports_point_down(name: str) -> None:
    wrong = [
        f"{importer} imports {imported}"
        for importer in FILES
        if room(importer) == name
        for imported in imports(importer)
        if not may_import(importer, imported)
    ]
    assert wrong == []


def test_the_commands_work_under_any_name_of_their_package() -> None:
    """An installed library has ``experiments`` as ``nfnets_jax.experiments``."""
    wrong = [
        f"{module} imports {name}: import it relatively"
        for module, tree in TREES.items()
        if room(module) == "experiments"
        for node in ast.walk(tree)
        for name in absolute(node)
        if room(name) in PROGRAMS
    ]
    assert wrong == []


def test_configurations_can_be_copied() -> None:
    """A family's file is also loaded by its path, so it imports nothing beside it."""
    wrong = [
        module
        for module, tree in TREES.items()
        if module.startswith("experiments.configs.")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert wrong == []


def test_imports_make_no_cycle() -> None:
    """The front door counts by what it imports when a name is used, so nothing goes around it."""
    graph = {name: set(imports(name)) - {name} for name in FILES}
    graphlib.TopologicalSorter(graph).prepare()  # Raises CycleError with the modules of a cycle.


def test_agc_imports_jax_and_optax_alone() -> None:
    """Every other import of the package is of the standard library."""
    packages = {
        (alias.name if isinstance(node, ast.Import) else str(node.module)).split(".")[0]
        for name, tree in TREES.items()
        if room(name) == "nfnets_jax.optax_agc"
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert packages - set(sys.stdlib_module_names) <= {"jax", "optax", "nfnets_jax"}


@pytest.mark.parametrize("name", ROOMS)
def test_file_names_say_what_is_inside(name: str) -> None:
    vague = {"utils", "util", "base", "helpers", "helper", "common"}
    assert [p for n, p in FILES.items() if room(n) == name and vague & {*n.split(".")}] == []


@pytest.mark.parametrize("name", ROOMS)
def test_docstrings_begin_with_what_they_describe(name: str) -> None:
    """A first word that refers to something else sends the reader away to look for it."""
    if name in UNDER_WORK:
        pytest.skip("its docstrings are under work")
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    wrong = [
        f"{module}:{getattr(node, 'lineno', 1)}: {docstring.splitlines()[0]}"
        for module, tree in TREES.items()
        if room(module) == name
        for node in ast.walk(tree)
        if isinstance(node, documented) and (docstring := ast.get_docstring(node))
        if re.match(r"(Of|Those|By|That|Its|Theirs)\b", docstring)
    ]
    assert wrong == []
