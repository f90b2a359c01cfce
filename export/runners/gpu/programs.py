"""What the runner puts into streams: graphs bound to its buffers, captured where that is possible."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from export.runners.gpu.device import Captured, Stream

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
        elif self._capturable:
            captured = self._captured[key] = self._stream.capture(enqueue)
            self._stream.launch(captured)
        else:
            enqueue()

    def close(self) -> None:
        """Free what was captured."""
        for captured in self._captured.values():
            captured.close()
        self._captured.clear()
        self._prepared.clear()
