"""Imports point one way: server -> export -> model, and what serves never reaches torch.

Two views of the same sources: every import statement against the table of who may import whom, and what is really
loaded when a module is imported, which leaves out imports inside functions and under TYPE_CHECKING.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = ("model", "export", "server")
OURS = (*FLOORS, "dragoman")

# What each floor may import of ours besides itself; a name covers what lies below it.
MAY_IMPORT = {
    "model": (),
    "export": ("model",),
    "server": ("dragoman.v1", "export.bundle", "export.contract", "export.runners", "model.tokenizer"),
}
# The composition root puts the floors' subcommands together.
COMPOSITION_ROOT = "server.cli"
ONLY_THE_COMPOSITION_ROOT = ("model.cli", "export.cli")

# What the base dependencies of pyproject.toml are imported as.
SERVING_DEPENDENCIES = {
    *("google", "grpc", "grpc_health", "grpc_reflection", "grpc_status", "numpy", "onnxruntime"),
    *("prometheus_client", "sacrebleu", "sentencepiece", "tqdm"),
}


def module_path(name: str, root: Path = ROOT) -> Path | None:
    """The file of one of our modules, or None where there is no such module."""
    base = root.joinpath(*name.split("."))
    if base.with_suffix(".py").is_file():
        return base.with_suffix(".py")
    package = base / "__init__.py"
    return package if package.is_file() else None


def modules_of(floor: str) -> list[str]:
    """Dotted names of all modules below a floor."""
    names = []
    for path in sorted((ROOT / floor).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def imports_of(node: ast.AST, *, package: str) -> Iterator[str]:
    """What one node imports; `from a import b` gives a.b where that is one of our modules, else a."""
    match node:
        case ast.Import(names=aliases):
            yield from (alias.name for alias in aliases)
        case ast.ImportFrom(module=module, names=aliases, level=level):
            if level:
                above = package.split(".")[: len(package.split(".")) - level + 1]
                module = ".".join([*above, *([module] if module else [])])
            assert module is not None
            for alias in aliases:
                inner = f"{module}.{alias.name}"
                yield inner if module_path(inner) or module == "dragoman" else module
        case ast.Call(func=ast.Attribute(attr="import_module") | ast.Name(id="import_module"), args=[argument, *_]):
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield argument.value


def all_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node, wherever it stands."""
    return ast.walk(tree)


def executed_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when the module is imported: no function bodies, nothing under TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            yield from (inner for branch in node.orelse for inner in (branch, *executed_nodes(branch)))
            continue
        yield node
        yield from executed_nodes(node)


def is_below(name: str, prefixes: tuple[str, ...]) -> bool:
    """Whether a dotted name is one of the prefixes or lies below one."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def forbidden_imports(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """Imports of one module that its floor may not make, as `line: name`."""
    floor = module.split(".")[0]
    package = module if is_package else module.rpartition(".")[0]
    allowed = (floor, *MAY_IMPORT[floor], *(ONLY_THE_COMPOSITION_ROOT if module == COMPOSITION_ROOT else ()))
    found = []
    for node in all_nodes(ast.parse(source)):
        for name in imports_of(node, package=package):
            ours_not_allowed = is_below(name, OURS) and not is_below(name, allowed)
            if ours_not_allowed or (floor == "server" and is_below(name, ("torch",))):
                found.append(f"{getattr(node, 'lineno', 0)}: {name}")
    return found


def reached_from(module: str) -> dict[str, str]:
    """All that importing a module loads, directly or through our other modules, each with the module that asks."""
    reached = {module: "the test"}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = module_path(name)
        if path is None:
            continue
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        # Importing a.b.c runs a and a.b first.
        parents = [name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1)]
        nodes = executed_nodes(ast.parse(path.read_text()))
        imported = [found for node in nodes for found in imports_of(node, package=package)]
        for found in (*parents, *imported):
            if found not in reached:
                reached[found] = name
                waiting.append(found)
    return reached


def beyond_serving(module: str) -> list[str]:
    """What a module loads that `pip install .` does not bring, each with the module that asks for it."""
    known = {*sys.stdlib_module_names, *SERVING_DEPENDENCIES, *OURS}
    return [f"{name} (in {by})" for name, by in sorted(reached_from(module).items()) if name.split(".")[0] not in known]


@pytest.mark.parametrize("floor", FLOORS)
def test_a_floor_imports_only_what_the_table_allows(floor: str) -> None:
    modules = modules_of(floor)
    assert modules, f"{floor}/ holds no modules"
    found = {}
    for module in modules:
        path = module_path(module)
        assert path is not None
        wrong = forbidden_imports(module, path.read_text(), is_package=path.name == "__init__.py")
        if wrong:
            found[str(path.relative_to(ROOT))] = wrong
    assert found == {}


@pytest.mark.parametrize("floor", ["model", "export"])
def test_package_imports_nothing_by_itself(floor: str) -> None:
    # The server imports model.tokenizer and export.bundle, and with them these.
    tree = ast.parse((ROOT / floor / "__init__.py").read_text())
    assert [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)] == []


def test_no_package_below_tests() -> None:
    assert sorted((ROOT / "tests").rglob("__init__.py")) == []


def test_serving_reaches_only_what_the_base_install_brings() -> None:
    assert {module: beyond for module in modules_of("server") if (beyond := beyond_serving(module))} == {}


@pytest.mark.parametrize("module", ["model.tokenizer", "model.cli", "export.cli", "export.bundle", "export.contract"])
def test_module_that_the_server_imports_loads_only_what_the_base_install_brings(module: str) -> None:
    assert module_path(module) is not None, f"{module} does not exist"
    assert beyond_serving(module) == []


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("model.data", "import export.bundle", ["1: export.bundle"]),
        ("model.data", "from dragoman.v1 import translation_pb2", ["1: dragoman.v1"]),
        ("model.data", "from . import config\nfrom .tokenizer import Tokenizer", []),
        ("export.graph", "import torch\nfrom model import config", []),
        ("export.graph", "def f():\n    import server.loop", ["2: server.loop"]),
        ("server.loop", "from model import tokenizer\nfrom export.runners import ort\nimport export.contract", []),
        ("server.loop", "import model", ["1: model"]),
        ("server.loop", "from model import config", ["1: model.config"]),
        ("server.loop", "from ..model import config", ["1: model.config"]),
        ("server.loop", "import torch.nn", ["1: torch.nn"]),
        ("server.loop", "import torchvision", []),
        ("server.loop", "import importlib\nimportlib.import_module('torch')", ["2: torch"]),
        ("server.loop", "from model.cli import add_commands", ["1: model.cli"]),
        ("server.cli", "from model.cli import add_commands\nimport export.cli", []),
        ("server.cli", "import torch", ["1: torch"]),
    ],
)
def test_forbidden_imports_are_found(module: str, source: str, wrong: list[str]) -> None:
    assert forbidden_imports(module, source) == wrong


def test_imports_under_type_checking_and_in_functions_do_not_run() -> None:
    source = (
        "import a\nif TYPE_CHECKING:\n    import b\nelse:\n    import c\n"
        "def f():\n    import d\nclass C:\n    import e\ntry:\n    import f\nexcept ImportError:\n    import g\n"
    )
    found = [name for node in executed_nodes(ast.parse(source)) for name in imports_of(node, package="server")]
    assert found == ["a", "c", "e", "f", "g"]
