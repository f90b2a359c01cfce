"""The child's side of ``process.py``: one system, which loads, runs what it is told to and says what that took.

    python -m benchmarks.peers.worker SPEC

SPEC is a JSON object: ``system`` and the arguments of its class. Messages are lines of JSON, on standard input and
output; the first one out says that the system is ready. Whatever a library prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

from benchmarks.peers.works import Outputs, Work


class System(Protocol):
    """What is compared."""

    def run(self, work: Work) -> Outputs:
        """Do the work."""

    def close(self) -> None:
        """End threads."""


def open_system(spec: Mapping[str, Any]) -> System:
    """Load the system of a spec. Each one's library is imported only here: the process holds no other's memory."""
    arguments = {name: value for name, value in spec.items() if name not in ("system", "path")}
    path = Path(spec["path"])
    match spec["system"]:
        case "ours":
            from benchmarks.peers.ours import Ours  # noqa: PLC0415

            return Ours(path, **arguments)
        case "ctranslate2":
            from benchmarks.peers.peer_ctranslate2 import CTranslate2  # noqa: PLC0415

            return CTranslate2(path, **arguments)
        case "transformers":
            from benchmarks.peers.peer_transformers import Transformers  # noqa: PLC0415

            return Transformers(path, **arguments)
        case other:
            raise ValueError(f"system: got {other!r}, wanted ours, ctranslate2 or transformers")


def run_timed(system: System, work: Work, *, least_s: float) -> dict[str, Any]:
    """Do a work again and again for ``least_s``, at least once.

    Returns:
        The mean seconds of a run, and every output's tokens.
    """
    runs = 0
    began = time.perf_counter()
    while not runs or time.perf_counter() - began < least_s:
        outputs = system.run(work)
        runs += 1
    seconds = (time.perf_counter() - began) / runs
    return {"seconds": seconds, "outputs": outputs.tokens}


def serve(system: System, *, messages: TextIO, replies: TextIO) -> None:
    """Answer every message until there are no more."""
    _send(replies, {"ready": True})
    for line in messages:
        message = json.loads(line)
        if "work" in message:
            reply = run_timed(system, Work.from_json(message["work"]), least_s=message["least_s"])
        else:
            from benchmarks.peers.load.batcher import replay  # noqa: PLC0415 - of CTranslate2 alone

            reply = replay(system, message["arrivals"])
        _send(replies, reply)


def _send(replies: TextIO, message: Mapping[str, Any]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


def main() -> None:
    """Load, answer, end."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    system = open_system(json.loads(sys.argv[1]))
    serve(system, messages=sys.stdin, replies=replies)
    system.close()


if __name__ == "__main__":
    main()
