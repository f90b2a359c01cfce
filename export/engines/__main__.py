"""``python -m export.engines BUNDLE --out FOLDER``: build the engines of a bundle, in a process of their own."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from export.bundle import Bundle, BundleError
from export.engines.report import report
from export.errors import ExportError
from export.runners.gpu.device import DeviceUnavailableError
from export.runners.gpu.engine_files import EngineSet
from export.runners.gpu.engine_keys import MAX_CANDIDATES, MAX_ROWS
from export.runners.protocol import RunnerError
from export.runners.tensorrt_library import LibraryName, find_library


def main(arguments: Sequence[str] | None = None) -> int:
    """Build; progress goes to stderr, the table of what was built to stdout; returns the exit code."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _stop)
    try:
        engines = _build(options)
    except ImportError as error:
        print(f"engines: {error}; `pip install 'dragoman[tensorrt]'` brings what is needed", file=sys.stderr)
        return 1
    except (BundleError, DeviceUnavailableError, ExportError, RunnerError, OSError) as error:
        print(f"engines: {error}", file=sys.stderr)
        return 1
    print(report(engines))
    print(f"\n{engines.path}: {engines.key.library} {engines.key.version}, for {engines.key.gpu} GPU")
    return 0


def _build(options: argparse.Namespace) -> EngineSet:
    library = find_library(options.library)
    from export.engines.build import build_engines  # noqa: PLC0415 - needs onnx, which is told of in a line

    return build_engines(
        Bundle.open(options.bundle),
        options.out,
        library=library,
        max_rows=options.max_rows,
        max_candidates=options.max_candidates,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )


def _stop(number: int, _: object) -> None:
    """Leave as after an error, so that nothing half done is left behind."""
    sys.exit(128 + number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export.engines", description="Build a bundle's TensorRT engines.")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="exported with --target tensorrt")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="engines that are there are replaced")
    parser.add_argument("--library", choices=get_args(LibraryName), help="(default: what is installed)")
    parser.add_argument("--max-rows", type=int, default=MAX_ROWS, metavar="N", help="of a step (default: %(default)s)")
    parser.add_argument(
        "--max-candidates",
        type=int,
        default=MAX_CANDIDATES,
        metavar="N",
        help="largest k of top_k (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
