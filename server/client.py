"""A small synchronous client: a deadline on every call, retries of UNAVAILABLE only.

    with TranslationClient("127.0.0.1:50051") as client:
        for translation in client.translate(["A man is riding a bicycle."]):
            print(translation.text)

ClientError
├── Unavailable       no server, or one that is starting or leaving, after all retries
├── BadRequestError   fields of the request are wrong
└── CallFailed        anything else
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from dragoman.v1 import translation_pb2 as pb
from dragoman.v1.translation_pb2_grpc import TranslationServiceStub

DEFAULT_TIMEOUT_S = 60.0
_LARGEST_REPLY_BYTES = 64 * 1024 * 1024

# gRPC retries by itself, within the deadline and with jitter. A stream is retried only before its first message.
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": pb.DESCRIPTOR.services_by_name["TranslationService"].full_name}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
_OPTIONS = (
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.max_receive_message_length", _LARGEST_REPLY_BYTES),
    # A server that comes back is found within the retries.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
)


class ClientError(Exception):
    """A call failed.

    Attributes:
        code: gRPC status code.
        reason: ErrorInfo.reason, such as QUEUE_FULL; empty where the server sent none.
        violations: field path and description of every field at fault.
    """

    def __init__(
        self, message: str, *, code: grpc.StatusCode, reason: str = "", violations: Sequence[tuple[str, str]] = ()
    ) -> None:
        """Describe the failure."""
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.violations = tuple(violations)


class Unavailable(ClientError):  # noqa: N818 - the status it stands for
    """No server answered, or it is starting or leaving."""


class BadRequestError(ClientError):
    """Fields of the request are wrong."""


class CallFailed(ClientError):  # noqa: N818
    """The server, or the deadline, ended the call."""


class TranslationClient:
    """A connection to one server; thread-safe."""

    def __init__(
        self,
        server: str,
        *,
        model: str = "",
        source_language: str = "",
        target_language: str = "",
        decoding: pb.DecodingConfig | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        """Prepare a connection, which is made with the first call.

        Args:
            server: ``HOST:PORT``.
            model: name of the model; empty: the only one for the languages.
            source_language: BCP-47 code; empty: the model's only one.
            target_language: the same of the target.
            decoding: how to search; None: the model's defaults.
            timeout_s: deadline of each call, its retries included.
        """
        self._server = server
        self._channel = grpc.insecure_channel(server, options=_OPTIONS)
        self._stub = TranslationServiceStub(self._channel)
        self._model = model
        self._source_language = source_language
        self._target_language = target_language
        self._decoding = decoding
        self._timeout_s = timeout_s

    def translate(self, texts: Sequence[str]) -> list[pb.Translation]:
        """Translate all ``texts``; the translations come in their order.

        Raises:
            ClientError: the call failed. A text that failed alone has its ``status`` set instead.
        """
        request = pb.TranslateTextRequest(
            model=self._model,
            contents=texts,
            source_language_code=self._source_language,
            target_language_code=self._target_language,
            decoding_config=self._decoding,
        )
        try:
            return list(self._stub.TranslateText(request, timeout=self._timeout_s).translations)
        except grpc.RpcError as error:
            raise self._explain(error) from error

    def stream(self, texts: Sequence[str]) -> Iterator[pb.StreamTranslateTextResponse]:
        """Translate all ``texts`` and hand over their pieces as they come.

        Raises:
            ClientError: the call failed.
        """
        request = pb.StreamTranslateTextRequest(
            model=self._model,
            contents=texts,
            source_language_code=self._source_language,
            target_language_code=self._target_language,
            decoding_config=self._decoding,
        )
        call = self._stub.StreamTranslateText(request, timeout=self._timeout_s)
        try:
            yield from call
        except grpc.RpcError as error:
            raise self._explain(error) from error
        finally:
            call.cancel()  # the caller may have stopped listening

    def close(self) -> None:
        """Close the connection; calls in progress fail."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        self.close()

    def _explain(self, error: Any) -> ClientError:
        reason = ""
        violations: list[tuple[str, str]] = []
        status = rpc_status.from_call(error)
        for detail in status.details if status is not None else ():
            info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
            if detail.Unpack(info):
                reason = info.reason
            elif detail.Unpack(bad_request):
                violations += [(violation.field, violation.description) for violation in bad_request.field_violations]
        code = error.code()
        message = f"{self._server}: {code.name}: {error.details()}"
        if code is grpc.StatusCode.UNAVAILABLE:
            if not reason:
                message = f"no Dragoman server answers at {self._server}"
            return Unavailable(message, code=code, reason=reason)
        if violations:
            return BadRequestError(message, code=code, reason=reason, violations=violations)
        return CallFailed(message, code=code, reason=reason)
