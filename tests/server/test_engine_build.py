"""The process that builds engines: what it prints, how it ends, and that nothing of it is left behind."""

from __future__ import annotations

import os
import sys

import pytest

from server.engine_build import EngineBuild, EngineBuildError
from tests.server.stand_in_gpu import is_running


def build_with(program: str, lines: list[str]) -> EngineBuild:
    return EngineBuild([sys.executable, "-c", program], on_line=lines.append)


def test_every_line_is_heard() -> None:
    lines: list[str] = []
    build_with("import os, sys; print(' step'); print(); os.write(2, bytes([97, 255, 10]))", lines).wait()
    assert sorted(lines) == ["a\ufffd", "step"]


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import sys; print('a', file=sys.stderr); sys.exit('no GPU here')", "no GPU here"),
        ("import sys; sys.exit(3)", "the build ended: exit code 3"),
        ("import os, sys; print('a', file=sys.stderr, flush=True); os.abort()", "the build ended: killed by SIGABRT"),
    ],
)
def test_why_it_failed_is_one_line(program: str, reason: str) -> None:
    with pytest.raises(EngineBuildError) as raised:
        build_with(program, []).wait()
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)


def test_it_ends_with_all_that_it_started() -> None:
    started: list[str] = []
    program = (
        "import os, subprocess\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        "print(os.getpid(), child.pid, flush=True)\n"
        "child.wait()"
    )

    def end(line: str) -> None:
        started.append(line)
        build.kill()

    build = EngineBuild([sys.executable, "-c", program], on_line=end)
    with pytest.raises(EngineBuildError, match="killed by SIGKILL"):
        build.wait()  # until nobody holds its output any more
    assert not any(is_running(int(process)) for process in started[0].split())
    build.kill()  # again, when there is nothing left to end


def test_it_gives_way_to_what_serves() -> None:
    niceness: list[int] = []

    def look(line: str) -> None:
        niceness.append(os.getpriority(os.PRIO_PROCESS, int(line)))
        build.kill()

    build = EngineBuild(
        [sys.executable, "-c", "import os, signal; print(os.getpid(), flush=True); signal.pause()"], on_line=look
    )
    with pytest.raises(EngineBuildError, match="killed by SIGKILL"):
        build.wait()
    assert niceness == [min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10)]
