"""What ``dragoman serve`` is told: flag, else variable ``DRAGOMAN_*``, else TOML file, else default."""

from __future__ import annotations

import argparse
import enum
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.decoding.waiting import Order
from server.resources import cpu_count

VARIABLE_PREFIX = "DRAGOMAN_"


class ConfigError(ValueError):
    """A setting is wrong; the message names where it stands, what was got and what was wanted."""


class Target(enum.Enum):
    """What executes a bundle's graphs; names as in its manifest."""

    AUTO = "auto"
    """The best of the following that the bundle has graphs for and that can run here."""
    TENSORRT = "tensorrt"
    CUDA = "cuda"
    CPU = "cpu"

    @property
    def on_gpu(self) -> bool:
        """Whether it needs a GPU."""
        return self in (Target.TENSORRT, Target.CUDA)


_CPU_ROWS, _GPU_ROWS = 96, 128


@dataclass(frozen=True)
class Address:
    """Host and port; port 0: any that is free."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """The settings of a server.

    Attributes:
        models: a bundle or a directory of bundles; None: the bundled demo.
        listen: where gRPC is served.
        metrics: where ``/metrics`` is served.
        reflection: whether clients may ask for the service's description.
        allow_uncertified: whether a bundle without a valid certificate is served.
        target: what executes the graphs.
        engine_cache: where TensorRT engines are kept that a server has built; None: below the user's own cache.
        threads: CPU threads of a step that is alone; 0: as many as the process may use.
        workers: steps of a model that may run beside each other; 0: as many as ``threads`` on the CPU, where each is on
            one thread, and 1 on a GPU.
        max_rows: most live rows of a step; 0: 96 on the CPU, 128 on a GPU.
        shortlist: whether each text is translated with the target tokens of its own shortlist alone.
        admission: the order in which waiting texts are admitted.
        max_queue: most texts of one model that may wait.
        max_contents: most texts of one request.
        max_beam_size: most hypotheses of one search.
        max_source_bytes: most UTF-8 bytes of one text.
        lame_duck_s: seconds between SIGTERM and refusing new calls.
        grace_s: seconds that accepted calls then have to finish.
    """

    models: Path | None = None
    listen: Address = Address("127.0.0.1", 50051)
    metrics: Address = Address("127.0.0.1", 9464)
    reflection: bool = False
    allow_uncertified: bool = False
    target: Target = Target.AUTO
    engine_cache: Path | None = None
    threads: int = 0
    workers: int = 0
    max_rows: int = 0
    shortlist: bool = False
    admission: Order = Order.FAIR
    max_queue: int = 4096
    max_contents: int = 1024
    max_beam_size: int = 16
    max_source_bytes: int = 32 * 1024
    lame_duck_s: float = 2.5
    grace_s: float = 30.0

    @property
    def step_threads(self) -> int:
        """``threads``, as many as that comes to here."""
        return self.threads or cpu_count()

    def workers_on(self, target: Target) -> int:
        """``workers``, as many as that comes to."""
        return self.workers or (1 if target.on_gpu else self.step_threads)

    def rows_on(self, target: Target) -> int:
        """``max_rows``, as many as that comes to."""
        return self.max_rows or (_GPU_ROWS if target.on_gpu else _CPU_ROWS)


@dataclass(frozen=True)
class Setting:
    """One setting as people write it.

    Attributes:
        name: of the flag ``--name``, the key in the file, and in capitals the variable.
        field: of ServeConfig.
        parse: text to value; raises ValueError with what was wanted.
        help: for ``--help``.
        metavar: of the flag's value; empty: the flag has none.
    """

    name: str
    field: str
    parse: Callable[[str], Any]
    help: str
    metavar: str = ""

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return VARIABLE_PREFIX + self.name.upper().replace("-", "_")


def parse_address(text: str) -> Address:
    """Read ``HOST:PORT``; an IPv6 host stands in brackets.

    Raises:
        ValueError: what was wanted.
    """
    host, colon, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    bracketed = host.startswith("[")
    if not (text.isascii() and colon and bare and port.isdigit()) or (":" in bare) != bracketed:
        raise ValueError("HOST:PORT")
    if int(port) > 65535:
        raise ValueError("a port from 0 to 65535")
    return Address(bare, int(port))


def _whole_number(least: int, most: int = 1_000_000) -> Callable[[str], int]:
    def parse(text: str) -> int:
        number = text.removeprefix("-")
        if not (number.isascii() and number.isdigit()) or not least <= int(text) <= most:
            raise ValueError(f"a whole number from {least} to {most}")
        return int(text)

    return parse


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0.0 <= seconds <= 86400.0:
        raise ValueError("seconds from 0 to 86400")
    return seconds


def _order(text: str) -> Order:
    try:
        return Order(text)
    except ValueError:
        raise ValueError(" or ".join(order.value for order in Order)) from None


def _target(text: str) -> Target:
    try:
        return Target(text)
    except ValueError:
        raise ValueError(f"one of {', '.join(target.value for target in Target)}") from None


def _switch(text: str) -> bool:
    values = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in values:
        raise ValueError("true or false")
    return values[text.lower()]


def _path(text: str) -> Path:
    if not text:
        raise ValueError("a path")
    return Path(text)


SETTINGS = (
    Setting("models", "models", _path, "a bundle or a directory of bundles (default: the bundled demo)", "PATH"),
    Setting("listen", "listen", parse_address, "gRPC address (default: 127.0.0.1:50051)", "HOST:PORT"),
    Setting("metrics", "metrics", parse_address, "address of /metrics (default: 127.0.0.1:9464)", "HOST:PORT"),
    Setting("reflection", "reflection", _switch, "answer gRPC server reflection"),
    Setting("allow-uncertified", "allow_uncertified", _switch, "serve bundles that have no valid certificate"),
    Setting("target", "target", _target, "auto, tensorrt, cuda or cpu (default: auto, the best that runs here)", "T"),
    Setting("engine-cache", "engine_cache", _path, "where built TensorRT engines are kept (default: ~/.cache)", "DIR"),
    Setting("threads", "threads", _whole_number(0, 1024), "CPU threads of a step (default: all it may use)", "N"),
    Setting("workers", "workers", _whole_number(0, 1024), "steps beside each other (default: --threads; GPU: 1)", "N"),
    Setting("max-rows", "max_rows", _whole_number(4, 512), "most live rows of a step (default: 96; GPU: 128)", "N"),
    Setting("shortlist", "shortlist", _switch, "choose from the target tokens that the bundle's shortlist names"),
    Setting("admission", "admission", _order, "fair or longest-first among waiting texts (default: fair)", "ORDER"),
    Setting("max-queue", "max_queue", _whole_number(1), "most texts of a model that may wait (default: 4096)", "N"),
    Setting("max-contents", "max_contents", _whole_number(1), "most texts of a request (default: 1024)", "N"),
    Setting("max-beam-size", "max_beam_size", _whole_number(1, 512), "largest beam (default: 16)", "N"),
    Setting("max-source-bytes", "max_source_bytes", _whole_number(1, 1 << 22), "longest text (default: 32768)", "N"),
    Setting("lame-duck", "lame_duck_s", _seconds, "seconds from SIGTERM to refusing calls (default: 2.5)", "S"),
    Setting("grace", "grace_s", _seconds, "seconds accepted calls then have to finish (default: 30)", "S"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--config`` and a flag for every setting."""
    parser.add_argument("--config", metavar="FILE.toml", help=f"settings file (variable: {VARIABLE_PREFIX}CONFIG)")
    for setting in SETTINGS:
        if setting.metavar:
            parser.add_argument(f"--{setting.name}", metavar=setting.metavar, help=setting.help)
        else:
            parser.add_argument(f"--{setting.name}", action="store_const", const="true", help=setting.help)


