"""How fast a large copy within the device's memory is.

    python -m benchmarks.gpu.bandwidth cuda|cpu

prints one line of JSON: bytes read and written in a second, the best of many copies.
"""

from __future__ import annotations

import json
import sys
import time

import torch

_BYTES = {"cuda": 2**31, "cpu": 2**26}
_COPIES, _ROUNDS = 5, 10


def copy_bandwidth(device: str) -> float:
    """Bytes per second, read plus written; random data, as zeros may be copied faster."""
    origin = torch.randint(0, 256, (_BYTES[device],), dtype=torch.uint8, device=device)
    copy = torch.empty_like(origin)
    best = 0.0
    for _ in range(_ROUNDS):
        _wait(device)
        began = time.perf_counter()
        for _ in range(_COPIES):
            copy.copy_(origin)
        _wait(device)
        best = max(best, 2 * _COPIES * _BYTES[device] / (time.perf_counter() - began))
    assert torch.equal(copy[:4096], origin[:4096])
    return best


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    print(json.dumps({"bytes_per_second": copy_bandwidth(sys.argv[1]), "bytes": _BYTES[sys.argv[1]]}))
