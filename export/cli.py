"""Subcommands of the export floor: ``dragoman export``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from export.targets import PRECISIONS, Precision

if TYPE_CHECKING:
    from collections.abc import Sequence

    from export.bundle import Bundle, GoldenSentence, Manifest, Shortlist
    from export.golden import Question
    from export.quantisation.ranges import Calibration
    from model.checkpoint import Checkpoint

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
    export.add_argument(
        "--target",
        choices=PRECISIONS,
        default="cpu",
        help="where it is to run; what is exported for a GPU runs on the CPU too (default: %(default)s)",
    )
    export.add_argument(
        "--precision", choices=get_args(Precision), default="fp32", help="of the matrix products (default: %(default)s)"
    )
    export.add_argument(
        "--golden",
        type=Path,
        metavar="FILE",
        help="sentences of the bundle's exam: lines of source or source<TAB>reference, or .jsonl with source and "
        f"reference (default: CHECKPOINT/{CHECKPOINT_GOLDEN_FILE}, else a built-in multilingual set)",
    )
    export.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="sentences, as of --golden, from which the ranges of int8 are measured: a few hundred of the text to be "
        "translated (default: the exam's own)",
    )
    export.add_argument(
        "--shortlist",
        type=Path,
        metavar="PARALLEL",
        help="parallel text, from which to learn the few target tokens that each source token may become, for "
        "`dragoman serve --shortlist`: lines of source<TAB>translation, or .jsonl with source and reference, and with "
        "source_language and target_language for a model of several",
    )
    export.add_argument(
        "--engines",
        action="store_true",
        help="with --target tensorrt: build its engines too, for the library and GPU at hand, into BUNDLE/engines",
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
    if complaint := _usage_complaint(arguments):
        print(f"dragoman export: {complaint}", file=sys.stderr)
        return 2
    from export.bundle import BundleError
    from export.errors import ExportError
    from export.runners.gpu.device import DeviceUnavailableError
    from model.checkpoint import CheckpointError
    from model.tokenizer import TokenizerError

    try:
        if arguments.engines:
            _check_engines_can_be_built()
        bundle = _export(arguments)
        if arguments.engines:
            _build_engines(bundle)
    except (BundleError, CheckpointError, DeviceUnavailableError, ExportError, TokenizerError, OSError) as error:
        print(f"dragoman export: {error}", file=sys.stderr)
        return 1
    size = sum((bundle.path / name).stat().st_size for name in bundle.manifest.files)
    architecture = f"{bundle.manifest.architecture}, {arguments.precision}"
    print(f"{bundle.path}: {architecture}, {size / 2**20:.1f} MiB, digest {bundle.digest}")
    return 0


def _usage_complaint(arguments: argparse.Namespace) -> str:
    if arguments.precision not in PRECISIONS[arguments.target]:
        wanted = " or ".join(PRECISIONS[arguments.target])
        return f"--precision: got {arguments.precision} with --target {arguments.target}, wanted {wanted}"
    if arguments.calibration and arguments.precision != "int8":
        return f"--calibration: got it with --precision {arguments.precision}, wanted --precision int8"
    if arguments.shortlist and arguments.target != "cpu":
        return f"--shortlist: got it with --target {arguments.target}, wanted --target cpu"
    if arguments.engines and arguments.target != "tensorrt":
        return f"--engines: got it with --target {arguments.target}, wanted --target tensorrt"
    return ""


def _export(arguments: argparse.Namespace) -> Bundle:
    """Read the checkpoint, let the reference answer the exam, calibrate where that is wanted, write the bundle."""
    from tqdm import tqdm

    from export.bundle import check_destination
    from export.exporter import export_bundle, plan_manifest
    from export.golden import answer, default_questions, read_questions
    from model.checkpoint import load_checkpoint

    check_destination(arguments.out)
    checkpoint = load_checkpoint(arguments.checkpoint)
    manifest = plan_manifest(
        checkpoint,
        target=arguments.target,
        precision=arguments.precision,
        max_source_tokens=arguments.max_source_tokens,
        max_output_tokens=arguments.max_output_tokens,
    )
    limit = manifest.max_source_tokens
    own = arguments.checkpoint / CHECKPOINT_GOLDEN_FILE
    if arguments.golden or own.is_file():
        questions = read_questions(arguments.golden or own)
    else:
        questions = default_questions(checkpoint, max_source_tokens=limit)
    calibration = read_questions(arguments.calibration) if arguments.calibration else None
    # Before the exam, which takes long: a fault of the file shows at once.
    shortlist = _learn_shortlist(checkpoint, arguments.shortlist) if arguments.shortlist else None
    progress = tqdm(questions, desc="golden", unit="sentence", dynamic_ncols=True)
    golden = list(answer(checkpoint, progress, max_source_tokens=limit, decoding=manifest.decoding))
    found = _calibrate(checkpoint, manifest, calibration, golden) if arguments.precision == "int8" else None
    return export_bundle(
        checkpoint, arguments.out, manifest=manifest, golden=golden, calibration=found, shortlist=shortlist
    )


def _check_engines_can_be_built() -> None:
    """Say so before the exam is answered, which takes long."""
    from export.runners.gpu.engine_keys import gpu_for
    from export.runners.tensorrt_library import find_library

    gpu_for(find_library())


def _build_engines(bundle: Bundle) -> None:
    from export.engines.build import prebuild_engines
    from export.engines.report import report

    print(report(prebuild_engines(bundle, say=lambda line: print(line, file=sys.stderr, flush=True))))


def _learn_shortlist(checkpoint: Checkpoint, path: Path) -> Shortlist:
    """Learn from parallel text which target tokens each source token may become."""
    from tqdm import tqdm

    from export.golden import read_questions
    from export.shortlist.learn import learn_shortlist
    from export.shortlist.parallel import encode_pairs

    questions = read_questions(path, with_references=True)
    config = checkpoint.model.config
    return learn_shortlist(
        encode_pairs(checkpoint, tqdm(questions, desc="shortlist", unit="sentence", dynamic_ncols=True)),
        source_vocab=config.source_vocab_size,
        target_vocab=config.target_vocab_size,
        eos_id=config.eos_id,
        suppressed_ids=config.suppressed_ids,
    )


def _calibrate(
    checkpoint: Checkpoint,
    manifest: Manifest,
    questions: Sequence[Question] | None,
    golden: Sequence[GoldenSentence],
) -> Calibration:
    """Measure ranges on the reference's own greedy outputs; no questions: on those of the exam."""
    from tqdm import tqdm

    from export.golden import greedy_outputs, one_thread
    from export.quantisation.calibration import calibrate

    sentences = [(sentence.source_ids, sentence.greedy.ids) for sentence in golden]
    if questions is not None:
        progress = tqdm(questions, desc="calibration", unit="sentence", dynamic_ncols=True)
        limit = manifest.max_source_tokens
        sentences = [*greedy_outputs(checkpoint, progress, max_source_tokens=limit, decoding=manifest.decoding)]
    with tqdm(desc="ranges", total=2 * len(sentences), unit="sentence", dynamic_ncols=True) as bar, one_thread():
        return calibrate(checkpoint.model, sentences, on_sentence=bar.update)
