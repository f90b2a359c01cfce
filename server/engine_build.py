"""Builds TensorRT engines in a process of its own, which nothing that serves has to wait for or survive."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress

_NICER = 10
_LEAST_PRIORITY = 19


class EngineBuildError(RuntimeError):
    """The engines could not be built; one line says why."""


class EngineBuild:
    """A process that builds engines, from its start on."""

    def __init__(self, command: list[str], *, on_line: Callable[[str], None]) -> None:
        """Start it.

        Args:
            command: exits 0, or not, with a last line of error that says why.
            on_line: called with each line it prints, on some thread, while somebody waits.

        Raises:
            EngineBuildError: it cannot be started.
        """
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                # Ctrl-C is for the server, which ends this one with all its children.
                start_new_session=True,
            )
        except OSError as error:
            raise EngineBuildError(f"{command[0]}: {error.strerror}") from error
        self._on_line = on_line
        # Whoever serves goes first.
        niceness = min(_LEAST_PRIORITY, os.getpriority(os.PRIO_PROCESS, 0) + _NICER)
        with suppress(OSError):
            os.setpriority(os.PRIO_PGRP, self._process.pid, niceness)

    def wait(self) -> None:
        """Wait for its end.

        Raises:
            EngineBuildError: it failed, or was killed.
        """
        process = self._process
        assert process.stdout is not None
        assert process.stderr is not None
        errors: deque[str] = deque(maxlen=1)
        listener = threading.Thread(target=self._listen, args=(process.stderr, errors), daemon=True)
        listener.start()
        self._listen(process.stdout, deque(maxlen=1))
        listener.join()
        code = process.wait()
        process.stdout.close()
        process.stderr.close()
        if code != 0:
            end = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            raise EngineBuildError(errors[0] if code > 0 and errors else f"the build ended: {end}")

    def _listen(self, lines: Iterable[str], last: deque[str]) -> None:
        for line in lines:
            if text := line.strip():
                last.append(text)
                self._on_line(text)

    def kill(self) -> None:
        """End it and all it started; safe from any thread, and after its end."""
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
