"""Ctrl-C at a moment of our choosing."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def held_interrupt() -> Iterator[Callable[[], bool]]:
    """Hold the first Ctrl-C back; a second one interrupts at once.

    Works on the main thread alone, as signal handlers do.

    Yields:
        Whether it came.
    """
    came = False

    def hold(*_: object) -> None:
        nonlocal came
        came = True
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, hold)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGINT, previous)
