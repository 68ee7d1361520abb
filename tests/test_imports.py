"""The import graph: imports run from experiments to envs to relic_jax, and files and functions stay small."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAZY_API = "relic_jax.experiments.api"
"""The module that `relic_jax/__init__.py` imports lazily."""
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


def modules(folder: str) -> dict[str, Path]:
    """Return the files of a folder by the name of their module."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts if parts[0] == "relic_jax" else ("relic_jax", *parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


LIBRARY, ENVS, EXPERIMENTS = modules("relic_jax"), modules("envs"), modules("experiments")
ALL = {**LIBRARY, **ENVS, **EXPERIMENTS}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def nodes(tree: ast.AST, top_level: bool) -> Iterator[ast.AST]:
    """Yield the nodes that are not for type checkers only. top_level: only code that runs on import."""
    for child in ast.iter_child_nodes(tree):
        inner = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        if is_type_checking(child) or (top_level and inner):
            continue
        yield child
        yield from nodes(child, top_level)


def imports(name: str, top_level: bool = False) -> set[str]:
    """Return the modules of this project that a module imports, also in functions and by name (importlib)."""
    path, found = ALL[name], set()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in nodes(ast.parse(path.read_text(encoding="utf-8")), top_level):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] + "." if node.level else ""
            base = (base + (node.module or "")).rstrip(".")
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in ALL else base for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not top_level:
            found |= {node.value.partition(":")[0]} & set(ALL)
    return {module for module in found if module.split(".")[0] in ("relic_jax", "envs", "experiments")}


def within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


@pytest.mark.parametrize("name", ALL)
def test_imports_run_one_way(name):
    found = imports(name)
    assert not any(within(module, "envs", "experiments") for module in found), "imported as part of the library"
    if name == "relic_jax":
        assert {module for module in found if within(module, "relic_jax.envs", "relic_jax.experiments")} == {LAZY_API}
        assert not {module for module in imports(name, top_level=True) if module.startswith("relic_jax")}
    elif name in LIBRARY:
        assert not any(within(module, "relic_jax.envs", "relic_jax.experiments") for module in found)
    elif name in ENVS:
        assert not any(within(module, "relic_jax.experiments") for module in found)


def test_training_starts_without_packages_that_it_needs_later():
    """Importing them takes most of a second. Checkpoints need orbax and tensorstore, figures matplotlib."""
    code = "import sys; from relic_jax.experiments import cli, training; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "relic_jax.rl.train" in loaded
    assert not {"matplotlib", "orbax", "tensorstore", "scipy", "safetensors", "onnx"} & set(loaded)


@pytest.mark.parametrize("package", ["relic_jax.rl", "relic_jax.models", "relic_jax.environment", "relic_jax.bridge"])
def test_no_cycles(package):
    graph = {name: imports(name) & set(ALL) for name in ALL if within(name, package)}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " → ".join((*above[above.index(name) :], name))
        if name in graph and name not in done:
            for module in sorted(graph[name] - {name}):
                visit(module, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


@pytest.mark.parametrize("name", [*LIBRARY, *ENVS])
def test_files_and_functions_are_small(name):
    text = ALL[name].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_FILE_LINES
    sizes = {node.name: node.end_lineno - node.lineno + 1 for node in functions(ast.parse(text))}
    assert not {function: size for function, size in sizes.items() if size > MAX_FUNCTION_LINES}
