"""Subcommands of the model floor: ``dragoman train``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this floor's subcommands; torch is imported only when one of them runs."""
    train = commands.add_parser("train", help="train a model from parallel text; run again to resume")
    train.add_argument("--config", type=Path, required=True, metavar="FILE", help="training recipe (YAML)")
    train.add_argument("--data", type=Path, required=True, metavar="DIR", help="holds train.<lang>[.gz], val.<lang>")
    train.add_argument("--out", type=Path, required=True, metavar="CHECKPOINT", help="directory to write")
    train.set_defaults(run=run_train, extra="train")


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
