"""A bundle's graphs for the CPU, loaded once for all of its runners."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from export import contract
from export.bundle import Bundle, BundleError
from export.runners.ort_session import open_session
from export.runners.shortlist import ShortlistedVocabulary, read_projection
from export.runners.vocabulary import FullVocabulary, Vocabulary

_log = logging.getLogger(__name__)
TARGET = "cpu"
_ONE_THREAD_PARAMETERS = 20_000_000
"""Measured, one row, one thread against two: 0.20 and 0.23 ms with 5 million parameters, 3.3 and 2.4 with 60."""


class StepSessions:
    """The step on all threads, and, where that makes a difference, on one: two runs on all would fight for the cores.

    The second one holds its own packed weights. So it is loaded when a runner first has company, in the background;
    until it is there, all run the first one.
    """

    def __init__(self, alone: Any, load_beside: Callable[[], Any] | None) -> None:
        self._alone = alone
        self._load_beside = load_beside
        self._beside: Any = None
        self._lock = threading.Lock()

    def of(self, *, alone: bool) -> Any:
        """The session for a runner's next step."""
        if alone:
            return self._alone
        if self._load_beside is not None:
            with self._lock:
                load, self._load_beside = self._load_beside, None
            if load is not None:
                threading.Thread(target=self._load, args=(load,), name="load-step").start()
        return self._beside or self._alone

    def _load(self, load: Callable[[], Any]) -> None:
        try:
            self._beside = load()
        except BundleError:
            _log.exception("the step cannot be loaded for several workers; they share one for all threads")


@dataclass(frozen=True)
class Sessions:
    """A bundle's graphs, loaded; any number of runners may run them at once.

    The encoder, which is a small part of a single request, is there once, and on one thread where several runners may
    be at work.

    Attributes:
        encoder: its session.
        step: its sessions.
        vocabulary: makes what a runner's rows choose from, for its ``max_rows`` and ``max_candidates``.
        shortlisted: whether that is a shortlist.
    """

    encoder: Any
    step: StepSessions
    vocabulary: Callable[..., Vocabulary]
    shortlisted: bool

    @classmethod
    def load(cls, bundle: Bundle, *, threads: int, workers: int, shortlist: bool) -> Sessions:
        """Load what runners of ``bundle`` need; arguments and errors as of ``OrtCpuRunner.open_workers``."""
        manifest = bundle.manifest
        contracts = contract.graph_contracts(manifest.dims, precision=manifest.precision(TARGET))
        # First: whether the bundle has a shortlist shows before anything large is loaded.
        step = contract.SHORTLISTED_STEP if shortlist else "step"
        vocabulary = _shortlisted_vocabulary(bundle) if shortlist else None

        def load(name: str, *, threads: int = 1) -> Any:
            path = bundle.graph_path(TARGET, name)
            return open_session(path, contract=contracts[name], threads=threads, arena=name != step)

        # Waking another thread for a step or a head of a fraction of a millisecond costs more than it brings.
        of_step = 1 if manifest.parameter_count < _ONE_THREAD_PARAMETERS else threads
        steps = StepSessions(load(step, threads=of_step), None if of_step == 1 or workers == 1 else lambda: load(step))
        # The smaller one last: while a session packs its weights, what it has read of them is in memory too.
        encoder = load("encoder", threads=threads if workers == 1 else 1)
        if vocabulary is None:
            vocabulary = partial(FullVocabulary, manifest, argmax=load("argmax"), top_k=load("top_k"))
        return cls(encoder, steps, vocabulary, shortlist)


def _shortlisted_vocabulary(bundle: Bundle) -> Callable[..., Vocabulary]:
    manifest, shortlist = bundle.manifest, bundle.shortlist()
    if shortlist is None:
        wanted = "one for --shortlist: `dragoman export --shortlist PARALLEL` learns it"
        raise BundleError(f"{bundle.path}: got a bundle without a shortlist, wanted {wanted}")
    path = bundle.graph_path(TARGET, contract.SHORTLISTED_STEP).with_name(contract.OUTPUT_FILE)
    projection = read_projection(path, manifest.dims, precision=manifest.precision(TARGET))
    return partial(ShortlistedVocabulary, shortlist, projection, manifest.dims)
