"""Every error a client can see, with its status code; the one place that turns them into google.rpc.Status.

ServiceError
├── InvalidRequest        INVALID_ARGUMENT     INVALID_FIELD         with BadRequest
├── Undecodable           INVALID_ARGUMENT     UNDECODABLE           with BadRequest
├── ModelNotFound         NOT_FOUND            MODEL_NOT_FOUND
├── NotCertified          FAILED_PRECONDITION  NOT_CERTIFIED
├── Loading               UNAVAILABLE          LOADING               with RetryInfo
├── Draining              UNAVAILABLE          DRAINING              with RetryInfo
├── QueueFullError        RESOURCE_EXHAUSTED   QUEUE_FULL            with RetryInfo
├── DeadlineUnmeetableError RESOURCE_EXHAUSTED DEADLINE_UNMEETABLE   with RetryInfo
├── DeadlineExceeded      DEADLINE_EXCEEDED    DEADLINE_EXCEEDED
└── Internal              INTERNAL             INTERNAL
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "dragoman"
STATUS_DETAILS_KEY = "grpc-status-details-bin"

# gRPC drops calls whose trailing metadata exceeds 8 KiB; violations beyond these are only counted.
_MOST_VIOLATIONS = 16
_LONGEST_QUOTE = 64


class Violation(NamedTuple):
    """One wrong field.

    Attributes:
        field: its path, such as ``contents[3]`` or ``decoding_config.beam_size``.
        description: what was got and what was wanted.
    """

    field: str
    description: str


def quote(text: str) -> str:
    """What a client sent, fit for a message: in quotes, control characters escaped, cut where it is long."""
    return repr(text if len(text) <= _LONGEST_QUOTE else text[: _LONGEST_QUOTE - 3] + "...")


class ServiceError(Exception):
    """A call fails in a way its client is told about.

    Attributes:
        code: gRPC status code of the class.
        reason: ErrorInfo.reason of the class.
        model: name of the model concerned; empty where none was found.
        retry_after_s: when it may be worth another try; None: not by waiting.
        violations: the fields at fault.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        model: str = "",
        retry_after_s: float | None = None,
        violations: Sequence[Violation] = (),
    ) -> None:
        """Make an error whose message the client will read."""
        super().__init__(message)
        self.message = message
        self.model = model
        self.retry_after_s = retry_after_s
        self.violations = violations


class InvalidRequest(ServiceError):  # noqa: N818 - the status it stands for
    """Fields of the request are wrong."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_FIELD"

    def __init__(self, violations: Sequence[Violation], *, model: str = "") -> None:
        """Report all ``violations`` together."""
        shown = [f"{violation.field}: {violation.description}" for violation in violations[:3]]
        if len(violations) > len(shown):
            shown.append(f"and {len(violations) - len(shown)} more")
        super().__init__("; ".join(shown), model=model, violations=violations)


class Undecodable(ServiceError):  # noqa: N818
    """The bytes of the request are no message of its type."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "UNDECODABLE"

    def __init__(self) -> None:
        """There is nothing else to say."""
        # The whole message is at fault: its path is empty.
        wanted = "got bytes that do not decode, wanted a protobuf message of the method's request type"
        super().__init__(f"request: {wanted}", violations=[Violation("", wanted)])


class ModelNotFound(ServiceError):  # noqa: N818
    """There is no model of that name."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "MODEL_NOT_FOUND"


class NotCertified(ServiceError):  # noqa: N818
    """The model has not passed its exam, so it does not serve."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "NOT_CERTIFIED"


class Loading(ServiceError):  # noqa: N818
    """The model is still loading, warming up or sitting its exam."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "LOADING"


class Draining(ServiceError):  # noqa: N818
    """The server is shutting down; another one may serve the call."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "DRAINING"


class QueueFullError(ServiceError):
    """Too many texts wait already."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "QUEUE_FULL"


class DeadlineUnmeetableError(ServiceError):
    """The call's turn would come after its deadline."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "DEADLINE_UNMEETABLE"


class DeadlineExceeded(ServiceError):  # noqa: N818
    """The call's deadline has passed."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class Internal(ServiceError):  # noqa: N818
    """Our fault; the log says what it was, the client learns nothing."""

    def __init__(self, *, model: str = "") -> None:
        """There is nothing to say to a client."""
        super().__init__("internal error", model=model)


REJECTIONS: tuple[type[ServiceError], ...] = (
    InvalidRequest,
    Undecodable,
    ModelNotFound,
    NotCertified,
    Loading,
    Draining,
    QueueFullError,
    DeadlineUnmeetableError,
)
"""Errors by which a call is turned away before anything was decoded."""

MODEL_LESS_REASONS = tuple(error.reason for error in (InvalidRequest, Undecodable, ModelNotFound, Draining, Loading))
"""Why a call may be turned away before its model is known."""

MODEL_REASONS = tuple(
    error.reason for error in (InvalidRequest, NotCertified, Loading, Draining, QueueFullError, DeadlineUnmeetableError)
)
"""Why a call of a known model may be turned away."""


def to_status(error: ServiceError) -> status_pb2.Status:
    """The status that carries ``error`` with all its details."""
    status = status_pb2.Status(code=error.code.value[0], message=error.message)
    metadata = {"model": error.model} if error.model else {}
    _attach(status, error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata))
    if error.violations:
        _attach(status, _bad_request(error.violations))
    if error.retry_after_s is not None:
        delay = Duration()
        delay.FromMilliseconds(max(1, round(error.retry_after_s * 1000)))
        _attach(status, error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def _bad_request(violations: Sequence[Violation]) -> error_details_pb2.BadRequest:
    bad_request = error_details_pb2.BadRequest()
    for violation in violations[:_MOST_VIOLATIONS]:
        bad_request.field_violations.add(field=violation.field, description=violation.description)
    return bad_request


def _attach(status: status_pb2.Status, detail: Message) -> None:
    status.details.add().Pack(detail)
