"""Subcommands of the model floor: ``dragoman train`` and ``dragoman import``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

TOOLKITS = {
    "marian": "MarianMT, any opus-mt model (Hugging Face)",
    "nllb": "NLLB-200 and M2M-100 (Hugging Face)",
    "bart": "BART and mBART-50 (Hugging Face)",
    "torch": "a state_dict of torch.nn.Transformer or of our own, with a config.json",
}


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this floor's subcommands; torch is imported only when one of them runs."""
    train = commands.add_parser("train", help="train a model from parallel text; run again to resume")
    train.add_argument("--config", type=Path, required=True, metavar="FILE", help="training recipe (YAML)")
    train.add_argument("--data", type=Path, required=True, metavar="DIR", help="holds train.<lang>[.gz], val.<lang>")
    train.add_argument("--out", type=Path, required=True, metavar="CHECKPOINT", help="directory to write")
    train.set_defaults(run=run_train, extra="train")
    importer = commands.add_parser(
        "import",
        help="turn another toolkit's trained model into a checkpoint",
        description="Reads a model directory of another toolkit and writes a checkpoint that `dragoman export` takes. "
        "Every tensor is accounted for, and a setting that cannot be carried over is refused.",
    )
    described = "; ".join(f"{name}: {what}" for name, what in TOOLKITS.items())
    importer.add_argument("toolkit", choices=TOOLKITS, metavar="TOOLKIT", help=described)
    importer.add_argument("directory", type=Path, metavar="DIR", help="the model's directory")
    importer.add_argument("--out", type=Path, required=True, metavar="CHECKPOINT", help="directory to write")
    importer.add_argument("--name", default="", help="name it is served under (default: as its files say)")
    for side in ("source", "target"):
        importer.add_argument(
            f"--{side}-languages",
            type=_codes,
            default=(),
            metavar="CODE[,CODE...]",
            help="BCP-47 codes it is served for (default: as its files say)",
        )
    importer.add_argument("--license-note", default="", metavar="TEXT", help="licence of the weights and their data")
    importer.set_defaults(run=run_import, extra="export")


def _codes(text: str) -> tuple[str, ...]:
    codes = tuple(code.strip() for code in text.split(","))
    if not all(codes):
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted codes like en or de,fr")
    return codes


def run_train(arguments: argparse.Namespace) -> int:
    """Train, resuming where an earlier run of the same command stopped; returns the exit code."""
    from model.checkpoint import CheckpointError
    from model.config import ConfigError
    from model.data import DataError
    from model.tokenizer import TokenizerError
    from model.training.recipe import read_recipe
    from model.training.trainer import Trainer

    try:
        Trainer(read_recipe(arguments.config), data=arguments.data, out=arguments.out).run()
    except (CheckpointError, ConfigError, DataError, TokenizerError, OSError) as error:
        print(f"dragoman train: {error}", file=sys.stderr)
        return 1
    return 0


def run_import(arguments: argparse.Namespace) -> int:
    """Import another toolkit's model; returns the exit code."""
    from model.checkpoint import CheckpointError
    from model.importers import Naming, import_checkpoint
    from model.tokenizer import TokenizerError

    naming = Naming(
        name=arguments.name,
        source_languages=arguments.source_languages,
        target_languages=arguments.target_languages,
        license_note=arguments.license_note,
    )
    try:
        checkpoint = import_checkpoint(arguments.toolkit, arguments.directory, out=arguments.out, naming=naming)
    except (CheckpointError, TokenizerError, OSError) as error:
        print(f"dragoman import: {error}", file=sys.stderr)
        return 1
    card = checkpoint.card
    languages = " to ".join(_briefly(codes) for codes in (card.source_languages, card.target_languages))
    print(f"{arguments.out}: {card.name}, {checkpoint.model.config.architecture}, {languages}")
    return 0


def _briefly(codes: tuple[str, ...]) -> str:
    return ", ".join(codes) if len(codes) <= 5 else f"{len(codes)} languages"
