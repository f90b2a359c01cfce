"""Time one decoder step, the heads and the encoder of bundles on ONNX Runtime, CPU.

    python benchmarks/step.py BUNDLE [BUNDLE ...] [--rows 1 8 32 64] [--threads 1 2] [--rounds 60]
        [--shortlist]

Bundles and thread counts are interleaved round by round, so that other load on the machine meets them alike; medians
and minima are printed, in milliseconds.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from export.bundle import Bundle
from export.runners.ort_cpu import OrtCpuRunner

PARTS = ("encode", "step", "argmax", "top_k(8)")
_LONGEST_OUTPUT = 25


def parts_of(runner: OrtCpuRunner, *, rows: int, vocab: int) -> dict[str, Callable[[], object]]:
    """What is timed, for sources of 8 to 20 tokens and outputs 5 to 24 tokens long, all of which the caches hold."""
    draw = np.random.default_rng(rows)
    sources = draw.integers(4, vocab, (rows, 20))
    lengths = draw.integers(8, 21, rows)
    tokens = draw.integers(4, vocab, rows)
    positions = draw.integers(5, _LONGEST_OUTPUT, rows)
    return {
        "encode": lambda: runner.encode(sources=sources, lengths=lengths, rows=np.arange(rows)),
        "step": lambda: runner.step(tokens=tokens, positions=positions),
        "argmax": runner.argmax,
        "top_k(8)": lambda: runner.top_k(8),
    }


def fill(runner: OrtCpuRunner, *, rows: int, vocab: int) -> None:
    """Write every place that is going to be read: pages of a cache that were never written cost nothing to read."""
    parts = parts_of(runner, rows=rows, vocab=vocab)
    parts["encode"]()
    for position in range(_LONGEST_OUTPUT):
        runner.step(tokens=np.full(rows, 4), positions=np.full(rows, position))
    for part in parts.values():
        part()


def main() -> None:
    """Measure and print one line per row count, thread count and part."""
    parser = argparse.ArgumentParser(description="time the parts of a decoder step")
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--shortlist", action="store_true", help="with the bundles' shortlists beside each without")
    arguments = parser.parse_args()
    bundles = [Bundle.open(path) for path in arguments.bundles]
    vocab = min(min(bundle.manifest.dims.source_vocab, bundle.manifest.dims.target_vocab) for bundle in bundles)
    runners = {
        (number, threads, shortlist): OrtCpuRunner.open(
            bundle, threads=threads, max_rows=max(arguments.rows), shortlist=shortlist
        )
        for threads in arguments.threads
        for number, bundle in enumerate(bundles)
        for shortlist in ((False, True) if arguments.shortlist else (False,))
    }
    print(f"milliseconds, median / minimum of {arguments.rounds} rounds")
    print(f"{'rows':>5} {'threads':>8} {'model':>36}" + "".join(f"{part:>18}" for part in PARTS))
    for rows in arguments.rows:
        seconds: dict[tuple[int, int, bool, str], list[float]] = defaultdict(list)
        for runner in runners.values():
            fill(runner, rows=rows, vocab=vocab)
        for _ in range(arguments.rounds):
            for which, runner in runners.items():
                for part, run in parts_of(runner, rows=rows, vocab=vocab).items():
                    began = time.perf_counter()
                    run()
                    seconds[*which, part].append(time.perf_counter() - began)
        for number, threads, shortlist in runners:
            taken = [seconds[number, threads, shortlist, part] for part in PARTS]
            cells = [f"{np.median(times) * 1e3:.3f} / {min(times) * 1e3:.3f}" for times in taken]
            manifest = bundles[number].manifest
            model = f"{manifest.architecture} {manifest.precision('cpu')}{' shortlist' if shortlist else ''}"
            print(f"{rows:>5} {threads:>8} {model:>36}" + "".join(f"{cell:>18}" for cell in cells))


if __name__ == "__main__":
    main()
