"""``dragoman serve`` in a process of its own, and clients of it that send one text per call."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import grpc.aio

from benchmarks.peers.load.requests import Arrival, Request
from benchmarks.peers.machine import ROOT, peak_bytes
from dragoman.v1 import translation_pb2 as pb
from dragoman.v1.translation_pb2_grpc import TranslationServiceStub

if TYPE_CHECKING:
    from dragoman.v1.translation_pb2_grpc import TranslationServiceAsyncStub

_ANY_PORT = "127.0.0.1:0"
_CALL_TIMEOUT_S = 600.0
_STOP_TIMEOUT_S = 60.0


class Server:
    """A server that serves one bundle.

    Attributes:
        address: where gRPC is served.
    """

    def __init__(self, bundle: Path, *, admission: str) -> None:
        """Start it and wait until it serves; ``bundle`` needs no certificate, ``admission`` is a flag of the server."""
        flags = ("--models", str(bundle), "--listen", _ANY_PORT, "--metrics", _ANY_PORT, "--admission", admission)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "server.cli", "serve", *flags, "--allow-uncertified", "--lame-duck", "0"],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._log: deque[str] = deque(maxlen=20)
        self.address = self._wait_for_start()
        # Its log is read to the end: a full pipe would stop the server.
        threading.Thread(target=self._keep_log, daemon=True).start()

    def peak_bytes(self) -> int:
        """The most memory it ever held."""
        return peak_bytes(self._process.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(timeout=_STOP_TIMEOUT_S)

    def _wait_for_start(self) -> str:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._log.append(line)
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("event") == "started":
                address: str = event["listen"]
                return address
        raise RuntimeError("dragoman serve ended before it served:\n" + "".join(self._log))

    def _keep_log(self) -> None:
        assert self._process.stderr is not None
        self._log.extend(self._process.stderr)


def send_all(address: str, requests: Sequence[Request]) -> float:
    """Send all requests at once and wait for the last reply; returns the seconds that took."""

    async def send() -> float:
        async with grpc.aio.insecure_channel(address) as channel:
            stub = TranslationServiceStub(channel)
            await _translate(stub, requests[0])  # connects
            began = time.perf_counter()
            await asyncio.gather(*(_translate(stub, request) for request in requests))
            return time.perf_counter() - began

    return asyncio.run(send())


def replay(address: str, arrivals: Sequence[Arrival]) -> list[float]:
    """Send every request at its moment, whatever has become of those before it.

    Returns:
        For each the seconds from the moment it was to be sent at, not from when it was, to its reply.
    """

    async def send() -> list[float]:
        async with grpc.aio.insecure_channel(address) as channel:
            stub = TranslationServiceStub(channel)
            await _translate(stub, arrivals[0].request)  # connects
            began = time.perf_counter()

            async def call(arrival: Arrival) -> float:
                await _translate(stub, arrival.request)
                return time.perf_counter() - began - arrival.at

            calls = []
            for arrival in arrivals:
                await asyncio.sleep(began + arrival.at - time.perf_counter())
                calls.append(asyncio.create_task(call(arrival)))
            return await asyncio.gather(*calls)

    return asyncio.run(send())


async def _translate(stub: TranslationServiceAsyncStub, request: Request) -> None:
    message = pb.TranslateTextRequest(
        contents=[request.text],
        decoding_config=pb.DecodingConfig(beam_size=1, max_output_tokens=request.output),
    )
    reply = await stub.TranslateText(message, timeout=_CALL_TIMEOUT_S)
    translation = reply.translations[0]
    got = (translation.source_token_count, translation.output_token_count)
    wanted = (len(request.source), request.output)
    assert got == wanted, f"source and output tokens: got {got}, wanted {wanted}"
