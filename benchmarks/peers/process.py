"""A system in a process of its own: the thread pools of two never meet, and memory can be told apart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.peers.machine import ROOT, has_avx512, peak_bytes
from benchmarks.peers.works import Work

_QUIT_TIMEOUT_S = 60.0


class Process:
    """A child that has loaded a system."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        """Start ``python -m benchmarks.peers.worker`` and wait until it is ready.

        Args:
            spec: ``system``, ``path`` and the other arguments of the system's class.
        """
        self._name = spec["system"]
        self._child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peers.worker", json.dumps(spec, default=_plain)],
            cwd=ROOT,
            env=environment_of(self._name),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._receive()

    def run(self, work: Work, *, least_s: float = 0.0) -> dict[str, Any]:
        """Let it do a work; see ``worker.run_timed``."""
        return self.ask({"work": work.to_json(), "least_s": least_s})

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Send any message and wait for the reply."""
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(message) + "\n")
        self._child.stdin.flush()
        return self._receive()

    def peak_bytes(self) -> int:
        """The most memory that it ever held."""
        return peak_bytes(self._child.pid)

    def quit(self) -> None:
        """End the child."""
        self._child.communicate(timeout=_QUIT_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        if error is not None:
            self._child.kill()
        self.quit()

    def _receive(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name}: the process ended with code {self._child.wait()}; it says why above")
        reply: dict[str, Any] = json.loads(line)
        return reply


def environment_of(system: str) -> dict[str, str]:
    """Variables of a system's process: ours, and what makes CTranslate2 fastest.

    By itself it takes AVX2 kernels on an AMD that has AVX-512, and MKL, which CT2_USE_MKL would force, is slower there.
    """
    environment = dict(os.environ)
    if system == "ctranslate2":
        environment.pop("CT2_USE_MKL", None)
        if has_avx512():
            environment["CT2_FORCE_CPU_ISA"] = "AVX512"
    return environment


def _plain(value: object) -> str:
    assert isinstance(value, Path)
    return str(value.resolve())
