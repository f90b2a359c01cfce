"""CTranslate2 behind the simplest dynamic batcher: a free worker takes what waits, and translates it as one batch.

There is no gRPC, no tokenizer and no client beside it on the cores, all of which favours it over a server.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.peers.peer_ctranslate2 import LARGEST_BATCH, CTranslate2


class Batcher:
    """One thread for each worker of a translator.

    Attributes:
        last_token_at: for each request the moment of its own last token, told by the translator's callback.
        returned_at: for each the moment at which its batch came back.
    """

    def __init__(self, translator: CTranslate2, arrivals: Sequence[Mapping[str, Any]], *, workers: int) -> None:
        self.last_token_at = [0.0] * len(arrivals)
        self.returned_at = [0.0] * len(arrivals)
        self._translator = translator
        self._arrivals = arrivals
        self._waiting: deque[int] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [threading.Thread(target=self._work) for _ in range(workers)]
        for thread in self._threads:
            thread.start()

    def submit(self, number: int) -> None:
        """Let the request of this number wait for a worker."""
        with self._changed:
            self._waiting.append(number)
            self._changed.notify()

    def finish(self) -> None:
        """Wait until everything is translated."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while batch := self._take():
            self._translate(batch)

    def _take(self) -> list[int]:
        """What waits, as much as fits into a batch; nothing: there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            return [self._waiting.popleft() for _ in range(min(len(self._waiting), LARGEST_BATCH))]

    def _translate(self, batch: list[int]) -> None:
        def on_last(place: int) -> None:
            self.last_token_at[batch[place]] = time.perf_counter()

        self._translator.translate(
            [self._arrivals[number]["source"] for number in batch],
            [self._arrivals[number]["output"] for number in batch],
            on_last=on_last,
        )
        now = time.perf_counter()
        for number in batch:
            self.returned_at[number] = now


def replay(translator: object, arrivals: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Submit every request at its moment: seconds from there to its last token, and to its batch's return."""
    assert isinstance(translator, CTranslate2), "arrivals are for CTranslate2 alone"
    batcher = Batcher(translator, arrivals, workers=translator.workers)
    began = time.perf_counter()
    for number, arrival in enumerate(arrivals):
        time.sleep(max(0.0, began + arrival["at"] - time.perf_counter()))
        batcher.submit(number)
    batcher.finish()
    moments = [began + arrival["at"] for arrival in arrivals]
    return {
        "to_last_token_s": [end - moment for end, moment in zip(batcher.last_token_at, moments, strict=True)],
        "to_return_s": [end - moment for end, moment in zip(batcher.returned_at, moments, strict=True)],
    }
