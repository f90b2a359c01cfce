"""The command line: every floor's subcommands put together. Heavy modules are imported only by what runs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import export.cli
import model.cli
from server.config import VARIABLE_PREFIX, ConfigError, add_arguments, parse_address, read_config
from server.exam.verify import add_verify_command

DEFAULT_SERVER = "127.0.0.1:50051"
EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

_OURS = ("dragoman", "export", "model", "server")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed, 2 usage, 130 Ctrl-C."""
    # Its C core would tell on standard error, in several lines, what we say in one.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    arguments = _parser().parse_args(argv)
    code = _run(arguments)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        # What is buffered has nowhere to go, also at the interpreter's end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            print(f"dragoman {arguments.command}: {error.strerror}", file=sys.stderr)
            return EXIT_FAILED
    return code


def _run(arguments: argparse.Namespace) -> int:
    try:
        code: int = arguments.run(arguments)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_FAILED
    except ModuleNotFoundError as error:
        extra = getattr(arguments, "extra", None)
        if extra is None or error.name is None or error.name.partition(".")[0] in _OURS:
            raise
        command = f"dragoman {arguments.command}"
        print(f'{command} needs: pip install "dragoman[{extra}]"', file=sys.stderr)
        return EXIT_USAGE
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dragoman", description="Trains, exports and serves translation models.")
    parser.add_argument("--version", action="version", version=f"dragoman {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_serve(commands)
    _add_translate(commands)
    model.cli.add_commands(commands)
    export.cli.add_commands(commands)
    add_verify_command(commands)
    return parser


def _version() -> str:
    try:
        return version("dragoman")
    except PackageNotFoundError:
        return "(not installed)"


def _add_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    serve = commands.add_parser(
        "serve",
        help="serve models over gRPC",
        description="Serves models over gRPC. A flag beats its variable DRAGOMAN_<FLAG>, which beats the file.",
    )
    add_arguments(serve)
    serve.set_defaults(run=_run_serve)


def _run_serve(arguments: argparse.Namespace) -> int:
    try:
        config = read_config(vars(arguments), environ=os.environ)
    except ConfigError as error:
        print(f"dragoman serve: {error}", file=sys.stderr)
        return EXIT_USAGE
    from server.serving import run_server

    return run_server(config)


def _add_translate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    translate = commands.add_parser("translate", help="translate texts, or lines from standard input")
    translate.add_argument(
        "--server", metavar="HOST:PORT", help=f"(default: {DEFAULT_SERVER}, variable: {VARIABLE_PREFIX}SERVER)"
    )
    translate.add_argument(
        "--model", type=_utf8, default="", metavar="NAME", help="default: the one that serves the languages"
    )
    translate.add_argument(
        "--beam-size", type=_int32, default=0, metavar="N", help="1 is greedy (default: the model's)"
    )
    translate.add_argument("--source-language", type=_utf8, default="", metavar="L", help="BCP-47 code")
    translate.add_argument("--target-language", type=_utf8, default="", metavar="L", help="BCP-47 code")
    translate.add_argument("--stream", action="store_true", help="print text as soon as it is final")
    translate.add_argument(
        "text", nargs="*", type=_utf8, metavar="TEXT", help="none: one text per line of standard input"
    )
    translate.set_defaults(run=_run_translate)


def _utf8(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError("got bytes that are not UTF-8") from error
    return text


def _int32(text: str) -> int:
    number = int(text) if text.removeprefix("-").isdecimal() else None
    if number is None or not -(1 << 31) <= number < 1 << 31:
        raise argparse.ArgumentTypeError(f"got {text[:64]!r}, wanted a whole number of 32 bits")
    return number


def _run_translate(arguments: argparse.Namespace) -> int:
    server = arguments.server or os.environ.get(VARIABLE_PREFIX + "SERVER") or DEFAULT_SERVER
    try:
        parse_address(server)
    except ValueError as error:
        print(f"dragoman translate: --server: got {server!r}, wanted {error}", file=sys.stderr)
        return EXIT_USAGE
    from server.translate.command import run_translate

    return run_translate(arguments, server=server)


if __name__ == "__main__":
    sys.exit(main())
