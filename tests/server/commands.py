"""Runs ``dragoman`` as a process, as its users do."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import IO, Any

from tests.served import ENVIRONMENT
from tests.server.running import PATIENCE_S

DRAGOMAN = (sys.executable, "-m", "server.cli")
ANYWHERE = ("--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0")


def run(*arguments: str, stdin: str | bytes = b"") -> subprocess.CompletedProcess[str]:
    """Run ``dragoman``; what it prints is read as UTF-8."""
    data = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run(
        [*DRAGOMAN, *arguments], input=data, capture_output=True, env=ENVIRONMENT, timeout=PATIENCE_S, check=False
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


def wait_for(process: subprocess.Popen[bytes], event: str) -> dict[str, Any]:
    """Read the log up to ``event``; every line must be JSON."""
    for line in pipe(process.stderr):
        entry: dict[str, Any] = json.loads(line)
        if entry["event"] == event:
            return entry
    raise AssertionError(f"the server ended before {event}")
