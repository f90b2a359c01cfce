"""A folder of TensorRT engines, every byte checked when it is read; free of TensorRT itself."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from export.bundle import Bundle, BundleError
from export.bundle.fields import Fields, read_bytes, to_json
from export.bundle.folder import ENGINES_FOLDER
from export.contract import GRAPH_NAMES
from export.runners.gpu.engine_keys import EngineKey, EngineSizes

ENGINES_FILE = "engines.json"
FORMAT_VERSION = 1
"""Of ``engines.json``, and of how engines are made of graphs: another one means other engines."""


@dataclass(frozen=True, kw_only=True)
class EngineFile:
    """One engine.

    Attributes:
        file: name of its file in the folder.
        graph: whose it is.
        capacity: of a row's own caches, in tokens; 0 where it may be any.
        profiles: ranges of sizes, [smallest, best, largest] by name.
        sha256: of the file, lower-case hex.
        bytes: of the file.
        seconds: that the build took.
        layers: of the network that it was built from.
        types: how many of these give each type of values, by type of layer.
    """

    file: str
    graph: str
    capacity: int
    profiles: tuple[dict[str, tuple[int, ...]], ...]
    sha256: str
    bytes: int
    seconds: float
    layers: int
    types: dict[str, dict[str, int]]


@dataclass(frozen=True)
class EngineSet:
    """A folder of engines.

    Attributes:
        path: the folder.
        key: what they were built from and for.
        engines: all of them.
    """

    path: Path
    key: EngineKey
    engines: tuple[EngineFile, ...]

    @classmethod
    def read(cls, path: Path) -> EngineSet:
        """Read ``engines.json``, without the engines.

        Raises:
            BundleError: it is missing, not as it was written, or of another format.
        """
        where = str(path / ENGINES_FILE)
        fields = Fields.parse(read_bytes(path / ENGINES_FILE), where=where)
        if fields.integer("format_version") != FORMAT_VERSION:
            raise fields.fault("format_version", str(FORMAT_VERSION))
        engines = tuple(_read_engine(Fields(item, where=where)) for item in fields.items("engines"))
        found = cls(path, _read_key(fields.record("key")), engines)
        if found.key.digest != fields.text("key_sha256"):
            raise fields.fault("key_sha256", f"{found.key.digest}, of the key as it stands there")
        found._check_complete(fields)
        return found

    def to_json(self) -> str:
        """The text of ``engines.json``."""
        values = {
            "format_version": FORMAT_VERSION,
            "key": dataclasses.asdict(self.key),
            "key_sha256": self.key.digest,
            "engines": [dataclasses.asdict(engine) for engine in self.engines],
        }
        return to_json(values, indent=2) + "\n"

    def load(self, engine: EngineFile) -> bytes:
        """One engine, serialised.

        Raises:
            BundleError: the file is missing or altered.
        """
        path = self.path / engine.file
        plan = read_bytes(path)
        got = hashlib.sha256(plan).hexdigest()
        if got != engine.sha256:
            raise BundleError(f"{path}: got sha256 {got}, wanted {engine.sha256}")
        return plan

    def _check_complete(self, fields: Fields) -> None:
        wanted = engines_of(self.key.sizes)
        found = [(engine.graph, engine.capacity) for engine in self.engines]
        if sorted(found) != sorted(wanted):
            raise BundleError(f"{fields.where}: engines: got {found}, wanted {wanted}")


def engines_of(sizes: EngineSizes) -> list[tuple[str, int]]:
    """The engines that a bundle needs: graph and capacity, 0 where it may be any."""
    names = GRAPH_NAMES["standard"]
    return [(name, capacity) for name in names for capacity in (sizes.cache_capacities if name == "step" else (0,))]


def find_engines(bundle: Bundle, wanted: EngineKey, *, cache: Path | None) -> EngineSet | None:
    """Engines that fit: those that the bundle carries, or those in an engine cache; None where there are none.

    Folders that cannot be read are passed over; the engines themselves are checked as they are loaded.
    """
    for folder in _folders(bundle, wanted, cache):
        try:
            found = EngineSet.read(folder)
        except BundleError:
            continue
        if found.key.fits(wanted):
            return found
    return None


def _folders(bundle: Bundle, wanted: EngineKey, cache: Path | None) -> Iterator[Path]:
    yield bundle.path / ENGINES_FOLDER / wanted.machine_name
    if cache is not None:
        yield cache / wanted.folder_name


def _read_key(fields: Fields) -> EngineKey:
    names = [field.name for field in dataclasses.fields(EngineKey) if field.name != "sizes"]
    sizes = fields.record("sizes")
    buckets = {name: sizes.integers(name) for name in ("row_buckets", "cache_capacities", "source_capacities")}
    for name, values in buckets.items():
        if not values or list(values) != sorted(set(values)) or values[0] < 1:
            raise sizes.fault(name, "ascending numbers from 1")
    return EngineKey(
        **{name: fields.text(name) for name in names},
        sizes=EngineSizes(
            **buckets,
            max_candidates=sizes.integer("max_candidates", minimum=1),
            encoder_tokens=sizes.integer("encoder_tokens", minimum=1),
        ),
    )


def _read_engine(fields: Fields) -> EngineFile:
    file = fields.text("file")
    if PurePosixPath(file).name != file or "\\" in file or "\0" in file:
        raise fields.fault("file", "a plain name in the same folder")
    profiles = [Fields(item, where=fields.where) for item in fields.items("profiles")]
    return EngineFile(
        file=file,
        graph=fields.text("graph"),
        capacity=fields.integer("capacity"),
        profiles=tuple({name: profile.integers(name) for name in profile.names()} for profile in profiles),
        sha256=fields.text("sha256"),
        bytes=fields.integer("bytes"),
        seconds=fields.number("seconds"),
        layers=fields.integer("layers"),
        types=_read_types(fields.record("types")),
    )


def _read_types(fields: Fields) -> dict[str, dict[str, int]]:
    kinds: dict[str, Any] = {kind: fields.record(kind) for kind in fields.names()}
    return {kind: {name: counts.integer(name) for name in counts.names()} for kind, counts in kinds.items()}
