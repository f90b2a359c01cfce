"""Build the engines of a bundle, all or none."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from export.bundle import Bundle
from export.bundle.folder import ENGINES_FOLDER, replace_directory
from export.engines.network import Network, parse_network
from export.engines.profiles import Profile, add_profiles, profiles_of
from export.engines.specialise import specialise
from export.errors import ExportError
from export.runners.gpu.engine_files import ENGINES_FILE, EngineFile, EngineSet, engines_of
from export.runners.gpu.engine_keys import MAX_CANDIDATES, MAX_ROWS, TARGET, EngineKey
from export.runners.tensorrt_library import TensorrtLibrary, find_library

_log = logging.getLogger(__name__)
_ABANDONED_SECONDS = 24 * 3600.0


def build_engines(
    bundle: Bundle,
    out: Path,
    *,
    library: TensorrtLibrary | None = None,
    max_rows: int = MAX_ROWS,
    max_candidates: int = MAX_CANDIDATES,
    say: Callable[[str], None] = _log.info,
) -> EngineSet:
    """Build the engines of a bundle for this machine, in one move: a reader sees all of them or none.

    Args:
        bundle: exported for the target ``tensorrt``.
        out: folder to write; engines that are there are replaced.
        library: what to build with; None: what is installed.
        max_rows: most rows of a step.
        max_candidates: largest ``k`` of ``top_k``.
        say: told of progress, a line at a time.

    Raises:
        BundleError: the bundle was not exported for TensorRT.
        DeviceUnavailableError: TensorRT is not installed, or needs a GPU and has none.
        ExportError: a graph cannot become an engine that computes the same; or ``out`` holds something else.
    """
    library = library or find_library()
    key = EngineKey.of(bundle, library, max_rows=max_rows, max_candidates=max_candidates)
    out = Path(os.path.abspath(out))
    if out.exists() and not (out / ENGINES_FILE).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out}: got something else there, wanted a new folder or one of engines")
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(out)
    staging = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    staging.mkdir()
    try:
        engines = []
        wanted = engines_of(key.sizes)
        for number, (graph, capacity) in enumerate(wanted, start=1):
            path = bundle.graph_path(TARGET, graph)
            engine = _build(library, path, staging, key=key, capacity=capacity)
            engines.append(engine)
            size = f"{len(engine.profiles)} profiles, {engine.bytes / 2**20:.1f} MiB, {engine.seconds:.1f} s"
            say(f"[{number}/{len(wanted)}] {Path(engine.file).stem}: {engine.layers} layers, {size}")
        (staging / ENGINES_FILE).write_text(EngineSet(staging, key, tuple(engines)).to_json(), encoding="utf-8")
        replace_directory(out, staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return EngineSet.read(out)


def prebuild_engines(bundle: Bundle, *, say: Callable[[str], None] = _log.info) -> EngineSet:
    """Build engines into a bundle, for the library and GPU at hand; arguments and errors as of ``build_engines``."""
    library = find_library()
    key = EngineKey.of(bundle, library, max_rows=MAX_ROWS, max_candidates=MAX_CANDIDATES)
    return build_engines(bundle, bundle.path / ENGINES_FOLDER / key.machine_name, library=library, say=say)


def _build(library: TensorrtLibrary, path: Path, folder: Path, *, key: EngineKey, capacity: int) -> EngineFile:
    """Build one engine; a ``capacity`` of 0 leaves it open."""
    graph = path.stem
    started = time.perf_counter()
    model = onnx.load(str(path), load_external_data=False)
    model = specialise(model, sizes={"capacity": capacity} if capacity else None)
    builder = library.builder()
    network = parse_network(library, builder, model, path=path, precision=key.precision)
    profiles = profiles_of(graph, key.sizes)
    config = builder.create_builder_config()
    if key.precision == "fp32":  # TF32 keeps no more digits than float16
        config.clear_flag(library.api.BuilderFlag.TF32)
    if hasattr(library.api.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        config.set_flag(library.api.BuilderFlag.REQUIRE_USER_ALLOCATION)  # else a run may allocate, which no graph can
    add_profiles(builder, config, network.definition, model, profiles)
    plan = memoryview(_serialise(library, builder, config, network))
    file = f"{graph}-{capacity}.plan" if capacity else f"{graph}.plan"
    (folder / file).write_bytes(plan)
    return EngineFile(
        file=file,
        graph=graph,
        capacity=capacity,
        profiles=tuple(_recorded(profile) for profile in profiles),
        sha256=hashlib.sha256(plan).hexdigest(),
        bytes=plan.nbytes,
        seconds=round(time.perf_counter() - started, 3),
        layers=network.layers,
        types=network.types,
    )


def _serialise(library: TensorrtLibrary, builder: Any, config: Any, network: Network) -> Any:
    with library.listening() as messages:
        plan = builder.build_serialized_network(network.definition, config)
    if plan is None:
        raise ExportError(f"{network.name}: {library} built no engine: {messages.reason('it does not say why')}")
    return plan


def _recorded(profile: Profile) -> dict[str, tuple[int, ...]]:
    return {name: tuple(sizes) for name, sizes in profile.items()}


def _remove_abandoned(out: Path) -> None:
    """Remove what builds of the same engines left behind that were killed long ago."""
    for path in out.parent.glob(f".{out.name}.*"):
        if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
            shutil.rmtree(path, ignore_errors=True)
