"""A part of the measurement in a process of its own: a crash harms nothing else, and its log is kept."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from benchmarks.gpu.machine import ROOT

_LINE_WIDTH = 300
_POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a child ended.

    Attributes:
        code: its exit code; negative: the signal that ended it.
        seconds: that it lived.
        timed_out: whether it was ended because its time was over.
        last_line: the last line of its log that is not blank.
    """

    code: int
    seconds: float
    timed_out: bool
    last_line: str

    @property
    def fault(self) -> str:
        """In one line what went wrong; empty: nothing did."""
        if self.timed_out:
            return f"ended after {self.seconds:.0f} s; last line of its log: {self.last_line or 'none'}"
        if self.code < 0:
            return f"{_signal_name(-self.code)}; last line of its log: {self.last_line or 'none'}"
        return f"exit {self.code}: {self.last_line or 'no output'}" if self.code else ""


def run_child(
    module: str,
    arguments: Sequence[str],
    *,
    log: Path,
    timeout_s: float,
    on_message: Callable[[dict[str, Any]], None] = lambda _: None,
    variables: Mapping[str, str] | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Ended:
    """Run ``python -m module`` from the root of the checkout until it ends or its time is over.

    Args:
        module: to run.
        arguments: of its command line.
        log: where its standard error goes, and every line of its standard output that is no JSON object.
        timeout_s: after which it and its own children are ended.
        on_message: told every JSON object that it prints on a line, on another thread, in order.
        variables: of its environment, beside those of this process.
        cancelled: asked now and then; where it says so, the child is ended as if its time were over.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
    began = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env=environment | dict(variables or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        assert process.stdout is not None
        reader = threading.Thread(target=_read, args=(process.stdout, file, on_message), daemon=True)
        reader.start()
        timed_out = False
        try:
            while not timed_out and not _ends(process):
                timed_out = time.monotonic() - began >= timeout_s or cancelled()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
            reader.join()
            process.stdout.close()
    return Ended(code=code, seconds=time.monotonic() - began, timed_out=timed_out, last_line=last_line(log))


def _ends(process: subprocess.Popen[str]) -> bool:
    """Whether a process ends within a moment."""
    try:
        process.wait(_POLL_S)
    except subprocess.TimeoutExpired:
        return False
    return True


def last_line(log: Path) -> str:
    """The last line of a log that is not blank, cut to a readable width."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return next((line[:_LINE_WIDTH] for line in reversed(lines) if line), "")


def _read(output: TextIO, log: TextIO, on_message: Callable[[dict[str, Any]], None]) -> None:
    for line in output:
        try:
            message = json.loads(line)
        except json.JSONDecodeError:
            message = None
        if isinstance(message, dict):
            on_message(message)
        else:
            log.write(line)
            log.flush()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
