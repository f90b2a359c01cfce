"""From bundles on disk to models that serve: open, check the certificate, load, sit a short exam."""

from __future__ import annotations

import importlib.resources
import logging
from collections.abc import Callable
from pathlib import Path

from google.protobuf.timestamp_pb2 import Timestamp

from export.bundle import MANIFEST_FILE, Bundle, BundleError, Exam
from export.runners.ort_cpu import OrtCpuRunner
from export.runners.protocol import RunnerError
from model.tokenizer import Tokenizer, TokenizerError
from server import log
from server.config import ServeConfig
from server.decoding.loop import DecodeLoop
from server.exam.sitting import ExamError, Thresholds, sit_exam
from server.metrics import Metrics, ModelMetrics
from server.models import Limits, ModelState, ServedModel
from server.resources import cpu_count
from server.service.errors import MODEL_REASONS
from server.service.health import RESERVED_NAMES

_log = logging.getLogger(__name__)

_WARM_UP_SENTENCES = 4


class LoadError(Exception):
    """A model cannot be served; one line says why."""


def find_bundles(models: Path | None) -> list[Path]:
    """The bundles at ``models``: itself, or the directories in it; None: the bundled demo.

    Raises:
        LoadError: there is none.
    """
    path = Path(str(importlib.resources.files("server") / "assets")) if models is None else models
    try:
        if (path / MANIFEST_FILE).is_file():
            return [path]
        if not path.is_dir():
            raise LoadError(f"{path}: got no directory, wanted a bundle or a directory of bundles")
        found = sorted(child for child in path.iterdir() if (child / MANIFEST_FILE).is_file())
    except OSError as error:
        raise LoadError(f"{path}: {error.strerror}") from error
    if not found:
        hint = "; this installation has no bundled demo, name a bundle with --models PATH" if models is None else ""
        raise LoadError(f"{path}: got no {MANIFEST_FILE} here or one level below, wanted a bundle{hint}")
    return found


def load_models(config: ServeConfig, metrics: Metrics, *, on_opened: Callable[[ServedModel], None]) -> None:
    """Load every model and let each sit its exam.

    Args:
        config: the server's settings.
        metrics: where the models' metrics live.
        on_opened: called with each model as soon as it can be told about; it does not serve yet.

    Raises:
        LoadError: a bundle is broken, two have one name, or none may serve.
    """
    opened: dict[str, tuple[ServedModel, Bundle]] = {}
    for path in find_bundles(config.models):
        try:
            model, bundle = _open_model(path, config, metrics)
        except (BundleError, RunnerError, TokenizerError) as error:
            raise LoadError(str(error)) from error
        if model.name in opened:
            raise LoadError(f"{path}: got a second model {model.name!r}, wanted different names")
        opened[model.name] = model, bundle
        on_opened(model)
    faults = [fault for model, bundle in opened.values() if (fault := _admit(model, bundle, config))]
    if len(faults) == len(opened):
        raise LoadError("; ".join(faults))


def _open_model(path: Path, config: ServeConfig, metrics: Metrics) -> tuple[ServedModel, Bundle]:
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    if manifest.name in RESERVED_NAMES:
        wanted = f"none of {', '.join(RESERVED_NAMES)}: they name health services"
        raise BundleError(f"{path}: name: got {manifest.name!r}, wanted {wanted}")
    tokenizer = Tokenizer.load(bundle.tokenizer_path)
    _check_tokenizer(tokenizer, bundle)
    max_candidates = 2 * config.max_beam_size
    threads = config.threads or cpu_count()
    runner = OrtCpuRunner.open(bundle, threads=threads, max_rows=config.max_rows, max_candidates=max_candidates)
    model_metrics = ModelMetrics(metrics, manifest.name, reasons=MODEL_REASONS)
    model_metrics.loaded(runner=runner.name, precision=runner.precision, digest=bundle.digest)
    decode_loop = DecodeLoop(
        runner,
        start_id=manifest.start_id,
        eos_id=manifest.eos_id,
        pad_id=manifest.pad_id,
        max_queue=config.max_queue,
        observer=model_metrics,
    )
    model = ServedModel(
        manifest=manifest,
        digest=bundle.digest,
        tokenizer=tokenizer,
        runner=runner,
        decode_loop=decode_loop,
        metrics=model_metrics,
        limits=Limits.of(manifest, runner, config),
    )
    return model, bundle


def _check_tokenizer(tokenizer: Tokenizer, bundle: Bundle) -> None:
    """Hold that the tokenizer speaks the model's ids."""
    manifest = bundle.manifest
    for name in ("eos_id", "unk_id"):
        got, wanted = getattr(tokenizer, name), getattr(manifest, name)
        if got != wanted:
            raise BundleError(f"{bundle.tokenizer_path}: {name}: got {got}, wanted the manifest's {wanted}")
    most = min(manifest.dims.source_vocab, manifest.dims.target_vocab)
    if tokenizer.vocab_size > most:
        raise BundleError(f"{bundle.tokenizer_path}: got {tokenizer.vocab_size} tokens, wanted at most {most}")


def _admit(model: ServedModel, bundle: Bundle, config: ServeConfig) -> str:
    """Let a model serve where it may; returns why it may not, or nothing."""
    model.exam, complaint = _valid_exam(bundle, runner=model.runner.name, precision=model.runner.precision)
    if complaint and config.allow_uncertified:
        log.event(_log, "serving without a certificate", level=logging.WARNING, model=model.name, reason=complaint)
        complaint = ""
    complaint = complaint or _warm_up(model, bundle)
    if complaint:
        model.certified = False
        model.state = ModelState.FAILED
        log.event(_log, "model does not serve", level=logging.ERROR, model=model.name, reason=complaint)
        return complaint
    model.decode_loop.start()
    model.state = ModelState.SERVING
    return ""


def _valid_exam(bundle: Bundle, *, runner: str, precision: str) -> tuple[Exam | None, str]:
    """The bundle's newest passed exam for this runner and precision, or why there is none."""
    where = f"{bundle.path}: not certified for {runner} {precision}"
    hint = "run `dragoman verify` or pass --allow-uncertified"
    try:
        exams = bundle.certificate()
        for exam in exams:
            Timestamp().FromJsonString(exam.verify_time)
    except (BundleError, ValueError) as error:
        return None, f"{where}: certificate.json cannot be read: {error}"
    fitting = [exam for exam in exams if (exam.runner, exam.precision) == (runner, precision)]
    if not fitting:
        return None, f"{where}: no such exam; {hint}"
    current = [exam for exam in fitting if exam.manifest_sha256 == bundle.digest]
    if not current:
        return None, f"{where}: the exam is stale, it was sat by another manifest; {hint}"
    passed = [exam for exam in current if exam.passed]
    if not passed:
        return None, f"{where}: the exam was failed"
    return max(passed, key=lambda exam: exam.verify_time), ""


def _warm_up(model: ServedModel, bundle: Bundle) -> str:
    """Sit a short exam, which also warms the runner up; returns what went wrong, or nothing."""
    try:
        result = sit_exam(bundle, model.runner, sentences=_WARM_UP_SENTENCES)
    except (ExamError, BundleError) as error:
        return f"{bundle.path}: warm-up exam: {error}"
    if not result.passes(Thresholds.of_precision(model.runner.precision)):
        return (
            f"{bundle.path}: warm-up exam failed: token-exact rate {result.token_exact_rate:.3f}, "
            f"largest log-prob difference {result.max_log_prob_difference:.1e}"
        )
    return ""
