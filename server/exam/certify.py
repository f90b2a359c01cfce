"""The body of ``dragoman verify``: measure a bundle, print what was found, write the certificate."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from export.bundle import CERTIFICATE_FILE, Bundle, BundleError, Exam, read_certificate, write_certificate
from export.runners.gpu.device import DeviceUnavailableError
from export.runners.protocol import Runner, RunnerError
from model.tokenizer import TokenizerError
from server.config import ServeConfig, Target
from server.engine_build import EngineBuild, EngineBuildError
from server.exam.quality import Measured, measure
from server.exam.report import report
from server.exam.sitting import ExamError
from server.exam.thresholds import Thresholds
from server.exam.verdict import Verdict, judge
from server.runners import Choice, RunnerSource

_TOOLS = ("dragoman", "numpy", "sacrebleu")
_TOOLS_OF_RUNNERS = {
    "onnxruntime-cpu": ("onnxruntime", "onnxruntime-gpu"),
    "onnxruntime-cuda": ("onnxruntime-gpu", "cuda-bindings"),
    "tensorrt-rtx": ("tensorrt-rtx-cu13-bindings", "cuda-bindings"),
    "tensorrt": ("tensorrt", "cuda-bindings"),
}
_CPU_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to verify, and how.

    Attributes:
        path: the bundle.
        golden: a further golden set; None: the bundle's own alone.
        references: people's translations of the golden set, line by line; None: those it holds.
        out: certificate to write; None: the bundle's.
        threads: CPU threads; None: all this process may use.
        target: what is to run it; never ``AUTO``.
        engine_cache: where TensorRT engines are looked for and kept; None: below the user's own cache.
        shortlist: whether the runner is to choose from the bundle's shortlist.
        min_exact_rate: least token-exact rate; None: as ``Thresholds.of_precision`` says.
        max_log_prob_difference: most difference of a token's log-prob; None: likewise.
        max_bleu_loss: most BLEU below the reference decoder's; None: likewise.
    """

    path: Path
    golden: Path | None = None
    references: Path | None = None
    out: Path | None = None
    threads: int | None = None
    target: Target = Target.CPU
    engine_cache: Path | None = None
    shortlist: bool = False
    min_exact_rate: float | None = None
    max_log_prob_difference: float | None = None
    max_bleu_loss: float | None = None


def verify_bundle(request: Request) -> int:
    """Sit the exam on the runner at hand, print the findings, write the certificate; returns the exit code."""
    try:
        bundle = Bundle.open(request.path)
        certificate = _certificate_path(request)
        exam = _sit_and_report(bundle, request)
        try:
            add_to_certificate(certificate, exam)
        except OSError as error:
            raise BundleError(f"{certificate}: {error.strerror}; name another file with --out FILE") from error
    except (BundleError, DeviceUnavailableError, ExamError, RunnerError, TokenizerError, OSError) as error:
        print(f"dragoman verify: {error}", file=sys.stderr)
        return 1
    if exam.passed:
        print(f"\ncertified: {certificate}")
        return 0
    print(f"\ncertificate: {certificate}\nNOT certified: {'; '.join(exam.missed)}")
    return 1


def _certificate_path(request: Request) -> Path:
    """Where the certificate goes; found out before the exam, which may be long."""
    if request.out is not None:
        if not request.out.parent.is_dir():
            raise BundleError(f"{request.out}: got no directory {request.out.parent}, wanted one to write to")
        if request.out.exists() and not request.out.is_file():
            raise BundleError(f"{request.out}: got a directory or special file, wanted a plain file or none")
        return request.out
    if not os.access(request.path, os.W_OK):
        raise BundleError(f"{request.path}: cannot be written to; name the certificate with --out FILE")
    return request.path / CERTIFICATE_FILE


def open_runner(bundle: Bundle, request: Request) -> Runner:
    """The runner that is asked for; TensorRT engines that are not there are built first.

    Raises:
        DeviceUnavailableError: the target cannot run here; one line says what to install.
        BundleError: graphs or engines do not fit, or engines could not be built.
        RunnerError: the device refused.
    """
    target = request.target
    source = RunnerSource(
        ServeConfig(
            target=target,
            engine_cache=request.engine_cache,
            threads=request.threads or 0,
            workers=1,
            max_rows=0 if target.on_gpu else _CPU_ROWS,
            shortlist=request.shortlist,
        )
    )
    source.check()
    engines = None
    if target is Target.TENSORRT:
        engines = source.find_engines(bundle)
        if engines is None:
            _build_engines(bundle, source)
            engines = source.built_engines(bundle)
    return source.open(bundle, Choice(target, engines))[0]


def _build_engines(bundle: Bundle, source: RunnerSource) -> None:
    build = EngineBuild(source.build_command(bundle), on_line=lambda line: print(line, file=sys.stderr))
    try:
        build.wait()
    except EngineBuildError as error:
        raise BundleError(f"{bundle.path}: engines: {error}") from error
    finally:
        build.kill()


