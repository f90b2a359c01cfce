"""What a runner has to show before a server lets it serve: its certificate, and an exam that it sits here and now."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from export.bundle import Bundle, BundleError, Exam
from export.runners.protocol import Runner
from server.config import Target
from server.exam.sitting import ExamError, sit_exam
from server.exam.thresholds import Thresholds

_WARM_UP_SENTENCES = 4


class NotServableError(Exception):
    """A model has no valid certificate, or failed its exam here; one line says which."""


def valid_exam(bundle: Bundle, runner: Runner, target: Target) -> tuple[Exam | None, str]:
    """The bundle's newest passed exam for this runner and its precision, or why there is none.

    Args:
        bundle: what is to be served.
        runner: on what.
        target: what the runner is for.
    """
    where = f"{bundle.path}: not certified for {runner.name} {runner.precision}"
    flags = (" --shortlist" if runner.shortlisted else "") + (f" --target {target.value}" if target.on_gpu else "")
    verify = f"dragoman verify{flags}"
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


def warm_up(bundle: Bundle, runner: Runner, exam: Exam | None) -> None:
    """Sit a short exam, which also warms the runner up.

    Args:
        bundle: what is to be served.
        runner: on what; nobody else uses it meanwhile.
        exam: the valid exam; None: there is none, and it is to be served all the same.

    Raises:
        NotServableError: it could not be sat, or was failed.
    """
    try:
        result = sit_exam(bundle, runner, sentences=_WARM_UP_SENTENCES)
    except (ExamError, BundleError) as error:
        raise NotServableError(f"{bundle.path}: warm-up exam: {error}") from error
    thresholds = Thresholds.for_warm_up(runner.precision, exam, shortlisted=runner.shortlisted)
    missed = [figure.complaint(name_option=False) for figure in result.judged(thresholds) if not figure.holds]
    if missed:
        raise NotServableError(f"{bundle.path}: warm-up exam failed: {'; '.join(missed)}")


def sit_whole_exam(bundle: Bundle, runner: Runner, target: Target) -> Exam:
    """Sit the bundle's whole exam: what was built on this machine has proven nothing anywhere else.

    It is held to what the bundle's certificate says of such a runner; without one, to what ``dragoman verify`` asks.

    Args:
        bundle: what is to be served.
        runner: on what; nobody else uses it meanwhile.
        target: what the runner is for.

    Returns:
        The exam, passed.

    Raises:
        NotServableError: it could not be sat, or was failed.
    """
    # Not at the top: only servers that build engines pay for sacreBLEU's memory.
    from server.exam.certify import examine  # noqa: PLC0415

    known, _ = valid_exam(bundle, runner, target)
    thresholds = Thresholds.for_warm_up(runner.precision, known) if known else Thresholds.of_precision(runner.precision)
    try:
        exam = examine(bundle, runner, thresholds)
    except (ExamError, BundleError) as error:
        raise NotServableError(f"{bundle.path}: exam on {runner.name} {runner.precision}: {error}") from error
    if not exam.passed:
        reasons = "; ".join(exam.missed)
        hint = f"`dragoman verify --target {target.value}` tells more"
        raise NotServableError(f"{bundle.path}: exam on {runner.name} {runner.precision} failed: {reasons}; {hint}")
    return exam
