"""The command that builds engines, run as the server runs it, where the library builds without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from export.bundle import Bundle
from export.runners.gpu.device import DeviceUnavailableError
from export.runners.gpu.engine_files import EngineSet
from export.runners.tensorrt_library import find_library
from server.config import ServeConfig, Target
from server.engine_build import EngineBuild, EngineBuildError
from server.runners import RunnerSource
from tests.export.tiny import export_model, random_model


def builds_here() -> bool:
    try:
        return find_library().portable
    except DeviceUnavailableError:
        return False


pytestmark = pytest.mark.skipif(not builds_here(), reason="no TensorRT that builds without a GPU")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of a tiny model, in float16."""
    path = tmp_path_factory.mktemp("tiny") / "bundle"
    return export_model(random_model(), path, target="tensorrt", precision="fp16")


def source_with(cache: Path, **settings: Any) -> RunnerSource:
    return RunnerSource(ServeConfig(target=Target.TENSORRT, engine_cache=cache, **settings))


def test_engines_that_were_built_are_found_by_whoever_asks_for_the_same(tiny: Bundle, tmp_path: Path) -> None:
    source = source_with(tmp_path / "cache", max_rows=8, max_beam_size=4)
    assert source.find_engines(tiny) is None
    lines: list[str] = []
    EngineBuild(source.build_command(tiny), on_line=lines.append).wait()
    folder = source.built_engines(tiny)
    assert folder.parent == tmp_path / "cache"
    built = EngineSet.read(folder)
    assert (built.key.sizes.row_buckets, built.key.sizes.max_candidates) == ((1, 8), 8)
    assert any(line.startswith("[1/") for line in lines)
    assert source_with(tmp_path / "cache", max_rows=8, max_beam_size=4, workers=2).find_engines(tiny) == folder
    assert source_with(tmp_path / "cache", max_rows=32, max_beam_size=4).find_engines(tiny) is None
    assert source_with(tmp_path / "elsewhere", max_rows=8, max_beam_size=4).find_engines(tiny) is None


def test_a_cache_that_cannot_be_written_is_named(tiny: Bundle, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("no folder")
    build = EngineBuild(source_with(tmp_path / "cache").build_command(tiny), on_line=lambda _: None)
    with pytest.raises(EngineBuildError, match="cache"):
        build.wait()
