"""The child that measures one system on one model.

    python -m benchmarks.gpu.worker JSON

JSON holds the fields of ``systems.Setting``, ``seconds`` in all, and ``parts`` in order of importance; a part is one of

- ``{"part": "exam", "trained": true}``
- ``{"part": "step", "rows": 8, "beam_size": 1, "seconds": 0.5}``
- ``{"part": "decode", "beam_size": 1, "sources": 512, "rounds": 3, "seconds": 6}``
- ``{"part": "kernels", "rows": 64}``

Every answer is a line of JSON as soon as it is known: first the ``opened`` system's facts, then each part with its
``result``, or why it ``failed`` or was ``left_out``.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu.models.bundles import bundle_at
from benchmarks.gpu.stepping import until
from benchmarks.gpu.systems.opening import open_system
from benchmarks.gpu.systems.protocol import Setting, System
from benchmarks.gpu.works import mixed_work

_FAILED = 3
Part = dict[str, Any]


class Measurer:
    """Does the parts of one system."""

    def __init__(self, setting: Setting, *, deadline: float) -> None:
        """Open the system; whatever it raises is its failure."""
        self._setting = setting
        self._deadline = deadline
        self._bundle = bundle_at(setting.bundle)
        self.system: System = open_system(setting)

    def answer(self, part: Part) -> dict[str, Any]:
        """Do one part, if there is time."""
        if time.monotonic() >= self._deadline:
            return {"left_out": "its time was over"}
        if part.get("rows", 0) > self._most_rows:
            return {"left_out": f"the runner takes {self._most_rows} rows"}
        parts: dict[str, Callable[[Part], Any]] = {
            "exam": self._exam,
            "step": self._step,
            "decode": self._decode,
            "kernels": self._kernels,
        }
        began = time.monotonic()
        try:
            result = parts[part["part"]](part)
        except Exception as error:
            traceback.print_exc()
            return {"failed": one_line(error)}
        return {"result": result, "seconds": time.monotonic() - began}

    @property
    def _most_rows(self) -> int:
        most: int = self.system.facts.get("max_rows", self._setting.max_rows)
        return most

    def _exam(self, part: Part) -> dict[str, Any]:
        from benchmarks.gpu.exam import sit  # noqa: PLC0415 - only of our runners
        from benchmarks.gpu.systems.ours import Ours  # noqa: PLC0415

        assert isinstance(self.system, Ours), f"{self._setting.system}: only our runners sit the exam"
        return sit(self._bundle, self.system.runner, trained=part["trained"])

    def _step(self, part: Part) -> dict[str, Any]:
        enough = until(min(time.monotonic() + part["seconds"], self._deadline))
        seconds = self.system.step_seconds(rows=part["rows"], beam_size=part["beam_size"], enough=enough)
        return spread(seconds)

    def _decode(self, part: Part) -> dict[str, Any]:
        work = mixed_work(part["sources"], beam_size=part["beam_size"], vocab=self._bundle.manifest.dims.source_vocab)
        outputs = self.system.decode(work)  # captures, compiles, warms up
        seconds: list[float] = []
        deadline = min(time.monotonic() + part["seconds"], self._deadline)
        while not seconds or (len(seconds) < part["rounds"] and time.monotonic() < deadline):
            began = time.perf_counter()
            outputs = self.system.decode(work)
            seconds.append(time.perf_counter() - began)
        return work.record() | spread(seconds) | {"outputs": outputs}

    def _kernels(self, part: Part) -> dict[str, Any]:
        from benchmarks.gpu.kernels import kernels_of_steps  # noqa: PLC0415 - it imports torch, for its profiler

        return kernels_of_steps(self.system, self._setting, rows=part["rows"])


def spread(seconds: list[float]) -> dict[str, Any]:
    """Median and spread of what was timed."""
    ordered = sorted(seconds)
    return {
        "median_s": statistics.median(ordered),
        "least_s": ordered[0],
        "p90_s": ordered[int(0.9 * (len(ordered) - 1))],
        "count": len(ordered),
    }


def one_line(error: BaseException) -> str:
    """An error's first line with its type."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def main() -> int:
    """Answer every part of the command line's JSON."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints goes into the log

    def say(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    asked = json.loads(sys.argv[1])
    parts, began = asked.pop("parts"), time.monotonic()
    deadline = began + asked.pop("seconds")
    setting = Setting(**asked | {"bundle": Path(asked["bundle"]), "engines": Path(asked["engines"])})
    if setting.device == "cpu":
        os.environ["OMP_NUM_THREADS"] = "1"  # before any library is loaded: models to try out are tiny
    try:
        measurer = Measurer(setting, deadline=deadline)
    except Exception as error:
        traceback.print_exc()
        say({"failed": one_line(error)})
        return _FAILED
    say({"opened": measurer.system.facts, "seconds": time.monotonic() - began})
    for number, part in enumerate(parts):
        say({"number": number} | measurer.answer(part))
    say({"facts": measurer.system.facts})
    measurer.system.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
