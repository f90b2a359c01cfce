"""Exams and timings of the runners for GPUs, beside PyTorch with CUDA graphs and transformers' generate().

    python -m benchmarks.gpu [--out DIR] [--quick] [--models demo,base,big] [--runners tensorrt,torch,cuda,...]
        [--minutes 8]

One command for a machine with a GPU and no network; see README.md. The tables come last, and everything is in
DIR/gpu.json. ``--device cpu`` tries the command out where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks.gpu.budget import Budget
from benchmarks.gpu.figures import add_figures
from benchmarks.gpu.machine import command_line, describe_gpu, describe_machine, versions
from benchmarks.gpu.models.preparation import Preparations
from benchmarks.gpu.plan import plan_tasks
from benchmarks.gpu.report import report
from benchmarks.gpu.session import Session
from benchmarks.gpu.specs import MAX_ROWS, MODELS, Precision
from benchmarks.gpu.systems.protocol import SYSTEMS

_ON_GPU = ("tensorrt", "torch", "cuda", "hf", "torch-compiled", "hf-static")
_ON_CPU = ("cpu", "torch", "hf")
_RESERVE_S = 5.0  # for ending children, the last file and the tables


def main(arguments: Sequence[str] | None = None) -> int:
    """Probe, prepare, measure, write, print; exit code 1 where a runner failed its exam."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    budget = Budget(60.0 * options.minutes - _RESERVE_S)
    precision: Precision = "fp16" if options.device == "cuda" else "fp32"
    systems = options.runners or list(_ON_GPU if options.device == "cuda" else _ON_CPU)
    tasks = plan_tasks(
        models=options.models, systems=systems, max_rows=options.max_rows, quick=options.quick, precision=precision
    )
    with tempfile.TemporaryDirectory(prefix="dragoman-gpu-", ignore_cleanup_errors=True) as folder:
        target = "tensorrt" if options.device == "cuda" else "cpu"
        work = (options.work or Path(folder)).resolve()
        preparations = Preparations(work, options.logs or options.out / "logs", target, left=lambda: budget.left)
        session = Session(options.out, options.device, budget, preparations)
        session.results |= {
            "command": command_line(given, folders=(options.out, options.logs, options.work)),
            "gpu": describe_gpu(),
            "machine": describe_machine(),
            "versions": versions() | ({"commit": options.commit} if options.commit else {}),
        }
        try:
            session.prepare_bundles(tasks)
            session.probe()
            probes = session.results["probes"]
            loaded = {name: answer["version"] for name, answer in probes.items() if "version" in answer}
            session.results["versions"] |= loaded
            session.measure_bandwidth()
            session.prepare_engines(tasks)
            session.measure(tasks)
        finally:
            preparations.close()
            add_figures(session.results, session.outputs)
            session.save()
    results = json.loads((options.out / "gpu.json").read_text(encoding="utf-8"))
    text = report(results)
    (options.out / "gpu.txt").write_text(text + "\n", encoding="utf-8")
    print(text, flush=True)
    exams = [part for task in results["tasks"] for part in task.get("parts", []) if part["part"] == "exam"]
    return int(any(not exam["result"]["passed"] for exam in exams if "result" in exam))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), metavar="DIR")
    parser.add_argument("--quick", action="store_true", help="leave out what only completes the picture")
    parser.add_argument("--models", type=_names(MODELS), default=["demo", "base", "big"], metavar="NAME,...")
    parser.add_argument("--runners", type=_names(SYSTEMS), metavar="NAME,...", help=f"of {', '.join(SYSTEMS)}")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything (default: %(default)s)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--max-rows", type=int, default=MAX_ROWS, help="of a step (default: %(default)s)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="for bundles and engines (default: a temporary one)")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="of all children (default: logs below --out)")
    parser.add_argument("--commit", metavar="HASH", help="of this checkout, where there is no git to tell it")
    return parser


def _names(known: Iterable[str]) -> Callable[[str], list[str]]:
    """What reads names apart by commas; an unknown one is a fault of usage."""
    choices = list(known)

    def read(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in choices:
                raise argparse.ArgumentTypeError(f"got {name!r}, wanted some of {', '.join(choices)}")
        return names

    return read


if __name__ == "__main__":
    sys.exit(main())
