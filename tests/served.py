"""A server in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc

from dragoman.v1 import translation_pb2 as pb
from dragoman.v1.translation_pb2_grpc import TranslationServiceStub

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "server" / "assets" / "multi30k-en-de"
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"}
"""Variables of a process that takes our packages from the checkout."""


class Served:
    """A ``dragoman serve`` process that has told where it listens."""

    def __init__(self, *flags: str, cwd: Path = ROOT, environment: Mapping[str, str] = ENVIRONMENT) -> None:
        addresses = ("--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "server.cli", "serve", *addresses, *flags],
            cwd=cwd,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        self.events: list[dict[str, Any]] = []
        for line in self.process.stderr:
            self.events.append(json.loads(line))
            if self.events[-1]["event"] == "started":
                break
        assert self.events, "the server ended before it started"
        self.address = self.events[-1]["listen"]
        self.metrics_address = self.events[-1]["metrics"]
        self.channel = grpc.insecure_channel(self.address)
        self.stub = TranslationServiceStub(self.channel)

    def translate(self, *texts: str, **options: Any) -> list[pb.Translation]:
        request = pb.TranslateTextRequest(contents=texts, decoding_config=pb.DecodingConfig(**options))
        return list(self.stub.TranslateText(request, timeout=120).translations)

    def metric(self, name: str) -> float:
        """Sum of the samples of ``name`` over all label sets."""
        with urllib.request.urlopen(f"http://{self.metrics_address}/metrics") as reply:
            text = reply.read().decode()
        values = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, flags=re.MULTILINE)
        assert values, f"no sample of {name}"
        return sum(map(float, values))

    def stop(self) -> int:
        """End the process with SIGTERM; returns its exit code."""
        self.channel.close()
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=60)
        return self.process.returncode
