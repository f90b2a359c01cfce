"""The methods of dragoman.v1.TranslationService."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias, TypeVar

import grpc

from dragoman.v1 import translation_pb2 as pb
from dragoman.v1.translation_pb2_grpc import TranslationServiceServicer
from server.decoding.sequence import Outcome, Result
from server.models import KnownModel, Registry
from server.service.errors import DeadlineExceeded, Draining, Internal, InvalidRequest, Violation
from server.service.requests import RETRY_AFTER_S, Job, TranslateRequest, check_loaded, find_named, read_request
from server.service.responses import blank_translation, model_message, translation_of
from server.service.streaming import TextStream
from server.service.submission import Ended, Submission, Tokens

_MOST_MODELS_PER_PAGE = 1000
_QUICK_BYTES, _QUICK_TOKENS = 1024, 256  # so little takes less time than to hand it to another thread
_T = TypeVar("_T")
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class TranslationService(TranslationServiceServicer):
    """Translates; tokenisation and detokenisation of more than a little text run on worker threads.

    Decoding runs on the models' decode loops.
    """

    def __init__(self, registry: Registry, *, workers: ThreadPoolExecutor) -> None:
        """Serve the models of ``registry``; ``workers`` run what would hold up the event loop."""
        self._registry = registry
        self._workers = workers

    async def TranslateText(  # noqa: N802 - named by the wire contract
        self, request: pb.TranslateTextRequest, context: _Context
    ) -> pb.TranslateTextResponse:
        """Translate all texts, then answer."""
        job, deadline = await self._accept(request, context)
        results: dict[int, Result] = {}
        with Submission(job, deadline=deadline, streaming=False) as submission:
            while not submission.ended:
                results.update(event for event in await submission.events() if isinstance(event, Ended))
        if submission.failed:
            raise Internal(model=job.model.name)
        tokens = sum(len(hypothesis.tokens) for result in results.values() for hypothesis in result.hypotheses)
        return await self._work(_unary_response, job, results, quick=tokens <= _QUICK_TOKENS)

    async def StreamTranslateText(  # noqa: N802
        self, request: pb.StreamTranslateTextRequest, context: _Context
    ) -> AsyncIterator[pb.StreamTranslateTextResponse]:
        """Translate all texts and send what becomes final."""
        job, deadline = await self._accept(request, context)
        with Submission(job, deadline=deadline, streaming=True) as submission:
            for index, source in enumerate(job.sources):
                if not source.tokens:
                    yield pb.StreamTranslateTextResponse(content_index=index, translation=blank_translation())
            writer = _StreamWriter(job)
            while not submission.ended:
                events = await submission.events()
                for message in await self._work(writer.messages, events, quick=False):
                    yield message
        if submission.failed:
            raise Internal(model=job.model.name)

    async def ListModels(  # noqa: N802
        self,
        request: pb.ListModelsRequest,
        context: _Context,  # noqa: ARG002
    ) -> pb.ListModelsResponse:
        """List the models, sorted by name; a page token is the name of the last model of the page before."""
        if not 0 <= request.page_size <= _MOST_MODELS_PER_PAGE:
            wanted = f"got {request.page_size}, wanted 0 to {_MOST_MODELS_PER_PAGE}"
            raise InvalidRequest([Violation("page_size", wanted)])
        if request.page_token and self._registry.get(request.page_token) is None:
            raise InvalidRequest([Violation("page_token", "got a token that no reply has held")])
        following = [model for model in self._registry.all() if model.name > request.page_token]
        page = following[: request.page_size or None]
        return pb.ListModelsResponse(
            models=[model_message(model) for model in page],
            next_page_token=page[-1].name if len(page) < len(following) else "",
        )

    async def GetModel(  # noqa: N802
        self,
        request: pb.GetModelRequest,
        context: _Context,  # noqa: ARG002
    ) -> pb.GetModelResponse:
        """Describe one model."""
        return pb.GetModelResponse(model=model_message(self._only_or_named(request.name)))

    def _only_or_named(self, name: str) -> KnownModel:
        if name:
            return find_named(name, self._registry)
        models = self._registry.all()
        if len(models) != 1:
            check_loaded(self._registry)
            names = ", ".join(model.name for model in models)
            raise InvalidRequest([Violation("name", f"got none, wanted one of {names}")])
        return models[0]

    async def _accept(self, request: TranslateRequest, context: _Context) -> tuple[Job, float | None]:
        """The checked request and its deadline on the decode loop's clock."""
        if self._registry.draining:
            raise Draining("the server is shutting down", retry_after_s=RETRY_AFTER_S)
        # Taken before tokenisation, which may take its time.
        remaining_s: float | None = context.time_remaining()
        deadline = None if remaining_s is None else time.monotonic() + remaining_s
        job = await self._work(read_request, request, self._registry, quick=request.ByteSize() <= _QUICK_BYTES)
        if deadline is not None and time.monotonic() >= deadline:
            raise DeadlineExceeded("the deadline passed before decoding began", model=job.model.name)
        return job, deadline

    async def _work(self, function: Callable[..., _T], *arguments: Any, quick: bool) -> _T:
        if quick:
            return function(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._workers, function, *arguments)


def _unary_response(job: Job, results: dict[int, Result]) -> pb.TranslateTextResponse:
    translations = [
        translation_of(job, source, results[index]) if source.tokens else blank_translation()
        for index, source in enumerate(job.sources)
    ]
    job.model.metrics.delivered(sum(translation.output_token_count for translation in translations))
    return pb.TranslateTextResponse(translations=translations, model=job.model.name, bundle_digest=job.model.digest)


class _StreamWriter:
    """Turns the events of one streamed call into its messages."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._texts = [TextStream(job.model.tokenizer) for _ in job.sources]

    def messages(self, events: list[Tokens | Ended]) -> list[pb.StreamTranslateTextResponse]:
        """At most one message for each event; tokens whose text is still held back give none."""
        messages = []
        for event in events:
            if isinstance(event, Ended):
                messages.append(self._last_message(event))
            elif piece := self._texts[event.content_index].append(event.tokens):
                messages.append(pb.StreamTranslateTextResponse(content_index=event.content_index, text=piece))
        return messages

    def _last_message(self, event: Ended) -> pb.StreamTranslateTextResponse:
        index, result = event
        translation = translation_of(self._job, self._job.sources[index], result)
        self._job.model.metrics.delivered(translation.output_token_count)
        finished = result.outcome is Outcome.FINISHED
        piece = self._texts[index].finish(result.hypotheses[0].tokens) if finished else ""
        return pb.StreamTranslateTextResponse(content_index=index, text=piece, translation=translation)
