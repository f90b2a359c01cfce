"""Folders of engines: what fits what, and that nothing altered is loaded."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from export.bundle import Bundle, BundleError
from export.runners.gpu import engine_keys
from export.runners.gpu.cuda import Gpu
from export.runners.gpu.engine_files import EngineSet, engines_of, find_engines
from export.runners.gpu.engine_keys import EngineKey, EngineSizes
from export.runners.tensorrt_library import TensorrtLibrary
from tests.export.tiny import export_model, random_model
from tests.gpu.fake_device import FakeDevice
from tests.gpu.fake_tensorrt import fake_library, key_of, write_engines

H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0", "580.65.06")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_model(
        random_model(), tmp_path_factory.mktemp("files") / "bundle", target="tensorrt", precision="fp16"
    )


@pytest.fixture
def library(bundle: Bundle) -> TensorrtLibrary:
    return fake_library(bundle, FakeDevice())


def sizes(**changes: Any) -> EngineSizes:
    usual: dict[str, Any] = {
        "row_buckets": (1, 8),
        "cache_capacities": (128,),
        "source_capacities": (32, 64),
        "max_candidates": 8,
    }
    return EngineSizes(**(usual | changes))


def test_key_is_of_the_graphs_the_library_and_the_gpu(
    bundle: Bundle, library: TensorrtLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_keys, "find_gpu", lambda: H100)
    key = EngineKey.of(bundle, library, max_rows=8, max_candidates=1000)
    assert (key.library, key.version, key.precision) == ("tensorrt", "11.0.0", "fp16")
    assert (key.gpu, key.compute_capability, key.driver) == (H100.name, "9.0", "580.65.06")
    assert key.sizes == EngineSizes(
        row_buckets=(1, 8), cache_capacities=(128,), source_capacities=(32, 64), max_candidates=298
    ), "301 tokens, 3 of them suppressed; 40 positions"
    assert key.folder_name == f"nvidia-h100-80gb-hbm3-tensorrt-11.0.0-fp16-{key.digest[:16]}"


def test_engines_that_compile_for_the_gpu_they_meet_ask_for_none(
    bundle: Bundle, library: TensorrtLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_keys, "find_gpu", lambda: pytest.fail("asked for a GPU"))
    rtx = TensorrtLibrary("tensorrt-rtx", library.api)
    key = EngineKey.of(bundle, rtx, max_rows=8, max_candidates=8)
    assert (key.gpu, key.compute_capability, key.driver) == ("any", "any", "any")
    assert key.machine_name == "any-tensorrt-rtx-11.0.0-fp16"


def test_key_changes_with_everything_it_stands_for(bundle: Bundle, library: TensorrtLibrary, tmp_path: Path) -> None:
    rtx = TensorrtLibrary("tensorrt-rtx", library.api)
    own = EngineKey.of(bundle, rtx, max_rows=8, max_candidates=8)
    other = export_model(random_model(seed=2), tmp_path / "other", target="tensorrt", precision="fp16")
    assert EngineKey.of(other, rtx, max_rows=8, max_candidates=8).graphs != own.graphs, "other weights"
    same = export_model(random_model(), tmp_path / "same", target="tensorrt", precision="fp16")
    assert EngineKey.of(same, rtx, max_rows=8, max_candidates=8) == own
    for field in dataclasses.fields(EngineKey):
        value: Any = sizes(max_candidates=7) if field.name == "sizes" else "else"
        changed = dataclasses.replace(own, **{field.name: value})
        assert changed.digest != own.digest, field.name
        assert changed.complaint(own).startswith(f"{field.name}: got ")
    assert own.complaint(own) == ""


def test_engines_for_more_fit_what_asks_for_less() -> None:
    assert sizes(row_buckets=(1, 8, 32), max_candidates=9).cover(sizes())
    assert not sizes().cover(sizes(row_buckets=(1, 8, 32)))
    assert not sizes(max_candidates=7).cover(sizes())
    assert not sizes(encoder_tokens=4095).cover(sizes())
    assert not sizes(cache_capacities=(128, 256)).cover(sizes()), "what a step costs would be another"


def test_bundles_without_graphs_for_tensorrt_are_refused(library: TensorrtLibrary, tmp_path: Path) -> None:
    cuda = export_model(random_model(), tmp_path / "cuda", target="cuda")
    with pytest.raises(BundleError, match=r"got a bundle for cpu, cuda, wanted one for tensorrt$"):
        EngineKey.of(cuda, library, max_rows=8, max_candidates=8)


def test_what_is_written_is_read(bundle: Bundle, tmp_path: Path) -> None:
    key = key_of(bundle, max_rows=8)
    written = write_engines(bundle, tmp_path / "engines", key)
    assert EngineSet.read(tmp_path / "engines") == written
    assert [(engine.graph, engine.capacity) for engine in written.engines] == engines_of(key.sizes)
    assert written.load(written.engines[0]) == (tmp_path / "engines" / written.engines[0].file).read_bytes()


def test_an_altered_or_missing_engine_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    engines = write_engines(bundle, tmp_path / "engines", key_of(bundle, max_rows=8))
    first = tmp_path / "engines" / engines.engines[0].file
    first.write_bytes(first.read_bytes()[:-1])
    with pytest.raises(BundleError, match=rf"^{first}: got sha256 [0-9a-f]+, wanted {engines.engines[0].sha256}$"):
        engines.load(engines.engines[0])
    first.unlink()
    with pytest.raises(BundleError, match=rf"^{first}: No such file or directory$"):
        engines.load(engines.engines[0])


@pytest.mark.parametrize(
    ("alter", "complaint"),
    [
        (lambda note: note.update(format_version=2), "format_version: got 2, wanted 1"),
        (lambda note: note["key"].update(driver="1"), "key_sha256: got "),
        (lambda note: note["key"]["sizes"].update(row_buckets=[8, 1]), "row_buckets: got "),
        (lambda note: note["engines"].pop(), "engines: got "),
        (lambda note: note["engines"].append(note["engines"][0]), "engines: got "),
        (lambda note: note["engines"][0].update(file="../../manifest.json"), "file: got '../../manifest.json', wanted"),
        (lambda note: note["engines"][0].pop("sha256"), "sha256: missing"),
        (lambda note: note["engines"][0].update(profiles=[[1]]), "got [1], wanted a JSON object"),
    ],
)
def test_an_altered_note_is_refused(alter: Any, complaint: str, bundle: Bundle, tmp_path: Path) -> None:
    write_engines(bundle, tmp_path / "engines", key_of(bundle, max_rows=8))
    path = tmp_path / "engines" / "engines.json"
    note = json.loads(path.read_text())
    alter(note)
    path.write_text(json.dumps(note))
    with pytest.raises(BundleError) as refusal:
        EngineSet.read(tmp_path / "engines")
    assert complaint in str(refusal.value)
    assert str(path) in str(refusal.value)


def test_engines_are_found_in_the_bundle_first_then_in_the_cache(bundle: Bundle, tmp_path: Path) -> None:
    wanted = key_of(bundle, max_rows=8)
    cache = tmp_path / "cache"
    assert find_engines(bundle, wanted, cache=None) is None
    assert find_engines(bundle, wanted, cache=cache) is None
    cached = write_engines(bundle, cache / wanted.folder_name, wanted)
    assert find_engines(bundle, wanted, cache=cache) == cached
    assert find_engines(bundle, key_of(bundle, max_rows=9), cache=cache) is None

    own = export_model(random_model(), tmp_path / "own", target="tensorrt", precision="fp16")
    folder = own.path / "engines" / wanted.machine_name
    prebuilt = write_engines(own, folder, key_of(own, max_rows=128))
    opened = Bundle.open(own.path)
    assert opened.digest == own.digest, "engines are no part of what the manifest vouches for"
    assert find_engines(opened, key_of(own, max_rows=8), cache=cache) == prebuilt
    (folder / "engines.json").write_text("{")
    assert find_engines(opened, wanted, cache=cache) == cached, "the same graphs, in another bundle"
