"""A real gRPC server on a free port, in this process, over the scripted fake runner."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from dragoman.v1.translation_pb2_grpc import TranslationServiceStub
from export.bundle import DecodingDefaults, Exam
from model.tokenizer import Tokenizer, train_tokenizer
from server.config import Address, ServeConfig, Target
from server.decoding.loop import DecodeLoop
from server.decoding.observer import Stage
from server.metrics import Metrics, ModelMetrics
from server.models import Backend, KnownModel, Limits, ModelState, Registry, ServedModel
from server.service.app import METHODS, App
from server.service.errors import MODEL_LESS_REASONS, MODEL_REASONS
from tests.decoding.fake_runner import END, PAD, START, FakeRunner, Rule, copying_rule, fake_manifest

PATIENCE_S = 60.0
"""How long a test waits for what must come, before it fails."""

DIGEST = "ab" * 32
TEXTS = ("a man rides", "two dogs play in the snow", "one child sits", "women sing songs")
_T = TypeVar("_T")


def make_tokenizer() -> Tokenizer:
    """A real tokenizer, small enough to train for every run."""
    more = ("the quick brown fox jumps over a lazy dog", "vexed women give big boxes", "a child plays with ten cats")
    return train_tokenizer((*TEXTS, *more) * 4, vocab_size=48)


class HearingMetrics(ModelMetrics):
    """Metrics that a test can wait on."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        super().__init__(metrics, model, reasons=MODEL_REASONS)
        self._heard = threading.Condition()
        self.queued = self.active = self.given_up = 0

    def queue_changed(self, depth: int) -> None:
        super().queue_changed(depth)
        self._hear(queued=depth)

    def active_changed(self, sequences: int) -> None:
        super().active_changed(sequences)
        self._hear(active=sequences)

    def cancelled(self, stage: Stage) -> None:
        super().cancelled(stage)
        self._hear(given_up=self.given_up + 1)

    def _hear(self, **values: int) -> None:
        with self._heard:
            self.__dict__.update(values)
            self._heard.notify_all()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        with self._heard:
            assert self._heard.wait_for(condition, PATIENCE_S), "it never came to that"


