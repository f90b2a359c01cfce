"""One bundle to one model: open what executes it, and let it prove itself."""

from __future__ import annotations

import logging

from export.bundle import Bundle, BundleError, Exam
from export.runners.gpu.device import DeviceUnavailableError
from export.runners.protocol import Runner, RunnerError
from model.tokenizer import Tokenizer
from server import log
from server.config import ServeConfig, Target
from server.decoding.crew import Crew
from server.decoding.loop import DecodeLoop
from server.exam.entrance import NotServableError, sit_whole_exam, valid_exam, warm_up
from server.gauges import EngineState
from server.metrics import Metrics, ModelMetrics
from server.models import Backend, Limits, ModelState, ServedModel
from server.runners import Choice, RunnerSource
from server.service.errors import MODEL_REASONS

_log = logging.getLogger(__name__)


class Opener:
    """Opens bundles as the settings say.

    Attributes:
        source: where runners come from.
    """

    def __init__(self, config: ServeConfig, metrics: Metrics, *, source: RunnerSource | None = None) -> None:
        """Nothing is opened yet.

        Args:
            config: the server's settings.
            metrics: where the models' own are registered.
            source: None: as ``config`` says.
        """
        self.source = source or RunnerSource(config)
        self._config = config
        self._metrics = metrics
        self._crew = Crew()
        self._left: dict[ServedModel, list[Choice]] = {}

    def open(self, bundle: Bundle) -> ServedModel:
        """Load a bundle for the best target that it can run on at once; the model does not serve yet.

        Raises:
            BundleError: its parts do not fit each other, this machine or the server's limits.
            TokenizerError: its tokenizer cannot be read, or lacks a language that the manifest names.
            RunnerError: its graphs cannot be loaded.
            DeviceUnavailableError: the target that was asked for cannot run here.
        """
        manifest = bundle.manifest
        tokenizer = Tokenizer.load(bundle.tokenizer_path)
        _check_tokenizer(tokenizer, bundle)
        choices = self.source.choices(bundle)
        model = ServedModel(
            manifest=manifest,
            digest=bundle.digest,
            tokenizer=tokenizer,
            backend=self._open_first(bundle, choices),
            metrics=ModelMetrics(self._metrics, manifest.name, reasons=MODEL_REASONS),
        )
        self._left[model] = choices
        return model

    def admit(self, model: ServedModel, bundle: Bundle) -> None:
        """Let a model serve, on the best of the targets it can run on at once on which it proves itself.

        Raises:
            NotServableError: it may not serve.
            BundleError, RunnerError, DeviceUnavailableError: as of ``open``, of another target than the first.
        """
        choices = self._left.pop(model)
        while True:
            try:
                model.backend.exam = self._prove(model, bundle)
                break
            except NotServableError as error:
                if not choices:
                    raise
                _pass_over(bundle, model.backend.target, error)
            model.backend.close_runners()
            model.backend = self._open_first(bundle, choices)
            model.limits = model.backend.limits
        if model.backend.target is Target.TENSORRT:
            model.engines = EngineState.SERVING
        model.decode_loop.start()
        model.state = ModelState.SERVING

    def open_backend(self, bundle: Bundle, choice: Choice) -> Backend:
        """Open what executes a bundle in one way; its loop stands still.

        Raises:
            BundleError: the bundle or its engines do not fit this machine or the server's limits.
            RunnerError: the graphs or engines cannot be loaded.
            DeviceUnavailableError: a library or driver is missing.
        """
        manifest, config = bundle.manifest, self._config
        runners = self.source.open(bundle, choice)
        limits = Limits.of(manifest, runners[0], config)
        if manifest.decoding.beam_size > limits.max_beam_size:
            for runner in runners:
                runner.close()
            fault = _beam_fault(manifest.decoding.beam_size, limits, runners[0], config)
            raise BundleError(f"{bundle.path}: decoding.{fault}")
        decode_loop = DecodeLoop(
            *runners,
            start_id=manifest.start_id,
            eos_id=manifest.eos_id,
            pad_id=manifest.pad_id,
            max_queue=config.max_queue,
            order=config.admission,
            crew=self._crew,
            observer=ModelMetrics(self._metrics, manifest.name),
        )
        return Backend(target=choice.target, runners=runners, decode_loop=decode_loop, limits=limits)

    def _open_first(self, bundle: Bundle, choices: list[Choice]) -> Backend:
        """Open the first of ``choices`` that can be opened; it and those before it are taken off the list."""
        while True:
            choice = choices.pop(0)
            try:
                return self.open_backend(bundle, choice)
            except (BundleError, RunnerError, DeviceUnavailableError) as error:
                if not choices:
                    raise
                _pass_over(bundle, choice.target, error)

    def _prove(self, model: ServedModel, bundle: Bundle) -> Exam | None:
        """Check a model's certificate and let it sit an exam; returns the valid one.

        Raises:
            NotServableError: it may not serve like this.
        """
        runner, target = model.runner, model.backend.target
        exam, complaint = valid_exam(bundle, runner, target)
        if exam is None and target is Target.TENSORRT:
            return sit_whole_exam(bundle, runner, target)
        if complaint and not self._config.allow_uncertified:
            raise NotServableError(complaint)
        if complaint:
            log.event(_log, "serving without a certificate", level=logging.WARNING, model=model.name, reason=complaint)
        warm_up(bundle, runner, exam)
        return exam


def _pass_over(bundle: Bundle, target: Target, error: Exception) -> None:
    """Tell that a model is to run on another target than the best."""
    fields = {"model": bundle.manifest.name, "target": target.value, "reason": str(error)}
    log.event(_log, "a target is passed over", level=logging.WARNING, **fields)


def _beam_fault(got: int, limits: Limits, runner: Runner, config: ServeConfig) -> str:
    """What is wrong with a default beam beyond the limits: one that is cut would not give the model's own results."""
    settings = {"--max-beam-size": config.max_beam_size, "--max-rows": runner.limits.max_rows}
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
