"""The shape of the source: imports go down only, lazy ones and those for type checkers too, without circles."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the ground up. A module may import its own storey and those below it; a folder is named as a whole.
STOREYS = (
    "arrays errors kernels",
    "files",
    "config modules ops prompts",
    "weights tokens",
    "checkpoint",
    "gguf",
    "opening hub repository",
    "model fidelity fast",
    "selftest",
    "batches outcomes output similarity keywords tensors pretrained pipeline splitting",
    "compatibility",
    "embedder",
    "integrations",
    "cli",
)
STOREY = {room: i for i, rooms in enumerate(STOREYS) for room in rooms.split()}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("gemma_np", *parts) if parts[0] == "kernels" else parts
    return ".".join(parts).removesuffix(".__init__")


FILES = {module_of(path): path for folder in ("gemma_np", "kernels") for path in (ROOT / folder).rglob("*.py")}


def imports_of(name: str) -> Iterator[str]:
    """The project's modules that a module imports, anywhere in its text."""
    path = FILES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parts, *filter(None, [node.module])])
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        yield from (found for found in names if found in FILES and found != name)


def room_of(name: str) -> str:
    return name.split(".")[1]


INNER = [name for name in FILES if name != "gemma_np"]  # the package itself lends the public names, from above


def test_every_room_has_a_storey() -> None:
    assert {room_of(name) for name in INNER} == set(STOREY)


@pytest.mark.parametrize("name", sorted(INNER))
def test_imports_go_down_only(name: str) -> None:
    up = [found for found in imports_of(name) if found != "gemma_np" and STOREY[room_of(found)] > STOREY[room_of(name)]]
    assert not up, f"{name} imports {', '.join(up)} from a storey above its own"
    if room_of(name) == "kernels":
        assert all(room_of(found) == "kernels" for found in imports_of(name) if found != "gemma_np")


def test_there_are_no_circles() -> None:
    """A package's own file counts only where it holds code: that of kernels/."""
    graph = {name: {found for found in imports_of(name) if found != "gemma_np"} for name in INNER}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"imports in a circle: {' -> '.join(error.args[1])}")


def test_long_files_and_functions_are_few_and_have_their_reason() -> None:
    """Files of about 250 lines, functions of a screen; a longer file says why in its docstring."""
    long_files, long_functions = [], []
    for path in FILES.values():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if len(path.read_text(encoding="utf-8").splitlines()) > 300:
            assert "long because" in (ast.get_docstring(tree) or ""), f"{path} has no reason to be so long"
            long_files.append(path.name)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 40:
                long_functions.append(f"{path.name}: {node.name}")
    assert len(long_files) <= 4, long_files
    assert len(long_functions) <= 8, long_functions
