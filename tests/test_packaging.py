"""The built wheel holds all that serving needs and runs without the checkout."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.served import ROOT, Served

# Where each top-level package of the wheel comes from.
SOURCES = {"model": ROOT, "export": ROOT, "server": ROOT, "dragoman": ROOT / "proto"}
COMMANDS = ("serve", "translate", "train", "export", "verify")
TRAINING_ONLY = ("torch", "onnx", "onnxscript", "safetensors", "yaml", "matplotlib", "transformers")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the checkout without network."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def wheel_site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which the wheel, and nothing else, is installed."""
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    result = subprocess.run([*command, str(wheel)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return site


def environment(site: Path) -> dict[str, str]:
    """The variables of a process that takes our packages from the installed wheel alone."""
    # It comes before what an editable install of the checkout adds, so that the wheel's modules win;
    # test_modules_come_from_the_wheel proves it.
    return {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}


def run_python(site: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python outside the checkout with the wheel in front of its path."""
    assert not cwd.is_relative_to(ROOT)
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environment(site), capture_output=True, text=True, check=False, timeout=120
    )


def listing(wheel: Path) -> set[str]:
    """Names of the files in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def test_wheel_holds_every_file_of_its_packages_and_nothing_else(wheel: Path) -> None:
    # hatchling leaves out what .gitignore matches, without a word: compare with what lies on the disk.
    on_disk = {
        path.relative_to(root).as_posix()
        for package, root in SOURCES.items()
        for path in (root / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    packaged = {name for name in listing(wheel) if ".dist-info/" not in name}
    assert packaged == on_disk


@pytest.mark.parametrize(
    "name",
    [
        "server/cli.py",
        "export/bundle.py",
        "model/tokenizer.py",
        "dragoman/v1/__init__.py",
        "dragoman/v1/py.typed",
        "dragoman/v1/translation.proto",
        "dragoman/v1/translation_pb2.py",
        "dragoman/v1/translation_pb2.pyi",
        "dragoman/v1/translation_pb2_grpc.py",
        "dragoman/v1/translation_pb2_grpc.pyi",
    ],
)
def test_wheel_holds(wheel: Path, name: str) -> None:
    names = listing(wheel)
    # A package may replace a module: server/cli/__init__.py is as good as server/cli.py.
    assert name in names or name.replace(".py", "/__init__.py") in names


def test_wheel_holds_a_demo_bundle(wheel: Path) -> None:
    manifests = [
        name for name in listing(wheel) if name.startswith("server/assets/") and name.endswith("/manifest.json")
    ]
    assert manifests != []


def test_wheel_carries_licence_and_console_script(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        information = {name.partition(".dist-info/")[2]: name for name in archive.namelist() if ".dist-info/" in name}
        assert "licenses/LICENSE" in information
        entry_points = archive.read(information["entry_points.txt"]).decode()
    assert "dragoman = server.cli:main" in entry_points


def test_every_extra_of_the_design_is_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(project["optional-dependencies"]) == {"train", "export", "bpe", "tensorrt", "tensorrt-rtx", "test"}
    names = {requirement.split(">=")[0] for requirement in project["dependencies"]}
    assert names.isdisjoint({"torch", "onnx", "onnxscript", "safetensors", "pyyaml", "matplotlib"})


@pytest.mark.parametrize("module", ["model.tokenizer", "export.contract", "server.cli", "dragoman.v1.translation_pb2"])
def test_modules_come_from_the_wheel(wheel_site: Path, tmp_path: Path, module: str) -> None:
    result = run_python(wheel_site, "-c", f"import {module} as m; print(m.__file__)", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()).is_relative_to(wheel_site)


def test_command_line_runs_from_the_wheel(wheel_site: Path, tmp_path: Path) -> None:
    result = run_python(wheel_site, "-c", "import sys, server.cli; sys.exit(server.cli.main())", "--help", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    missing = [command for command in COMMANDS if command not in result.stdout]
    assert missing == []


def test_console_script_runs_from_the_wheel(wheel_site: Path, tmp_path: Path) -> None:
    result = run_python(wheel_site, str(wheel_site / "bin" / "dragoman"), "--help", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "serve" in result.stdout


def test_serving_loads_nothing_that_only_training_needs(wheel_site: Path, tmp_path: Path) -> None:
    # Every module of the server, so that one that no other imports yet is seen too.
    script = (
        "import importlib, pkgutil, sys, server\n"
        "names = [m.name for m in pkgutil.walk_packages(server.__path__, 'server.')]\n"
        "for name in names: name.endswith('__main__') or importlib.import_module(name)\n"
        f"print(len(names), *sorted(set(sys.modules) & set({TRAINING_ONLY!r})))\n"
    )
    result = run_python(wheel_site, "-W", "error", "-c", script, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    count, *loaded = result.stdout.split()
    assert int(count) > 1
    assert loaded == []


def test_the_wheel_serves_its_demo_outside_the_checkout(wheel_site: Path, tmp_path: Path) -> None:
    served = Served("--lame-duck", "0", cwd=tmp_path, environment=environment(wheel_site))
    try:
        arguments = ("-m", "server.cli", "translate", "--server", served.address, "Two dogs are playing in the snow.")
        translated = run_python(wheel_site, *arguments, cwd=tmp_path)
    finally:
        exit_code = served.stop()
    assert translated.returncode == 0, translated.stderr
    assert "Hunde" in translated.stdout
    assert exit_code == 0
