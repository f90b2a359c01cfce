"""The models of a server: what each is made of, whether it serves, and how a request finds one."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field

from export.bundle import Exam, Manifest
from export.runners.protocol import Runner
from model.tokenizer import Tokenizer
from server.config import ServeConfig
from server.decoding.loop import DecodeLoop
from server.decoding.sequence import LengthPenalty, SearchOptions
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


@dataclass(eq=False, kw_only=True)
class KnownModel:
    """A model that the server has found, whether or not it can be served.

    Attributes:
        manifest: what its bundle says of itself.
        digest: sha256 of the bundle's manifest, lower-case hex.
        state: whether it serves.
        certified: whether it may serve at all.
    """

    manifest: Manifest
    digest: str
    state: ModelState = ModelState.LOADING
    certified: bool = True

    @property
    def name(self) -> str:
        """Its name on the wire."""
        return self.manifest.name

    @property
    def healthy(self) -> bool:
        """Whether it serves, and nothing keeps failing."""
        return False


@dataclass(eq=False, kw_only=True)
class ServedModel(KnownModel):
    """A model that is loaded, with everything that serves it.

    Attributes:
        tokenizer: text to token ids and back.
        runners: execute its graphs, one for each worker of the decode loop; all alike.
        decode_loop: decodes its sequences.
        metrics: counts what it does.
        limits: what a request may ask for.
        exam: the valid exam of this runner and precision; None: never taken, failed or stale.
        defaults: what a request's unset options stand for.
    """

    tokenizer: Tokenizer
    runners: tuple[Runner, ...]
    decode_loop: DecodeLoop
    metrics: ModelMetrics
    limits: Limits
    exam: Exam | None = None
    defaults: SearchOptions = field(init=False)

    def __post_init__(self) -> None:
        """Read the manifest's decoding defaults; whoever opened the bundle has held them against the limits."""
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

    @property
    def runner(self) -> Runner:
        """Any of them, for what they have in common."""
        return self.runners[0]

    @property
    def cache_bytes(self) -> int:
        """Address space of the caches of all of them."""
        return sum(runner.limits.cache_bytes for runner in self.runners)

    def close_runners(self) -> None:
        """Free what executes its graphs; nothing may be decoded any more."""
        for runner in self.runners:
            runner.close()

    @property
    def healthy(self) -> bool:
        """Whether it serves and its decode loop does not fail."""
        return self.state is ModelState.SERVING and not self.decode_loop.failed


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
