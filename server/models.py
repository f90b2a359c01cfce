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
class ServedModel:
    """One model and everything that serves it.

    Attributes:
        manifest: what its bundle says of itself.
        digest: sha256 of the bundle's manifest, lower-case hex.
        tokenizer: text to token ids and back.
        runner: executes its graphs.
        decode_loop: decodes its sequences.
        metrics: counts what it does.
        limits: what a request may ask for.
        exam: the valid exam of this runner and precision; None: never taken, failed or stale.
        state: whether it serves.
        certified: whether it may serve at all.
    """

    manifest: Manifest
    digest: str
    tokenizer: Tokenizer
    runner: Runner
    decode_loop: DecodeLoop
    metrics: ModelMetrics
    limits: Limits
    exam: Exam | None = None
    state: ModelState = ModelState.LOADING
    certified: bool = True
    defaults: SearchOptions = field(init=False)

    def __post_init__(self) -> None:
        """Bring the manifest's decoding defaults within the limits."""
        decoding, limits = self.manifest.decoding, self.limits
        # Fields whose zero the wire contract itself explains (num_hypotheses, min_output_tokens, return_scores)
        # have that meaning, whatever the manifest says.
        self.defaults = SearchOptions(
            beam_size=min(decoding.beam_size, limits.max_beam_size),
            length_penalty=decoding.length_penalty,
            length_penalty_type=LengthPenalty(decoding.length_penalty_type),
            max_output_tokens=min(decoding.max_output_tokens, limits.max_output_tokens),
        )

    @property
    def name(self) -> str:
        """Its name on the wire."""
        return self.manifest.name

    @property
    def healthy(self) -> bool:
        """Whether it serves and its decode loop does not fail."""
        return self.state is ModelState.SERVING and not self.decode_loop.failed


def match_language(wanted: str, served: Iterable[str]) -> str | None:
    """The served code that a BCP-47 code asks for, by lookup as in RFC 4647, section 3.4; None: none does.

    Case does not matter, and subtags that no served code has are dropped from the end: ``en-US`` finds ``en``.
    """
    by_key = {code.lower().replace("_", "-"): code for code in served}
    subtags = wanted.lower().replace("_", "-").split("-")
    while subtags:
        if found := by_key.get("-".join(subtags)):
            return found
        subtags.pop()
    return None


class Registry:
    """The models of a server by name; used on the event loop's thread and read from others."""

    def __init__(self, models: Iterable[ServedModel] = (), *, loading: bool = False) -> None:
        """Begin with ``models``; ``loading`` says whether more are to come."""
        self._by_name = {model.name: model for model in models}
        self.loading = loading
        self.draining = False

    def add(self, model: ServedModel) -> None:
        """Add a model; the caller has made sure that its name is new."""
        assert model.name not in self._by_name, f"{model.name} is there already"
        self._by_name = {**self._by_name, model.name: model}

    def get(self, name: str) -> ServedModel | None:
        """The model of that name."""
        return self._by_name.get(name)

    def all(self) -> list[ServedModel]:
        """All models, sorted by name."""
        return [model for _, model in sorted(self._by_name.items())]

    @property
    def ready(self) -> bool:
        """Whether every model serves and nothing more is to come."""
        models = self.all()
        return bool(models) and not (self.loading or self.draining) and all(model.healthy for model in models)

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
