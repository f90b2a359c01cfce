"""One call's sequences: submitted together, heard of on the event loop, given up together when the call ends."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence as Items
from types import TracebackType
from typing import NamedTuple, Self

from server.decoding.loop import DeadlineUnmeetable, LoopClosed, QueueFull
from server.decoding.sequence import Outcome, Result, Sequence
from server.service.errors import (
    DeadlineExceeded,
    DeadlineUnmeetableError,
    Draining,
    QueueFullError,
)
from server.service.requests import Job


class Tokens(NamedTuple):
    """Output tokens of text ``content_index`` that have become final."""

    content_index: int
    tokens: Items[int]


class Ended(NamedTuple):
    """The end of text ``content_index``."""

    content_index: int
    result: Result


Event = Tokens | Ended


class Submission:
    """A context manager: submits all texts that are not blank, or none, and on leaving cancels what is left.

    Events come from the decode loop's thread; many that come at once wake the event loop once.
    """

    def __init__(self, job: Job, *, deadline: float | None, streaming: bool) -> None:
        """Prepare the sequences of ``job``.

        Args:
            job: the checked request.
            deadline: moment on the decode loop's clock; None: never.
            streaming: whether tokens are heard of before a text's end.
        """
        self._job = job
        self._event_loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._events: deque[Event] = deque()
        self._sequences = [
            self._sequence(index, source.tokens, deadline=deadline, streaming=streaming)
            for index, source in enumerate(job.sources)
            if source.tokens
        ]
        self._left = len(self._sequences)
        self._translated = False

    def _sequence(self, index: int, tokens: Items[int], *, deadline: float | None, streaming: bool) -> Sequence:
        return Sequence(
            source=tokens,
            options=self._job.options,
            on_finished=lambda result: self._put(Ended(index, result)),
            on_tokens=(lambda final: self._put(Tokens(index, final))) if streaming else None,
            deadline=deadline,
        )

    def _put(self, event: Event) -> None:
        """Called on the decode loop's thread."""
        self._events.append(event)
        # Appended first: whoever is woken for the events before this one may take it along, and none is left behind.
        if len(self._events) == 1:
            self._event_loop.call_soon_threadsafe(self._wake.set)

    def __enter__(self) -> Self:
        """Submit.

        Raises:
            ServiceError: the decode loop does not take the sequences.
        """
        model = self._job.model.name
        try:
            if self._sequences:
                self._job.model.submit(self._sequences)
        except QueueFull as refusal:
            message = f"too many texts wait for model {model}"
            raise QueueFullError(message, model=model, retry_after_s=refusal.retry_after_s) from refusal
        except DeadlineUnmeetable as refusal:
            message = f"model {model} is too busy to begin before the deadline"
            raise DeadlineUnmeetableError(message, model=model, retry_after_s=refusal.retry_after_s) from refusal
        except LoopClosed as refusal:
            message = "the server is shutting down"
            raise Draining(message, model=model, retry_after_s=refusal.retry_after_s) from refusal
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        """Give up what has not ended; does nothing to the rest."""
        for sequence in self._sequences:
            sequence.cancel()

    @property
    def ended(self) -> bool:
        """Whether every text has ended."""
        return self._left == 0

    @property
    def failed(self) -> bool:
        """Whether texts were decoded and none of them was translated."""
        return bool(self._sequences) and not self._translated

    async def events(self) -> list[Event]:
        """Wait for the next events and take all that are there.

        Raises:
            DeadlineExceeded: a text's deadline passed.
            Draining: the server gave a text up to shut down.
        """
        await self._wake.wait()
        self._wake.clear()
        taken = []
        while self._events:
            taken.append(self._events.popleft())
        for event in taken:
            if isinstance(event, Ended):
                self._count(event.result)
        return taken

    def _count(self, result: Result) -> None:
        self._left -= 1
        model = self._job.model.name
        match result.outcome:
            case Outcome.FINISHED:
                self._translated = True
            case Outcome.DEADLINE_EXCEEDED:
                raise DeadlineExceeded("the deadline passed before the translation was finished", model=model)
            case Outcome.CANCELLED:
                # Not by this call, which would no longer listen.
                raise Draining("the server is shutting down", model=model, retry_after_s=1.0)
            case Outcome.FAILED:
                pass
