"""Lines from a file descriptor, in batches, without waiting longer than there is something to do."""

from __future__ import annotations

import os
import select
import stat
from collections import deque

_READ_BYTES = 1 << 16


class UndecodableLineError(ValueError):
    """A line is not UTF-8; the message names its number, from 1."""


class LineReader:
    r"""Splits what comes from a file descriptor at ``\n`` alone; a last line needs none.

    It reads by system calls, for two reasons: it can ask whether a read would wait, and Ctrl-C never meets a lock that
    a buffered reader holds.
    """

    def __init__(self, descriptor: int) -> None:
        """Read from ``descriptor``, which stays open."""
        self._descriptor = descriptor
        self._partial = b""
        self._lines: deque[bytes] = deque()
        self._at_end = False
        self._taken = 0

    def count_ahead(self) -> int | None:
        """Lines that are left, where that can be known: in a regular file."""
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            return None
        offset, count, last = os.lseek(self._descriptor, 0, os.SEEK_CUR), 0, b"\n"
        while chunk := os.pread(self._descriptor, _READ_BYTES, offset):
            offset, count, last = offset + len(chunk), count + chunk.count(b"\n"), chunk
        return count + (not last.endswith(b"\n"))

    def take(self, most: int, *, wait: bool) -> list[str] | None:
        """The next lines, at most ``most``; None at the end.

        Args:
            most: size of a full batch.
            wait: whether to wait for a first line. More lines than that are never waited for.

        Raises:
            UndecodableLineError: the next line is not UTF-8. Lines before it have been handed out.
        """
        while len(self._lines) < most and not self._at_end and (self._readable() or (wait and not self._lines)):
            self._read()
        if not self._lines and self._at_end:
            return None
        batch: list[str] = []
        while self._lines and len(batch) < most:
            try:
                batch.append(self._lines[0].decode())
            except UnicodeDecodeError as error:
                if batch:
                    break  # these first
                raise UndecodableLineError(f"line {self._taken + 1}: got bytes that are not UTF-8") from error
            self._lines.popleft()
            self._taken += 1
        return batch

    def _readable(self) -> bool:
        ready, _, _ = select.select([self._descriptor], [], [], 0)
        return bool(ready)

    def _read(self) -> None:
        chunk = os.read(self._descriptor, _READ_BYTES)
        self._at_end = not chunk
        *complete, self._partial = (self._partial + chunk).split(b"\n")
        self._lines.extend(complete)
        if self._at_end and self._partial:
            self._lines.append(self._partial)
            self._partial = b""
