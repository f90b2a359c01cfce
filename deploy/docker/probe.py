"""Looks at a running container from inside: becomes ready, is confined, translates, counts. Read by try-image.sh."""

import importlib.util
import os
import subprocess
import urllib.request
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVER = "127.0.0.1:50051"
METRICS = "http://127.0.0.1:9464/metrics"
SENTENCE = "A man is riding a bicycle."


def await_readiness(*, timeout_s: float) -> None:
    """Return once the server says that it is ready."""
    request = health_pb2.HealthCheckRequest(service="readiness")
    with grpc.insecure_channel(SERVER) as channel:
        replies = health_pb2_grpc.HealthStub(channel).Watch(request, wait_for_ready=True, timeout=timeout_s)
        next(reply for reply in replies if reply.status == health_pb2.HealthCheckResponse.SERVING)


def check_confinement() -> None:
    """Nobody's user, no capability, nothing to write to, no torch."""
    assert (os.getuid(), os.getgid()) == (10001, 10001), (os.getuid(), os.getgid())
    status = dict(line.split(":\t") for line in Path("/proc/1/status").read_text().splitlines() if ":\t" in line)
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0, status
    assert status["NoNewPrivs"] == "1", status
    for folder in ("/", "/home", "/opt/dragoman", "/tmp", "/var/tmp"):
        assert not os.access(folder, os.W_OK), f"{folder} can be written"
    assert importlib.util.find_spec("torch") is None, "torch is in the image"


def translate() -> str:
    """One sentence, by the image's own client."""
    command = ["dragoman", "translate", "--server", SERVER, SENTENCE]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=60)
    assert result.stdout.strip(), "got an empty translation"
    return result.stdout.strip()


def count_tokens() -> float:
    """Tokens that /metrics has counted so far."""
    with urllib.request.urlopen(METRICS, timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("dragoman_tokens_total{"))


await_readiness(timeout_s=60)
print("ready", flush=True)
check_confinement()
print("user 10001, no capability, nothing can be written, no torch")
before = count_tokens()
print(f"{SENTENCE} -> {translate()}")
after = count_tokens()
print(f"tokens on /metrics: {before:.0f} -> {after:.0f}")
assert after > before
