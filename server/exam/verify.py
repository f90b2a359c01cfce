"""``dragoman verify``: does this bundle, on this runner and device, answer as its reference does?"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from server.config import Target


def add_verify_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``verify``; what it needs is imported only when it runs."""
    verify = commands.add_parser("verify", help="let a bundle sit its exam and write its certificate")
    verify.add_argument("bundle", type=Path, metavar="BUNDLE", help="directory that `dragoman export` wrote")
    verify.add_argument("--golden", type=Path, metavar="FILE", help="a further golden set (.jsonl) to be held to")
    verify.add_argument(
        "--references",
        type=Path,
        metavar="FILE",
        help="people's translations, one line per sentence of the golden set (default: those it holds)",
    )
    verify.add_argument(
        "--out", type=Path, metavar="FILE", help="certificate to write (default: BUNDLE/certificate.json)"
    )
    verify.add_argument(
        "--threads", type=_positive, metavar="N", help="CPU threads (default: all this process may use)"
    )
    verify.add_argument(
        "--target",
        choices=[target.value for target in Target if target is not Target.AUTO],
        default=Target.CPU.value,
        help="what is to run it, in an exam of its own (default: cpu); tensorrt builds engines that are not there yet",
    )
    verify.add_argument(
        "--engine-cache", type=Path, metavar="DIR", help="where TensorRT engines are kept (default: ~/.cache)"
    )
    verify.add_argument(
        "--shortlist", action="store_true", help="as `dragoman serve --shortlist` would run it, in an exam of its own"
    )
    verify.add_argument(
        "--min-exact",
        type=_rate,
        metavar="R",
        help="least share of sentences with the reference's token ids, 0 to 1 (default: 1 for fp32 without "
        "--shortlist, else not asked)",
    )
    verify.add_argument(
        "--max-log-prob-difference",
        type=_finite,
        metavar="D",
        help="most by which a token's log-prob may differ from the reference decoder's (default: 0.001 for fp32 "
        "without --shortlist, else not asked)",
    )
    verify.add_argument(
        "--max-bleu-loss",
        type=_finite,
        metavar="B",
        help="most BLEU below the reference decoder's, judged on the set with the most translations by people "
        "(default: not asked of fp32 without --shortlist, else 0.2)",
    )
    verify.set_defaults(run=run_verify)


def _positive(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {text[:64]!r}, wanted a whole number of at least 1")
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _finite(text: str) -> float:
    if not math.isfinite(number := _number(text)):
        raise argparse.ArgumentTypeError(f"got {text[:64]!r}, wanted a number")
    return number


def _rate(text: str) -> float:
    if not 0.0 <= (number := _number(text)) <= 1.0:
        raise argparse.ArgumentTypeError(f"got {text[:64]!r}, wanted a number from 0 to 1")
    return number


def run_verify(arguments: argparse.Namespace) -> int:
    """Verify a bundle; returns the exit code: 0 where it is certified, else 1."""
    # Not at the top: every command builds this one's parser, and a server should not pay for sacreBLEU's memory.
    from server.exam.certify import Request, verify_bundle  # noqa: PLC0415

    target = Target(arguments.target)
    if arguments.shortlist and target.on_gpu:
        wrong = f"--shortlist: got it with --target {target.value}, wanted --target cpu"
        print(f"dragoman verify: {wrong}", file=sys.stderr)
        return 2
    request = Request(
        path=arguments.bundle,
        golden=arguments.golden,
        references=arguments.references,
        out=arguments.out,
        threads=arguments.threads,
        target=target,
        engine_cache=arguments.engine_cache,
        shortlist=arguments.shortlist,
        min_exact_rate=arguments.min_exact,
        max_log_prob_difference=arguments.max_log_prob_difference,
        max_bleu_loss=arguments.max_bleu_loss,
    )
    return verify_bundle(request)