def _sit_and_report(bundle: Bundle, request: Request) -> Exam:
    runner = open_runner(bundle, request)
    print(f"bundle  {bundle.manifest.name}, digest {bundle.digest}")
    print(f"runner  {runner.name}, {runner.precision}, on {runner.device_description}")
    print(f"tools   {', '.join(f'{name} {version}' for name, version in _tool_versions(runner).items())}")
    measured = _measure_all(bundle, runner, request)
    thresholds = Thresholds.of_precision(
        runner.precision,
        shortlisted=runner.shortlisted,
        min_exact_rate=request.min_exact_rate,
        max_log_prob_difference=request.max_log_prob_difference,
        max_bleu_loss=request.max_bleu_loss,
    )
    verdict = judge(measured, thresholds, bleu_is_wanted=request.max_bleu_loss is not None)
    for one, asked in zip(measured, verdict.asked, strict=True):
        print(f"\n{one.title}: {one.result.sentences} sentences")
        print("\n".join(report(one, asked)))
    return make_exam(bundle, runner, measured=measured, verdict=verdict)


def _measure_all(bundle: Bundle, runner: Runner, request: Request) -> list[Measured]:
    """The bundle's own golden set, and the outside files where there are such; the runner is closed."""
    with tqdm(desc="exam", unit=" answers", leave=False, dynamic_ncols=True, disable=None) as progress:

        def on_answer() -> None:
            progress.update()

        try:
            measured = [measure(bundle, runner, on_answer=on_answer)]
            if request.golden or request.references:
                outside = measure(
                    bundle,
                    runner,
                    golden_file=request.golden,
                    references_file=request.references,
                    on_answer=on_answer,
                )
                measured.append(outside)
        finally:
            runner.close()
    return measured


def examine(bundle: Bundle, runner: Runner, thresholds: Thresholds) -> Exam:
    """Sit the whole exam of the bundle's own golden set; errors as of ``measure``.

    Args:
        bundle: what sits.
        runner: on what; nobody else uses it meanwhile.
        thresholds: what has to hold.
    """
    measured = [measure(bundle, runner)]
    return make_exam(bundle, runner, measured=measured, verdict=judge(measured, thresholds, bleu_is_wanted=False))


def make_exam(bundle: Bundle, runner: Runner, *, measured: list[Measured], verdict: Verdict) -> Exam:
    """The certificate's record.

    Args:
        bundle: what sat.
        runner: on what.
        measured: on the bundle's own golden set, then on outside files, which enter as figures and digests only.
        verdict: what was asked of it, and what was missed.
    """
    own, *outside = measured
    beam = own.quality.get("beam")
    return Exam(
        manifest_sha256=bundle.digest,
        runner=runner.name,
        device=runner.device_description,
        precision=runner.precision,
        verify_time=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        passed=not verdict.missed,
        sentences=own.result.sentences,
        token_exact_rate=own.result.token_exact_rate,
        max_log_prob_difference=own.result.max_log_prob_difference,
        max_score_difference=own.result.max_score_difference,
        exceptions=[difference.record() for difference in own.result.exceptions],
        **({} if beam is None else vars(beam)),
        bleu_losses={search: quality.bleu_loss for search, quality in own.quality.items()},
        outside_files=[_outside_record(one) for one in outside],
        tool_versions=_tool_versions(runner),
        thresholds=verdict.thresholds.record(),
        missed=verdict.missed,
    )


def _outside_record(outside: Measured) -> dict[str, Any]:
    result = outside.result
    return {
        **outside.digests,
        "sentences": result.sentences,
        "token_exact_rate": result.token_exact_rate,
        "max_log_prob_difference": result.max_log_prob_difference,
        "max_score_difference": result.max_score_difference,
        "exceptions": len(result.exceptions),
        **{search: {**vars(one), "bleu_loss": one.bleu_loss} for search, one in outside.quality.items()},
    }


def add_to_certificate(path: Path, exam: Exam) -> None:
    """Write ``exam`` beside those of other runners, devices and precisions; stale ones go.

    Raises:
        BundleError: what is there is no certificate.
        OSError: it cannot be written.
    """

    def key(one: Exam) -> tuple[str, str, str]:
        return one.runner, one.device, one.precision

    kept = [one for one in read_certificate(path) if one.manifest_sha256 == exam.manifest_sha256]
    write_certificate(path, [*(one for one in kept if key(one) != key(exam)), exam])


def _tool_versions(runner: Runner) -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for tool in sorted({*_TOOLS, *_TOOLS_OF_RUNNERS.get(runner.name.removesuffix("-shortlist"), ())}):
        try:
            versions[tool] = importlib.metadata.version(tool)
        except importlib.metadata.PackageNotFoundError:
            continue  # run from a source tree that is not installed
    return versions
