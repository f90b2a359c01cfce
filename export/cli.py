"""Subcommands of the export floor: ``dragoman export``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

TARGETS = ("cpu", "cuda", "tensorrt")
PRECISIONS = ("fp32", "int8", "fp16", "bf16")
CHECKPOINT_GOLDEN_FILE = "golden.tsv"


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this floor's subcommands; torch and onnx are imported only when one of them runs."""
    export = commands.add_parser("export", help="turn a checkpoint into a bundle that can be served")
    export.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="directory that `dragoman train` wrote")
    export.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="BUNDLE",
        help="directory to write; a bundle that is there is replaced",
    )
    export.add_argument("--target", choices=TARGETS, default="cpu", help="where it is to run (default: %(default)s)")
    export.add_argument(
        "--precision", choices=PRECISIONS, default="fp32", help="of the matrix products (default: %(default)s)"
    )
    export.add_argument(
        "--golden",
        type=Path,
        metavar="FILE",
        help="sentences of the bundle's exam: lines of source or source<TAB>reference, or .jsonl with source and "
        f"reference (default: CHECKPOINT/{CHECKPOINT_GOLDEN_FILE}, else a built-in multilingual set)",
    )
    for limit, what in (("source", "one source, end token counted"), ("output", "one output, end token not counted")):
        export.add_argument(
            f"--max-{limit}-tokens",
            type=int,
            metavar="N",
            help=f"most tokens of {what} (default: the model's positions, at most 512)",
        )
    export.set_defaults(run=run_export, extra="export")


def run_export(arguments: argparse.Namespace) -> int:
    """Export a checkpoint; returns the exit code."""
    if (arguments.target, arguments.precision) != ("cpu", "fp32"):
        print(
            f"dragoman export: --target {arguments.target} --precision {arguments.precision} is not built yet; "
            "this release exports --target cpu --precision fp32",
            file=sys.stderr,
        )
        return 2
    from tqdm import tqdm

    from export.bundle import BundleError, check_destination
    from export.errors import ExportError
    from export.exporter import export_bundle, plan_manifest
    from export.golden import answer, default_questions, read_questions
    from model.checkpoint import CheckpointError, load_checkpoint
    from model.tokenizer import TokenizerError

    try:
        check_destination(arguments.out)
        checkpoint = load_checkpoint(arguments.checkpoint)
        manifest = plan_manifest(
            checkpoint,
            max_source_tokens=arguments.max_source_tokens,
            max_output_tokens=arguments.max_output_tokens,
        )
        own = arguments.checkpoint / CHECKPOINT_GOLDEN_FILE
        if arguments.golden or own.is_file():
            questions = read_questions(arguments.golden or own)
        else:
            questions = default_questions(checkpoint, max_source_tokens=manifest.max_source_tokens)
        progress = tqdm(questions, desc="golden", unit="sentence", dynamic_ncols=True)
        golden = answer(checkpoint, progress, max_source_tokens=manifest.max_source_tokens, decoding=manifest.decoding)
        bundle = export_bundle(checkpoint, arguments.out, manifest=manifest, golden=golden)
    except (BundleError, CheckpointError, ExportError, TokenizerError, OSError) as error:
        print(f"dragoman export: {error}", file=sys.stderr)
        return 1
    size = sum((bundle.path / name).stat().st_size for name in bundle.manifest.files)
    print(f"{bundle.path}: {manifest.architecture}, {size / 2**20:.1f} MiB, digest {bundle.digest}")
    return 0
