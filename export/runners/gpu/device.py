"""What the runner asks of a GPU: memory, streams, copies and captured work. Addresses are plain integers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray


class DeviceUnavailableError(RuntimeError):
    """There is no such device here, or a library or driver is missing; one line says what to install."""


@dataclass(frozen=True)
class Block:
    """A block of three dimensions in memory: planes of lines of bytes.

    Attributes:
        address: of the first plane.
        line_bytes: from the start of a line to the start of the next.
        lines: from the start of a plane to the start of the next, in lines.
        first: the line of each plane at which the block begins.
    """

    address: int
    line_bytes: int
    lines: int
    first: int = 0


class Event(Protocol):
    """A moment in a stream."""

    def synchronize(self) -> None:
        """Wait on the host until everything before it is done."""


class Captured(Protocol):
    """Work that was captured once and is launched again as a whole."""

    def close(self) -> None:
        """Free it."""


class Stream(Protocol):
    """Work in order. Every method but ``synchronize`` returns at once; what it was given must stay as it is until done.

    All of them raise ``RunnerError`` where the device failed.
    """

    @property
    def handle(self) -> int:
        """As runtimes take it."""

    def upload(self, address: int, values: NDArray[Any]) -> None:
        """Copy pinned host memory, contiguous, to the device."""

    def download(self, values: NDArray[Any], address: int) -> None:
        """Copy device memory to pinned host memory, contiguous."""

    def copy(self, to: int, origin: int, size: int) -> None:
        """Copy bytes within the device; the two do not overlap."""

    def copy_block(self, to: Block, origin: Block, *, line: int, lines: int, planes: int) -> None:
        """Copy ``planes`` times ``lines`` lines of ``line`` bytes within the device; the two do not overlap."""

    def record(self) -> Event:
        """Mark this moment."""

    def wait(self, event: Event) -> None:
        """Let what follows wait for an event of another stream."""

    def capture(self, enqueue: Callable[[], None]) -> Captured:
        """Capture what ``enqueue`` puts into this stream, without running it."""

    def launch(self, captured: Captured) -> None:
        """Run captured work."""

    def synchronize(self) -> None:
        """Wait on the host until all of it is done."""


class Device(Protocol):
    """One GPU."""

    @property
    def description(self) -> str:
        """In words, for certificates and logs: model, driver."""

    def free_bytes(self) -> int:
        """Memory that could be allocated now."""

    def allocate(self, size: int) -> int:
        """Address of ``size`` bytes of zeros, aligned to 256; raises RunnerError where there is no room."""

    def free(self, address: int) -> None:
        """Give memory back."""

    def pinned(self, size: int) -> NDArray[Any]:
        """Host memory that copies can use directly: uint8 [size], zeros; it lives as long as the device."""

    def stream(self) -> Stream:
        """A new stream, independent of all others."""

    def close(self) -> None:
        """Free streams, pinned memory and what is still allocated."""


class Streams(NamedTuple):
    """The streams of one runner.

    Attributes:
        steps: steps, their heads, and all that moves rows.
        encoder: the encoder, beside them.
    """

    steps: Stream
    encoder: Stream

    @classmethod
    def of(cls, device: Device) -> Streams:
        """New ones."""
        return cls(device.stream(), device.stream())
