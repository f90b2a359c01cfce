"""TensorRT as it is installed: ``tensorrt``, or ``tensorrt_rtx_bindings``, which has the same interface.

The one place that imports either of them, and only when it is asked to.
"""

from __future__ import annotations

import functools
import importlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from export.runners.gpu.cuda import Gpu
from export.runners.gpu.device import DeviceUnavailableError

_log = logging.getLogger(__name__)

LibraryName = Literal["tensorrt", "tensorrt-rtx"]
_MODULES: dict[LibraryName, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx_bindings"}
_INSTALL = (
    "TensorRT: not installed; `pip install 'dragoman[tensorrt]'`, or 'dragoman[tensorrt-rtx]' for GeForce and RTX cards"
)
_NOT_BY_DEFAULT = {"SM75", "SM80"}
"""Kinds that an engine runs on only where it was built for nothing else."""

_NO_GPU = "got no GPU that it can use, wanted an NVIDIA GPU with its driver"


@dataclass
class Messages:
    """What a library said.

    Attributes:
        errors: each a line, first one first.
        warnings: likewise.
    """

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def reason(self, otherwise: str) -> str:
        """The first error, which the later ones follow from; ``otherwise`` where there is none."""
        return self.errors[0] if self.errors else otherwise


class TensorrtLibrary:
    """One installed library.

    Attributes:
        name: ``tensorrt`` or ``tensorrt-rtx``.
        version: as it says itself.
        api: its module.
        logger: what its builders, parsers and runtimes are made with; the library keeps the first that it is given.
    """

    def __init__(self, name: LibraryName, api: Any) -> None:
        """Wrap the module ``api``."""
        self.name = name
        self.version = str(api.__version__)
        self.api = api
        self._listeners: list[Messages] = []
        self.logger = _logger_class(api)(self._listeners)

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    @property
    def portable(self) -> bool:
        """Whether an engine runs on every GPU that the library knows: TensorRT-RTX compiles for the one it meets."""
        return self.name == "tensorrt-rtx"

    def check_gpu(self, gpu: Gpu) -> None:
        """Hold that engines run on ``gpu``: TensorRT-RTX compiles for some kinds alone, and tells as it loads.

        Raises:
            DeviceUnavailableError: they do not; one line says what to install.
        """
        if not self.portable:
            return
        known = {name for name in dir(self.api.ComputeCapability) if re.fullmatch(r"SM\d+", name)} - _NOT_BY_DEFAULT
        if f"SM{gpu.capability.replace('.', '')}" not in known:
            kinds = ", ".join(f"{number[:-1]}.{number[-1]}" for number in sorted(name[2:] for name in known))
            raise DeviceUnavailableError(
                f"{self}: got {gpu.name} of compute capability {gpu.capability}, wanted one of {kinds}; "
                "for others `pip install 'dragoman[tensorrt]'`"
            )

    @contextmanager
    def listening(self) -> Iterator[Messages]:
        """Collect what the library says from here on; to all who listen at once it says the same."""
        messages = Messages()
        self._listeners.append(messages)
        try:
            yield messages
        finally:
            self._listeners[:] = [listener for listener in self._listeners if listener is not messages]

    def builder(self) -> Any:
        """What builds engines.

        Raises:
            DeviceUnavailableError: it needs a GPU, and there is none.
        """
        with self.listening() as messages:
            try:
                return self.api.Builder(self.logger)
            except TypeError as error:  # how the bindings say that the library gave them none
                raise DeviceUnavailableError(f"{self}: {messages.reason(_NO_GPU)}") from error

    def network(self, builder: Any) -> Any:
        """An empty network that computes in the types of its graph; where there is no such flag, all networks do."""
        strongly_typed = getattr(self.api.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        return builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))


def find_library(name: LibraryName | None = None) -> TensorrtLibrary:
    """The library that is installed; ``tensorrt`` where both are.

    Args:
        name: which one; None: any.

    Raises:
        DeviceUnavailableError: there is none, or it is too old; one line says what to install.
    """
    for known in _MODULES:
        if name in (None, known):
            try:
                library = _load(known)
            except (ImportError, OSError) as error:  # OSError: its own libraries are not where it looks
                _log.debug("%s: %s", known, error)
                continue
            if not hasattr(library.api.LayerType, "KV_CACHE_UPDATE"):
                wanted = "one that updates caches in place: tensorrt 10.15 or tensorrt-rtx 1.7, or newer"
                raise DeviceUnavailableError(f"{library.name}: got {library.version}, wanted {wanted}")
            return library
    raise DeviceUnavailableError(_INSTALL)


@functools.cache
def _load(name: LibraryName) -> TensorrtLibrary:
    """Once in a process: the library keeps the first logger that it is given."""
    return TensorrtLibrary(name, importlib.import_module(_MODULES[name]))


def _logger_class(api: Any) -> Any:
    """The library's logger interface, implemented."""

    class Logger(api.ILogger):  # type: ignore[misc]  # the base class is known only here
        def __init__(self, listeners: list[Messages]) -> None:
            super().__init__()
            self._listeners = listeners

        def log(self, severity: Any, message: str) -> None:
            """Pass one message on; the library calls this from threads of its own, too."""
            worst = severity in (api.ILogger.INTERNAL_ERROR, api.ILogger.ERROR)
            if not worst and severity != api.ILogger.WARNING:
                return  # a build says a great deal more
            line = " ".join(str(message).split())
            for messages in tuple(self._listeners):
                (messages.errors if worst else messages.warnings).append(line)

    return Logger
