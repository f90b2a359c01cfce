"""The process that builds engines: what it prints, how it ends, and that nothing of it is left behind."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from server.engine_build import EngineBuild, EngineBuildError
from tests.server.stand_in_gpu import is_running


def build_with(program: str, lines: list[str]) -> EngineBuild:
    return EngineBuild([sys.executable, "-c", program], on_line=lines.append)


def test_every_line_is_heard_and_the_last_one_is_the_folder(tmp_path: Path) -> None:
    lines: list[str] = []
    program = f"import sys; print('step'); print('a warning', file=sys.stderr); print(); print({str(tmp_path)!r})"
    assert build_with(program, lines).wait() == tmp_path
    assert sorted(lines) == sorted(["step", "a warning", str(tmp_path)])


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import sys; print('a', file=sys.stderr); sys.exit('no GPU here')", "no GPU here"),
        ("import sys; sys.exit(3)", "the build ended with exit code 3"),
        ("import os, sys; print('a', file=sys.stderr, flush=True); os.abort()", "ended with killed by SIGABRT"),
        ("pass", "the build's last line: got '', wanted a folder"),
        ("print('/no/such/folder')", "the build's last line: got '/no/such/folder', wanted a folder"),
        ("import os; os.write(1, bytes([255, 10]))", "wanted a folder"),
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
