"""The adapter over both TensorRT libraries: what is found, what is said where it is not, and what the library says."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from export.runners import tensorrt_library
from export.runners.gpu.cuda import Gpu
from export.runners.gpu.device import DeviceUnavailableError
from export.runners.tensorrt_library import TensorrtLibrary, find_library


class Api:
    """A library of which there is little more than a name."""

    __version__ = "10.16.1"

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)

    class LayerType:
        KV_CACHE_UPDATE = 1

    class NetworkDefinitionCreationFlag:
        STRONGLY_TYPED = 1

    def Builder(self, logger: Any) -> Any:  # noqa: N802
        logger.log(self.ILogger.WARNING, "no device")
        logger.log(self.ILogger.ERROR, "CUDA initialization failure\n  with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")


@pytest.fixture(autouse=True)
def forgotten() -> Any:
    """What earlier tests loaded is loaded anew."""
    tensorrt_library._load.cache_clear()
    yield
    tensorrt_library._load.cache_clear()


def install(monkeypatch: pytest.MonkeyPatch, **modules: Any) -> None:
    names = {"tensorrt": "fake_tensorrt_full", "tensorrt-rtx": "fake_tensorrt_rtx"}
    monkeypatch.setattr(tensorrt_library, "_MODULES", names)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, f"fake_tensorrt_{name}", module)


def test_tensorrt_comes_before_tensorrt_rtx_and_either_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, full=Api(), rtx=Api())
    found = find_library()
    assert (found.name, found.version, found.portable, str(found)) == ("tensorrt", "10.16.1", False, "tensorrt 10.16.1")
    rtx = find_library("tensorrt-rtx")
    assert (rtx.name, rtx.portable) == ("tensorrt-rtx", True)
    assert find_library("tensorrt-rtx") is rtx, "the library keeps the first logger that it is given"


@pytest.mark.parametrize(("capability", "runs"), [("8.6", True), ("12.0", True), ("9.0", False), ("8.0", False)])
def test_tensorrt_rtx_says_at_once_for_which_gpus_it_compiles(
    capability: str, runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rtx = Api()
    rtx.ComputeCapability = SimpleNamespace(NONE=0, CURRENT=1, SM80=2, SM86=3, SM89=4, SM120=5)  # type: ignore[attr-defined]
    install(monkeypatch, full=Api(), rtx=rtx)
    gpu = Gpu("NVIDIA X", capability, "580")
    find_library("tensorrt").check_gpu(gpu)
    if runs:
        find_library("tensorrt-rtx").check_gpu(gpu)
    else:
        wanted = rf"got NVIDIA X of compute capability {capability}, wanted one of 12.0, 8.6, 8.9; for others `pip"
        with pytest.raises(DeviceUnavailableError, match=wanted):
            find_library("tensorrt-rtx").check_gpu(gpu)


def test_the_one_that_is_there_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, rtx=Api())
    assert find_library().name == "tensorrt-rtx"
    with pytest.raises(DeviceUnavailableError, match=r"^TensorRT: not installed; `pip install 'dragoman\[tensorrt\]'`"):
        find_library("tensorrt")


def test_one_that_cannot_update_caches_in_place_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    old = Api()
    old.LayerType = SimpleNamespace()  # type: ignore[assignment]
    install(monkeypatch, full=old)
    with pytest.raises(
        DeviceUnavailableError, match=r"^tensorrt: got 10.16.1, wanted one that updates caches in place"
    ):
        find_library()


def test_a_builder_that_needs_a_gpu_says_so_with_the_librarys_reason() -> None:
    library = TensorrtLibrary("tensorrt", Api())
    with pytest.raises(DeviceUnavailableError) as refusal:
        library.builder()
    assert str(refusal.value) == "tensorrt 10.16.1: CUDA initialization failure with error: 35"


def test_what_the_library_says_goes_to_all_who_listen_and_to_nobody_else() -> None:
    library = TensorrtLibrary("tensorrt", Api())
    with library.listening() as outer:
        library.logger.log(Api.ILogger.ERROR, "first")
        with library.listening() as inner:
            library.logger.log(Api.ILogger.INTERNAL_ERROR, "second\n line")
            library.logger.log(Api.ILogger.WARNING, "careful")
            library.logger.log(Api.ILogger.INFO, "by the way")
    library.logger.log(Api.ILogger.ERROR, "third")
    assert (outer.errors, outer.warnings) == (["first", "second line"], ["careful"])
    assert (inner.errors, inner.warnings) == (["second line"], ["careful"])
    assert (outer.reason("none"), TensorrtLibrary("tensorrt", Api()).name) == ("first", "tensorrt")


@pytest.mark.parametrize(("flag", "bits"), [(True, 0b10), (False, 0)])
def test_networks_are_strongly_typed_where_that_is_a_choice(flag: bool, bits: int) -> None:
    api = Api()
    if not flag:
        api.NetworkDefinitionCreationFlag = SimpleNamespace()  # type: ignore[assignment]
    asked: list[int] = []
    TensorrtLibrary("tensorrt", api).network(SimpleNamespace(create_network=asked.append))
    assert asked == [bits]
