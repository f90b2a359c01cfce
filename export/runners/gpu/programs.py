"""What the runner puts into streams: graphs bound to its buffers, captured where that is possible."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable

from export.runners.gpu.device import Captured, Stream
from export.runners.protocol import RunnerError

_log = logging.getLogger(__name__)

Enqueue = Callable[[], None]


class Programs:
    """Pieces of work in one stream, by key: prepared once, run once as they are, then captured and launched.

    The first run is what warms them up: runtimes load kernels and choose algorithms in it, which cannot be captured.
    """

    def __init__(self, stream: Stream, *, capturable: bool) -> None:
        """Begin with none."""
        self._stream = stream
        self._capturable = capturable
        self._prepared: dict[Hashable, Enqueue] = {}
        self._refused: set[Hashable] = set()
        self._captured: dict[Hashable, Captured] = {}

    @property
    def captured(self) -> int:
        """How many have been captured."""
        return len(self._captured)

    def run(self, key: Hashable, prepare: Callable[[], Enqueue]) -> None:
        """Put the work of ``key`` into the stream.

        Args:
            key: equal keys must mean the same work on the same buffers.
            prepare: gives what enqueues it; asked only where the key is new.
        """
        captured = self._captured.get(key)
        if captured is not None:
            self._stream.launch(captured)
            return
        enqueue = self._prepared.get(key)
        if enqueue is None:
            enqueue = self._prepared[key] = prepare()
            enqueue()
        elif self._capturable and key not in self._refused and self._capture(key, enqueue):
            self._stream.launch(self._captured[key])
        else:
            enqueue()

    def _capture(self, key: Hashable, enqueue: Enqueue) -> bool:
        """Capture the work of ``key``; where the runtime refuses, it is enqueued piece by piece from now on."""
        try:
            self._captured[key] = self._stream.capture(enqueue)
        except RunnerError as error:
            if not self._refused:
                _log.warning("work is enqueued piece by piece, for it cannot be captured: %s", error)
            self._refused.add(key)
            return False
        return True

    def close(self) -> None:
        """Free what was captured."""
        for captured in self._captured.values():
            captured.close()
        self._captured.clear()
        self._prepared.clear()