def read_config(flags: Mapping[str, Any], *, environ: Mapping[str, str]) -> ServeConfig:
    """Put the settings together.

    Args:
        flags: what argparse made of the command line; None stands for a flag that was not given.
        environ: the environment. Variables that name no setting are left alone: Kubernetes sets some of its own,
            such as ``DRAGOMAN_PORT``.

    Raises:
        ConfigError: a value is wrong, or the file cannot be read or holds an unknown key.
    """
    path = flags.get("config") or environ.get(VARIABLE_PREFIX + "CONFIG")
    in_file = _read_file(Path(path)) if path else {}
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        flag = flags.get(setting.name.replace("-", "_"))
        if flag is not None:
            values[setting.field] = _parse(setting, flag, where=f"--{setting.name}")
        elif setting.variable in environ:
            values[setting.field] = _parse(setting, environ[setting.variable], where=setting.variable)
        elif setting.name in in_file:
            values[setting.field] = _parse(setting, in_file[setting.name], where=f"{path}: {setting.name}")
    config = ServeConfig(**values)
    if config.shortlist and config.target.on_gpu:
        raise ConfigError(f"--shortlist: got it with --target {config.target.value}, wanted it with --target cpu")
    return config


def _parse(setting: Setting, text: str, *, where: str) -> Any:
    try:
        return setting.parse(text)
    except ValueError as error:
        raise ConfigError(f"{where}: got {text[:200]!r}, wanted {error}") from error


def _read_file(path: Path) -> dict[str, str]:
    """Settings of a TOML file by name, as text; ``lame_duck`` is as good as ``lame-duck``."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: no TOML: {error}") from error
    known = {setting.name for setting in SETTINGS}
    texts = {}
    for key, value in content.items():
        name = key.replace("_", "-")
        if name not in known:
            raise ConfigError(f"{path}: got key {key!r}, wanted one of {', '.join(sorted(known))}")
        if not isinstance(value, str | int | float):
            raise ConfigError(f"{path}: {key}: got {type(value).__name__}, wanted a text, number or boolean")
        if name in texts:
            raise ConfigError(f"{path}: got {name} twice, with - and with _, wanted it once")
        texts[name] = str(value)
    return texts
