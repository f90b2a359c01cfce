"""What TensorRT engines are built from and for; free of TensorRT itself."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from dataclasses import dataclass

from export.bundle import GRAPHS_FOLDER, Bundle, Manifest
from export.bundle.fields import to_json
from export.runners.gpu.buckets import cache_capacities, row_buckets, source_capacities
from export.runners.gpu.cuda import Gpu, find_gpu
from export.runners.gpu.rows import ENCODER_TOKENS
from export.runners.tensorrt_library import TensorrtLibrary

TARGET = "tensorrt"
MAX_ROWS = 128
MAX_CANDIDATES = 32
"""What engines are built for where nobody says more."""

ANY_GPU = Gpu("any", "any", "any")


def gpu_for(library: TensorrtLibrary) -> Gpu:
    """The GPU that a library builds engines for here; ``ANY_GPU`` where they are compiled further for what they meet.

    Raises:
        DeviceUnavailableError: it builds for the GPU at hand, and there is none.
    """
    return ANY_GPU if library.portable else find_gpu()


@dataclass(frozen=True, kw_only=True)
class EngineSizes:
    """The sizes that engines are built for.

    Attributes:
        row_buckets: numbers of rows of a step, ascending.
        cache_capacities: capacities of a row's own caches, in tokens, ascending.
        source_capacities: capacities of cross caches, in tokens, ascending.
        max_candidates: largest ``k`` of ``top_k``.
        encoder_tokens: most source tokens of one call of the encoder, padding counted; a longer source goes alone.
    """

    row_buckets: tuple[int, ...]
    cache_capacities: tuple[int, ...]
    source_capacities: tuple[int, ...]
    max_candidates: int
    encoder_tokens: int = ENCODER_TOKENS

    @classmethod
    def of(cls, manifest: Manifest, *, max_rows: int, max_candidates: int) -> EngineSizes:
        """What runners of a bundle need; more candidates than can be selected are nobody's."""
        return cls(
            row_buckets=row_buckets(max_rows),
            cache_capacities=cache_capacities(manifest.max_output_tokens),
            source_capacities=source_capacities(manifest.max_source_tokens),
            max_candidates=min(max_candidates, manifest.selectable_tokens),
        )

    def cover(self, wanted: EngineSizes) -> bool:
        """Whether all that ``wanted`` asks for is here."""
        return (
            set(wanted.row_buckets) <= set(self.row_buckets)
            and self.cache_capacities == wanted.cache_capacities
            and self.source_capacities == wanted.source_capacities
            and self.max_candidates >= wanted.max_candidates
            and self.encoder_tokens >= wanted.encoder_tokens
        )


@dataclass(frozen=True, kw_only=True)
class EngineKey:
    """What engines were built from and for: with another key they are no use.

    Attributes:
        graphs: sha256 of the digests of the graphs' files.
        library: ``tensorrt`` or ``tensorrt-rtx``.
        version: of the library.
        gpu: its name; ``any`` where engines are compiled further for the GPU that they meet.
        compute_capability: of the GPU, such as ``9.0``, or ``any``.
        driver: version of its driver, or ``any``.
        precision: of the matrix products.
        sizes: what the engines take.
    """

    graphs: str
    library: str
    version: str
    gpu: str
    compute_capability: str
    driver: str
    precision: str
    sizes: EngineSizes

    @classmethod
    def of(cls, bundle: Bundle, library: TensorrtLibrary, *, max_rows: int, max_candidates: int) -> EngineKey:
        """The key of engines for this bundle, library and machine.

        Raises:
            BundleError: the bundle was not exported for TensorRT.
            DeviceUnavailableError: the library builds for one GPU, and there is none.
        """
        manifest = bundle.manifest
        folder = bundle.graph_path(TARGET, "step").parent
        place = f"{GRAPHS_FOLDER}/{folder.name}/"
        digests = {name: digest for name, digest in manifest.files.items() if name.startswith(place)}
        gpu = gpu_for(library)
        return cls(
            graphs=hashlib.sha256(to_json(digests).encode()).hexdigest(),
            library=library.name,
            version=library.version,
            gpu=gpu.name,
            compute_capability=gpu.capability,
            driver=gpu.driver,
            precision=manifest.precision(TARGET),
            sizes=EngineSizes.of(manifest, max_rows=max_rows, max_candidates=max_candidates),
        )

    @property
    def digest(self) -> str:
        """sha256 of all of it, lower-case hex."""
        return hashlib.sha256(to_json(dataclasses.asdict(self)).encode()).hexdigest()

    @property
    def machine_name(self) -> str:
        """Name of a folder in a bundle: GPU, library, its version and the precision."""
        gpu = re.sub(r"[^a-z0-9]+", "-", self.gpu.lower()).strip("-")
        return f"{gpu}-{self.library}-{self.version}-{self.precision}"

    @property
    def folder_name(self) -> str:
        """Name of a folder in an engine cache: as in a bundle, and the start of the digest."""
        return f"{self.machine_name}-{self.digest[:16]}"

    def fits(self, wanted: EngineKey) -> bool:
        """Whether engines of this key do what is wanted: equal but for sizes, which may be more."""
        return dataclasses.replace(self, sizes=wanted.sizes) == wanted and self.sizes.cover(wanted.sizes)

    def complaint(self, wanted: EngineKey) -> str:
        """The first thing in which engines of this key do not fit; empty where they do."""
        if self.fits(wanted):
            return ""
        own, other = dataclasses.asdict(self), dataclasses.asdict(wanted)
        name = next(name for name in own if own[name] != other[name])
        return f"{name}: got {own[name]}, wanted {other[name]}"
