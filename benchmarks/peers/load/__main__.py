"""The running server under load, against the bare decode loop and against CTranslate2 behind a simple batcher.

    python -m benchmarks.peers.load WORKDIR [--precision int8] [--admission fair] [--texts 512] [--rounds 3]
        [--fractions 0.2 0.4 0.6 0.8 0.9] [--turns 2] [--seconds 30] [--out FILE.json] [--plot FILE.png]

Run from the root of the checkout; WORKDIR is that of ``python -m benchmarks.peers``, whose seeded base model is served.
The requests are texts of random words of 5 to 60 tokens, greedy, each with an output of that many tokens.

First all texts are sent at once, one per call, and the same sources are given to the decode loop and to CTranslate2 in
process; the three are taken in turn. Then requests arrive at random at fractions of the rate that the server reached.
The moments are drawn beforehand, nobody waits for a reply before the next request is sent, and latency is counted from
the moment a request was to be sent at. The client takes its share of the same cores.

CTranslate2 meets the same arrivals without gRPC, tokenizer or client. Two latencies of it are told: until a request's
last token, which a callback can tell, and until its batch came back, which is when ``translate_batch`` returns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.load import served
from benchmarks.peers.load.plot import SERIES, draw
from benchmarks.peers.load.requests import Request, as_work, draw_arrivals, draw_requests
from benchmarks.peers.machine import command_line, describe_machine, versions
from benchmarks.peers.measure import REST_S
from benchmarks.peers.ours import FAIR, LONGEST_FIRST
from benchmarks.peers.peer_ctranslate2 import LARGEST_BATCH
from benchmarks.peers.prepare import Prepared, prepare
from benchmarks.peers.process import Process
from export.bundle import Bundle
from model.tokenizer import Tokenizer
from server.config import ServeConfig, Target
from server.resources import cpu_count

_REST_BETWEEN_RATES_S = 2.0


def main() -> None:
    """Prepare, measure, print, write the JSON and the picture."""
    arguments = _parser().parse_args()
    model = prepare(arguments.workdir, "base", arguments.precision)
    tokenizer = Tokenizer.load(Bundle.open(model.bundle).tokenizer_path)
    requests = draw_requests(tokenizer, arguments.texts, seed=1)
    admission = arguments.admission
    with Process(_ctranslate2(model)) as peer, served.Server(model.bundle, admission=admission) as server:
        with Process(_loop(model, admission)) as loop:
            throughput = measure_throughput(server, loop, peer, requests, rounds=arguments.rounds)
        saturation = len(requests) / throughput["grpc"]["median"]
        print(f"\n{'of saturation':>13} {'requests/s':>10} {'requests':>8}" + "".join(f"{name:>26}" for name in SERIES))
        rates = []
        for fraction in arguments.fractions:
            rate = fraction * saturation
            figures = measure_rate(server, peer, requests, rate, turns=arguments.turns, seconds=arguments.seconds)
            rates.append({"fraction": fraction, "requests_per_second": rate, **figures})
            _print_rate(rates[-1])
        memory = {"server_peak_bytes": server.peak_bytes(), "ctranslate2_peak_bytes": peer.peak_bytes()}
    if arguments.out:
        result = _circumstances(arguments) | {"throughput": throughput, "rates": rates, "memory": memory}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    if arguments.plot:
        arguments.plot.parent.mkdir(parents=True, exist_ok=True)
        title = f"Seeded Transformer-base, {model.precision}, {cpu_count()} cores, outputs of 5 to 60 tokens"
        draw(rates, arguments.plot, title=title)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.load",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workdir", type=Path, metavar="WORKDIR")
    parser.add_argument("--precision", choices=("int8", "fp32"), default="int8")
    parser.add_argument("--admission", choices=(FAIR, LONGEST_FIRST), default=FAIR, help="of the server")
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fractions", type=float, nargs="*", default=[0.2, 0.4, 0.6, 0.8, 0.9])
    parser.add_argument("--turns", type=int, default=2, help="of each system at each rate")
    parser.add_argument("--seconds", type=float, default=30.0, help="for which requests arrive in a turn")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    return parser


def _loop(model: Prepared, admission: str) -> dict[str, Any]:
    """The decode loop with the settings that the server has."""
    rows = ServeConfig().rows_on(Target.CPU)
    return {"system": "ours", "path": model.bundle, "cores": cpu_count(), "max_rows": rows, "admission": admission}


def _ctranslate2(model: Prepared) -> dict[str, Any]:
    place = {"path": model.converted, "precision": model.precision}
    return {"system": "ctranslate2", **place, "workers": cpu_count(), "threads": 1}


def measure_throughput(
    server: served.Server, loop: Process, peer: Process, requests: list[Request], *, rounds: int
) -> dict[str, Any]:
    """All requests at once, over gRPC, in process and by CTranslate2, in turn; the first round warms up."""
    work = as_work(requests)
    runs: dict[str, Callable[[], float]] = {
        "grpc": partial(served.send_all, server.address, requests),
        "in_process": lambda: float(loop.run(work)["seconds"]),
        "ctranslate2": lambda: float(peer.run(work)["seconds"]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            time.sleep(REST_S)
            taken = run()
            if turn:
                seconds[name].append(taken)
    tokens = sum(work.outputs)
    print(f"{'all texts at once':<20} {'seconds':>24} {'tokens/s':>9}")
    result: dict[str, Any] = {"texts": len(requests), "output_tokens": tokens}
    for name, times in seconds.items():
        median = statistics.median(times)
        result[name] = {"seconds": times, "median": median, "tokens_per_second": tokens / median}
        cell = f"{median:.3f} ({min(times):.3f}-{max(times):.3f})"
        print(f"{name:<20} {cell:>24} {tokens / median:>9.0f}", flush=True)
    return result


def measure_rate(
    server: served.Server, peer: Process, requests: list[Request], rate: float, *, turns: int, seconds: float
) -> dict[str, Any]:
    """The same arrivals at the server and at CTranslate2, in turn; the latencies of all turns together."""
    latencies: dict[str, list[float]] = {name: [] for name in SERIES}
    for turn in range(turns):
        arrivals = draw_arrivals(requests, rate=rate, seconds=seconds, seed=turn)
        time.sleep(_REST_BETWEEN_RATES_S)
        latencies["ours"] += served.replay(server.address, arrivals)
        time.sleep(_REST_BETWEEN_RATES_S)
        reply = peer.ask({"arrivals": [arrival.to_json() for arrival in arrivals]})
        latencies["ctranslate2_last_token"] += reply["to_last_token_s"]
        latencies["ctranslate2"] += reply["to_return_s"]
    return {"requests": len(latencies["ours"])} | {name: _percentiles(values) for name, values in latencies.items()}


def _print_rate(rate: dict[str, Any]) -> None:
    cells = [f"p50 {rate[name]['p50_s']:.3f}, p99 {rate[name]['p99_s']:.3f}" for name in SERIES]
    numbers = f"{rate['fraction']:>13.2f} {rate['requests_per_second']:>10.2f} {rate['requests']:>8}"
    print(numbers + "".join(f"{cell:>26}" for cell in cells), flush=True)


def _percentiles(latencies: Sequence[float]) -> dict[str, float]:
    p50, p99 = np.percentile(latencies, (50, 99))
    return {"p50_s": float(p50), "p99_s": float(p99), "mean_s": statistics.fmean(latencies), "most_s": max(latencies)}


def _circumstances(arguments: argparse.Namespace) -> dict[str, Any]:
    names = {arguments.workdir: "WORKDIR"} | {
        path: path.name for path in (arguments.out, arguments.plot) if path is not None
    }
    return {
        "command": command_line("benchmarks.peers.load", names),
        "machine": describe_machine(),
        "versions": versions(),
        "settings": {
            "server": f"defaults, --admission {arguments.admission}",
            "ctranslate2": f"{cpu_count()} workers of 1 thread, batches of up to {LARGEST_BATCH}",
            "turns": arguments.turns,
            "seconds": arguments.seconds,
        },
    }


if __name__ == "__main__":
    main()
