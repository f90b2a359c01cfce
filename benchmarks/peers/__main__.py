"""The same weights, the same work: this project against CTranslate2 and transformers' generate(), interleaved.

    python -m benchmarks.peers WORKDIR [--model base demo] [--precision int8 fp32] [--systems ours ctranslate2]
        [--only "one request" "beam 4"] [--rounds 5] [--rows 64] [--out FILE.json]

Run from the root of the checkout. ``base`` is a Marian of Transformer-base size with seeded random weights and 32,000
tokens, whose end token is barred so that every output has the length that is asked for; ``demo`` is the bundled model
on its golden sentences, where every output ends by itself. Both are made in every system's form below WORKDIR once;
that of the demo is accepted only where all systems give the same tokens in fp32.

Every system runs in a process of its own, a fresh one for every work. Work is taken in turn, round by round.

This project runs with the defaults of ``dragoman serve``; works of unlike lengths also with ``--admission
longest-first``, and the faster is quoted.

CTranslate2 runs as it is fastest here: AVX-512 kernels where the CPU has them; for a single request one thread and all
cores are both timed, and the faster quoted; else one worker per core, its sources sorted by length, in batches of up to
32. Where lengths differ a callback ends each output at its own.

transformers computes in fp32, whatever the others do, and is asked for works of up to 64 sources.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from benchmarks.peers import report
from benchmarks.peers.machine import command_line, describe_machine, versions
from benchmarks.peers.measure import LEAST_S, REST_S, SYSTEMS, Setting, measure, settings_of
from benchmarks.peers.prepare import Prepared, demo_sources, prepare
from benchmarks.peers.process import environment_of
from benchmarks.peers.works import Work, base_works, demo_works
from server.config import ServeConfig, Target
from server.resources import cpu_count


def main() -> None:
    """Prepare, measure, print, write the JSON."""
    arguments = _parser().parse_args()
    before = os.getloadavg()
    results = []
    models = [prepare(arguments.workdir, name, each) for name in arguments.model for each in arguments.precision]
    print(report.LEGEND)
    print(report.header())
    for model in models:
        for work in _works(model, only=arguments.only):
            measured = measure(
                _settings(model, work, arguments.systems, rows=arguments.rows), work, rounds=arguments.rounds
            )
            print("\n".join(report.lines(model, work, measured)), flush=True)
            results.append(report.record(model, work, measured))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        written = _circumstances(arguments, load_before=before) | {"results": results}
        arguments.out.write_text(json.dumps(written, indent=2) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdir", type=Path, metavar="WORKDIR")
    parser.add_argument("--model", nargs="+", choices=("base", "demo"), default=["base", "demo"])
    parser.add_argument("--precision", nargs="+", choices=("int8", "fp32"), default=["int8", "fp32"])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--only", nargs="+", default=[""], metavar="PART", help="parts of the names of works")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--rows", type=int, default=ServeConfig().rows_on(Target.CPU), help="of each worker of ours, as --max-rows"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    return parser


def _works(model: Prepared, *, only: list[str]) -> list[Work]:
    works = base_works() if model.name == "base" else demo_works(demo_sources())
    return [work for work in works if any(part in work.name for part in only)]


def _settings(model: Prepared, work: Work, systems: list[Any], *, rows: int) -> list[Setting]:
    cores = cpu_count()
    return [setting for system in systems for setting in settings_of(system, model, work, cores=cores, rows=rows)]


def _circumstances(arguments: argparse.Namespace, *, load_before: tuple[float, float, float]) -> dict[str, Any]:
    forced = {name: value for name, value in environment_of("ctranslate2").items() if name.startswith("CT2_")}
    return {
        "command": command_line("benchmarks.peers", {arguments.workdir: "WORKDIR", arguments.out: arguments.out.name}),
        "machine": describe_machine(),
        "versions": versions(),
        "settings": {
            "rounds": arguments.rounds,
            "rest_s": REST_S,
            "least_s": LEAST_S,
            "our_rows": arguments.rows,
            "ctranslate2_environment": forced,
            "load_average_before": load_before,
        },
    }


if __name__ == "__main__":
    main()
