"""The models of a server: what each is made of, whether it serves, and how a request finds one."""

from __future__ import annotations

import enum
import threading
from collections.abc import Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field

from export.bundle import Exam, Manifest
from export.runners.protocol import Runner
from model.tokenizer import Tokenizer
from server.config import ServeConfig, Target
from server.decoding.loop import DecodeLoop, LoopClosed
from server.decoding.sequence import LengthPenalty, SearchOptions, Sequence
from server.gauges import EngineState, ModelNow, ServedBy
from server.metrics import ModelMetrics


class ModelState(enum.Enum):
    """Whether a model serves; names as in the wire contract."""

    LOADING = "loading"
    SERVING = "serving"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds that requests are checked against, all inclusive; fields as in the wire contract's ModelLimits."""

    max_contents: int
    max_source_tokens: int
    max_output_tokens: int
    max_beam_size: int
    max_source_bytes: int

    @classmethod
    def of(cls, manifest: Manifest, runner: Runner, config: ServeConfig) -> Limits:
        """The narrowest of what the model, its runner and the settings allow."""
        built_for = runner.limits
        return cls(
            max_contents=min(config.max_contents, config.max_queue),
            max_source_tokens=min(manifest.max_source_tokens, built_for.max_source_tokens),
            max_output_tokens=min(manifest.max_output_tokens, built_for.max_output_tokens),
            # A beam of b needs the 2b best tokens of each of its rows.
            max_beam_size=max(1, min(config.max_beam_size, built_for.max_rows, built_for.max_candidates // 2)),
            max_source_bytes=config.max_source_bytes,
        )


_DETAILS = {
    EngineState.NONE: "",
    EngineState.BUILDING: "its TensorRT engines are being built",
    EngineState.VERIFYING: "its TensorRT engines sit their exam",
    EngineState.SERVING: "",
    EngineState.FAILED: "its TensorRT engines could not be built or failed their exam; the server's log says why",
}


@dataclass(eq=False, kw_only=True)
class KnownModel:
    """A model that the server has found, whether or not it can be served.

    Attributes:
        manifest: what its bundle says of itself.
        digest: sha256 of the bundle's manifest, lower-case hex.
        state: whether it serves.
        engines: how far its TensorRT engines are.
        certified: whether it may serve at all.
    """

    manifest: Manifest
    digest: str
    state: ModelState = ModelState.LOADING
    engines: EngineState = EngineState.NONE
    certified: bool = True

    @property
    def name(self) -> str:
        """Its name on the wire."""
        return self.manifest.name

    @property
    def healthy(self) -> bool:
        """Whether it serves, and nothing keeps failing."""
        return False

    @property
    def served_by(self) -> ServedBy | None:
        """What serves it; None: it has not come to that."""
        return None

    @property
    def now(self) -> ModelNow:
        """What the gauges tell of it."""
        return ModelNow(self.healthy, self.served_by, self.engines)

    @property
    def detail(self) -> str:
        """What else there is to tell its users; empty: nothing. It holds no path and no error's text."""
        return _DETAILS[self.engines]


@dataclass(eq=False, kw_only=True)
class Backend:
    """What executes a model: runners of one target, and the decode loop on them.

    Attributes:
        target: what the runners are for; never ``AUTO``.
        runners: one for each worker of the decode loop; all alike.
        decode_loop: decodes sequences.
        limits: what a request may ask for.
        exam: the valid exam of this runner and precision; None: never taken, failed or stale.
    """

    target: Target
    runners: tuple[Runner, ...]
    decode_loop: DecodeLoop
    limits: Limits
    exam: Exam | None = None
    _closing: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)
    _closed: bool = field(default=False, init=False)

    @property
    def runner(self) -> Runner:
        """Any of them, for what they have in common."""
        return self.runners[0]

    @property
    def cache_bytes(self) -> int:
        """Address space of the caches of all of them."""
        return sum(runner.limits.cache_bytes for runner in self.runners)

    def close_runners(self) -> None:
        """Free what executes the graphs, once; nothing may be decoded any more. Safe from any thread."""
        with self._closing:
            closed, self._closed = self._closed, True
        if not closed:
            for runner in self.runners:
                runner.close()


@dataclass(eq=False, kw_only=True)
class ServedModel(KnownModel):
    """A model that is loaded, with everything that serves it.

    Attributes:
        tokenizer: text to token ids and back.
        backend: what executes it.
        retiring: what executed it before and finishes what it has; None: nothing does.
        metrics: counts what it does.
        limits: what a request may ask for.
        defaults: what a request's unset options stand for.
    """

    tokenizer: Tokenizer
    backend: Backend
    retiring: Backend | None = None
    metrics: ModelMetrics
    limits: Limits = field(init=False)
    defaults: SearchOptions = field(init=False)

    def __post_init__(self) -> None:
        """Read the manifest's decoding defaults; whoever opened the bundle has held them against the limits."""
        self.limits = self.backend.limits
        decoding = self.manifest.decoding
        # Fields whose zero the wire contract itself explains (num_hypotheses, min_output_tokens, return_scores)
        # have that meaning, whatever the manifest says.
        self.defaults = SearchOptions(
            beam_size=decoding.beam_size,
            length_penalty=decoding.length_penalty,
            length_penalty_type=LengthPenalty(decoding.length_penalty_type),
            max_output_tokens=min(decoding.max_output_tokens, self.limits.max_output_tokens),
            early_stopping=decoding.early_stopping,
            forced_end=decoding.forced_end,
        )

    def submit(self, sequences: Items[Sequence]) -> None:
        """Queue ``sequences`` as ``DecodeLoop.submit`` does, on whatever executes the model now."""
        while True:
            decode_loop = self.decode_loop
            try:
                decode_loop.submit(sequences)
                return
            except LoopClosed:
                # It may have closed because another one took its place since it was looked up.
                if decode_loop is self.decode_loop:
                    raise

    def change_to(self, backend: Backend) -> Backend:
        """Let ``backend``, whose loop turns, take all new sequences; returns the one before, which finishes its own."""
        before = self.retiring = self.backend
        self.backend = backend
        before.decode_loop.drain()
        return before

    @property
    def backends(self) -> tuple[Backend, ...]:
        """All that may be decoding for it."""
        retiring = self.retiring
        return (self.backend,) if retiring in (None, self.backend) else (self.backend, retiring)

    @property
    def runner(self) -> Runner:
        """Any that executes it, for what they have in common."""
        return self.backend.runner

    @property
    def decode_loop(self) -> DecodeLoop:
        """The one that takes new sequences."""
        return self.backend.decode_loop

    def close_runners(self) -> None:
        """Free what executes its graphs; nothing may be decoded any more."""
        for backend in self.backends:
            backend.close_runners()

    @property
    def healthy(self) -> bool:
        """Whether it serves and its decode loop does not fail."""
        return self.state is ModelState.SERVING and not self.decode_loop.failed

    @property
    def served_by(self) -> ServedBy | None:
        """What serves it; None: it has not come to that."""
        if self.state not in (ModelState.SERVING, ModelState.DRAINING):
            return None
        runner = self.runner
        return ServedBy(runner.name, runner.precision, self.digest)


class Registry:
    """The models of a server by name; used on the event loop's thread and read from others."""

    def __init__(self, models: Iterable[KnownModel] = (), *, loading: bool = False) -> None:
        """Begin with ``models``; ``loading`` says whether more are to come."""
        self._by_name = {model.name: model for model in models}
        self.loading = loading
        self.draining = False

    def add(self, model: KnownModel) -> None:
        """Add a model; it takes the place of one of the same name, which must not serve."""
        assert model.name not in self._by_name or not self._by_name[model.name].healthy, f"{model.name} serves already"
        self._by_name = {**self._by_name, model.name: model}

    def get(self, name: str) -> KnownModel | None:
        """The model of that name."""
        return self._by_name.get(name)

    def all(self) -> list[KnownModel]:
        """All models, sorted by name."""
        return [model for _, model in sorted(self._by_name.items())]

    def loaded(self) -> list[ServedModel]:
        """Those whose bundles could be loaded, sorted by name."""
        return [model for model in self.all() if isinstance(model, ServedModel)]

    @property
    def ready(self) -> bool:
        """Whether at least one model serves and nothing more is to come; one that is out of order harms no other."""
        return not (self.loading or self.draining) and any(model.healthy for model in self.all())

    @property
    def names(self) -> list[str]:
        """Names of all models, sorted."""
        return sorted(self._by_name)

    def drain(self) -> None:
        """Refuse new calls from now on."""
        self.draining = True
        for model in self.all():
            if model.state is ModelState.SERVING:
                model.state = ModelState.DRAINING
