"""One bundle to one model: load what serves it, check its certificate, sit a short exam."""

from __future__ import annotations

import logging

from google.protobuf.timestamp_pb2 import Timestamp

from export.bundle import Bundle, BundleError, Exam
from export.runners.ort_cpu import OrtCpuRunner
from export.runners.protocol import Runner
from model.tokenizer import Tokenizer
from server import log
from server.config import ServeConfig
from server.decoding.crew import Crew
from server.decoding.loop import DecodeLoop
from server.exam.sitting import ExamError, sit_exam
from server.exam.thresholds import Thresholds
from server.metrics import Metrics, ModelMetrics
from server.models import Limits, ModelState, ServedModel
from server.service.errors import MODEL_REASONS

_log = logging.getLogger(__name__)

_WARM_UP_SENTENCES = 4


class NotServableError(Exception):
    """A model has no valid certificate, or failed its exam here; one line says which."""


def open_model(bundle: Bundle, config: ServeConfig, metrics: Metrics, *, crew: Crew) -> ServedModel:
    """Load a bundle; the model does not serve yet.

    Args:
        bundle: what to load.
        config: the server's settings.
        metrics: where the model's own are registered.
        crew: the workers of all models of the server.

    Raises:
        BundleError: its parts do not fit each other, this machine or the server's limits.
        TokenizerError: its tokenizer cannot be read, or lacks a language that the manifest names.
        RunnerError: its graphs cannot be loaded.
    """
    manifest = bundle.manifest
    tokenizer = Tokenizer.load(bundle.tokenizer_path)
    _check_tokenizer(tokenizer, bundle)
    runners = OrtCpuRunner.open_workers(
        bundle,
        workers=config.worker_count,
        threads=config.step_threads,
        max_rows=config.max_rows,
        max_candidates=2 * config.max_beam_size,
        shortlist=config.shortlist,
    )
    limits = Limits.of(manifest, runners[0], config)
    if manifest.decoding.beam_size > limits.max_beam_size:
        for runner in runners:
            runner.close()
        raise BundleError(f"{bundle.path}: decoding.{_beam_fault(manifest.decoding.beam_size, limits, config)}")
    model_metrics = ModelMetrics(metrics, manifest.name, reasons=MODEL_REASONS)
    decode_loop = DecodeLoop(
        *runners,
        start_id=manifest.start_id,
        eos_id=manifest.eos_id,
        pad_id=manifest.pad_id,
        max_queue=config.max_queue,
        order=config.admission,
        crew=crew,
        observer=model_metrics,
    )
    return ServedModel(
        manifest=manifest,
        digest=bundle.digest,
        tokenizer=tokenizer,
        runners=runners,
        decode_loop=decode_loop,
        metrics=model_metrics,
        limits=limits,
    )


def _beam_fault(got: int, limits: Limits, config: ServeConfig) -> str:
    """What is wrong with a default beam beyond the limits: one that is cut would not give the model's own results."""
    settings = {"--max-beam-size": config.max_beam_size, "--max-rows": config.max_rows}
    flags = [f"{flag} {got}" for flag, most in settings.items() if most < got]
    if flags:
        why = f": {' and '.join(flags)} {'raises' if len(flags) == 1 else 'raise'} that"
    else:
        why = ", half the tokens it may choose from"
    return f"beam_size: got {got}, wanted at most {limits.max_beam_size}{why}"


def _check_tokenizer(tokenizer: Tokenizer, bundle: Bundle) -> None:
    """Hold that the tokenizer speaks the model's ids and knows its languages."""
    manifest, where = bundle.manifest, bundle.tokenizer_path
    for name in ("eos_id", "unk_id"):
        got, wanted = getattr(tokenizer, name), getattr(manifest, name)
        if got != wanted:
            raise BundleError(f"{where}: {name}: got {got}, wanted the manifest's {wanted}")
    sizes = (
        ("source", tokenizer.vocab_size, manifest.dims.source_vocab),
        ("target", tokenizer.target_vocab_size, manifest.dims.target_vocab),
    )
    for side, size, most in sizes:
        if size > most:
            raise BundleError(f"{where}: got {size} {side} tokens, wanted at most {most}")
    for code in manifest.source_languages:
        tokenizer.encode("", source_language=code, target_language=manifest.target_languages[0])
    for code in manifest.target_languages:
        tokenizer.encode("", source_language=manifest.source_languages[0], target_language=code)
        forced = tokenizer.forced_tokens(code)
        if manifest.eos_id in forced:
            raise BundleError(f"{where}: forced tokens of {code}: got the end token, wanted others")
        if len(forced) >= manifest.decoding.max_output_tokens:
            most = manifest.decoding.max_output_tokens - 1
            raise BundleError(f"{where}: got {len(forced)} forced tokens, wanted at most {most} by max_output_tokens")


def admit(model: ServedModel, bundle: Bundle, config: ServeConfig) -> None:
    """Let a model serve.

    Raises:
        NotServableError: it may not.
    """
    model.exam, complaint = _valid_exam(bundle, model.runner)
    if complaint and not config.allow_uncertified:
        raise NotServableError(complaint)
    if complaint:
        log.event(_log, "serving without a certificate", level=logging.WARNING, model=model.name, reason=complaint)
    _warm_up(model, bundle)
    model.metrics.serving(runner=model.runner.name, precision=model.runner.precision, digest=model.digest)
    model.decode_loop.start()
    model.state = ModelState.SERVING


def _valid_exam(bundle: Bundle, runner: Runner) -> tuple[Exam | None, str]:
    """The bundle's newest passed exam for this runner and its precision, or why there is none."""
    where = f"{bundle.path}: not certified for {runner.name} {runner.precision}"
    verify = "dragoman verify --shortlist" if runner.shortlisted else "dragoman verify"
    hint = f"run `{verify}` or pass --allow-uncertified"
    try:
        exams = bundle.certificate()
        for exam in exams:
            Timestamp().FromJsonString(exam.verify_time)
    except (BundleError, ValueError) as error:
        return None, f"{where}: certificate.json cannot be read: {error}"
    fitting = [exam for exam in exams if (exam.runner, exam.precision) == (runner.name, runner.precision)]
    if not fitting:
        return None, f"{where}: no such exam; {hint}"
    current = [exam for exam in fitting if exam.manifest_sha256 == bundle.digest]
    if not current:
        return None, f"{where}: the exam is stale, it was sat by another manifest; {hint}"
    passed = [exam for exam in current if exam.passed]
    if not passed:
        newest = max(current, key=lambda exam: exam.verify_time)
        return None, f"{where}: the exam was failed: {'; '.join(newest.missed) or f'run `{verify}` to see why'}"
    return max(passed, key=lambda exam: exam.verify_time), ""


def _warm_up(model: ServedModel, bundle: Bundle) -> None:
    """Sit a short exam, which also warms the runner up.

    Raises:
        NotServableError: it could not be sat, or was failed.
    """
    try:
        result = sit_exam(bundle, model.runner, sentences=_WARM_UP_SENTENCES)
    except (ExamError, BundleError) as error:
        raise NotServableError(f"{bundle.path}: warm-up exam: {error}") from error
    runner = model.runner
    thresholds = Thresholds.for_warm_up(runner.precision, model.exam, shortlisted=runner.shortlisted)
    missed = [figure.complaint(name_option=False) for figure in result.judged(thresholds) if not figure.holds]
    if missed:
        raise NotServableError(f"{bundle.path}: warm-up exam failed: {'; '.join(missed)}")