class Gate:
    """Holds the runner before its steps while it is closed."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()

    def close(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def __call__(self) -> None:
        assert self._open.wait(PATIENCE_S), "the gate was never opened"


def make_model(
    metrics: Metrics,
    config: ServeConfig,
    tokenizer: Tokenizer,
    *,
    name: str = "copy",
    rule: Rule | None = None,
    source_languages: tuple[str, ...] = ("en",),
    target_languages: tuple[str, ...] = ("de",),
    language_aliases: Mapping[str, str] | None = None,
    decoding: DecodingDefaults | None = None,
    max_source_tokens: int = 40,
    exam: Exam | None = None,
    **runner_options: Any,
) -> ServedModel:
    """A serving model whose translation is its source, unless ``rule`` says otherwise."""
    vocab = tokenizer.vocab_size
    manifest = fake_manifest(
        vocab=vocab,
        name=name,
        source_languages=source_languages,
        target_languages=target_languages,
        language_aliases=dict(language_aliases or {}),
        decoding=decoding or DecodingDefaults(max_output_tokens=50),
        max_source_tokens=max_source_tokens,
        license_note="for tests",
    )
    runner = FakeRunner(rule or copying_rule(vocab=vocab), **{"max_rows": 16, **runner_options})
    gate = Gate()
    runner.before_step = gate
    model_metrics = HearingMetrics(metrics, name)
    decode_loop = DecodeLoop(
        runner, start_id=START, eos_id=END, pad_id=PAD, max_queue=config.max_queue, observer=model_metrics
    )
    decode_loop.start()
    return ServedModel(
        manifest=manifest,
        digest=DIGEST,
        tokenizer=tokenizer,
        backend=Backend(
            target=Target.CPU,
            runners=(runner,),
            decode_loop=decode_loop,
            limits=Limits.of(manifest, runner, config),
            exam=exam,
        ),
        metrics=model_metrics,
        state=ModelState.SERVING,
    )


def broken_model(name: str, *, target_language: str = "de") -> KnownModel:
    """What is known of a model whose bundle could not be loaded."""
    manifest = fake_manifest(vocab=9, name=name, target_languages=(target_language,))
    return KnownModel(manifest=manifest, digest=DIGEST, state=ModelState.FAILED)


class RunningServer:
    """An App on an event loop of its own thread, and a channel to it."""

    def __init__(self, tokenizer: Tokenizer, *, config: ServeConfig | None = None) -> None:
        self.config = config or ServeConfig(listen=Address("127.0.0.1", 0))
        self.tokenizer = tokenizer
        self.metrics = Metrics(methods=METHODS, model_less_reasons=MODEL_LESS_REASONS)
        self.registry = Registry()
        self.hurry: asyncio.Event
        self._stopped = False
        self._event_loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._event_loop.run_forever, daemon=True)

    def add_model(self, *, tokenizer: Tokenizer | None = None, **options: Any) -> ServedModel:
        model = make_model(self.metrics, self.config, tokenizer or self.tokenizer, **options)
        self.registry.add(model)
        self.metrics.model_found(model.name, now=lambda: model.now)
        return model

    def __enter__(self) -> Self:
        self._thread.start()
        self.run(self._start())
        self.channel = grpc.insecure_channel(str(self.address))
        self.stub = TranslationServiceStub(self.channel)
        return self

    async def _start(self) -> None:
        self.hurry = asyncio.Event()
        self.app = App(self.config, registry=self.registry, metrics=self.metrics)
        self.address = await self.app.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        for model in self.registry.loaded():
            gate_of(model).open()
        if not self._stopped:
            self.run(self.app.shut_down(lame_duck_s=0.0, grace_s=PATIENCE_S, hurry=self.hurry))
        self.channel.close()
        self._event_loop.call_soon_threadsafe(self._event_loop.stop)
        self._thread.join()
        self._event_loop.close()

    def begin(self, work: Coroutine[Any, Any, _T]) -> Future[_T]:
        """Start ``work`` on the server's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._event_loop)

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return self.begin(work).result(PATIENCE_S)

    def begin_shut_down(self, *, lame_duck_s: float = 0.0, grace_s: float = PATIENCE_S) -> Future[bool]:
        self._stopped = True
        return self.begin(self.app.shut_down(lame_duck_s=lame_duck_s, grace_s=grace_s, hurry=self.hurry))

    def health(self, service: str) -> str:
        """What the health service says, or the code with which it refuses."""
        stub: Any = health_pb2_grpc.HealthStub(self.channel)
        try:
            reply = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE_S)
        except grpc.RpcError as error:
            return code_of(error).name
        return health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)

    def sample(self, name: str, **labels: str) -> float | None:
        """One value of /metrics."""
        return self.metrics.registry.get_sample_value(name, labels)


def gate_of(model: ServedModel) -> Gate:
    """The gate before the model's steps."""
    assert isinstance(model.runner, FakeRunner)
    gate = model.runner.before_step
    assert isinstance(gate, Gate)
    return gate


def heard(model: ServedModel) -> HearingMetrics:
    """The model's metrics, to be waited on."""
    assert isinstance(model.metrics, HearingMetrics)
    return model.metrics


def code_of(error: Any) -> grpc.StatusCode:
    """Status code of a failed call."""
    code: grpc.StatusCode = error.code()
    return code


def status_of(error: Any) -> status_pb2.Status:
    """The google.rpc.Status that a failed call carries."""
    status: status_pb2.Status | None = rpc_status.from_call(error)
    assert status is not None, f"no details: {error}"
    return status


_D = TypeVar("_D", bound=Message)


def detail_of(status: status_pb2.Status, kind: type[_D]) -> _D | None:
    """The first detail of that kind."""
    for packed in status.details:
        detail = kind()
        if packed.Unpack(detail):
            return detail
    return None


def reason_of(error: Any) -> str:
    """ErrorInfo.reason of a failed call; its domain must be ours."""
    info = detail_of(status_of(error), error_details_pb2.ErrorInfo)
    assert info is not None
    assert info.domain == "dragoman"
    return info.reason


def fields_of(error: Any) -> list[str]:
    """The fields a failed call is blamed on."""
    bad_request = detail_of(status_of(error), error_details_pb2.BadRequest)
    return [violation.field for violation in bad_request.field_violations] if bad_request is not None else []


def failure(call: Callable[..., Any], request: Any) -> grpc.RpcError:
    """The error of a call that must fail."""
    with pytest.raises(grpc.RpcError) as raised:
        call(request, timeout=PATIENCE_S)
    return raised.value
