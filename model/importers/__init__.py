"""Importers: other toolkits' trained models as checkpoints of ours.

One module per family, each with the names of its tensors; what they share is in ``huggingface`` and ``model.weights``.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from model.checkpoint import Checkpoint, save_checkpoint
from model.importers.bart import read_bart
from model.importers.card import Naming
from model.importers.marian import read_marian
from model.importers.nllb import read_nllb
from model.importers.torch_transformer import read_torch
from model.weight_files import CheckpointError

__all__ = ["IMPORTERS", "Naming", "import_checkpoint"]

IMPORTERS: dict[str, Callable[[Path, Naming], Checkpoint]] = {
    "marian": read_marian,
    "nllb": read_nllb,
    "bart": read_bart,
    "torch": read_torch,
}


def import_checkpoint(toolkit: str, directory: Path, *, out: Path, naming: Naming) -> Checkpoint:
    """Read another toolkit's model and write it as a checkpoint, whole or not at all.

    Args:
        toolkit: one of ``IMPORTERS``.
        directory: the model's directory.
        out: directory to write, new or empty.
        naming: what the user says of the model.

    Raises:
        CheckpointError: the model cannot be imported faithfully, or ``out`` holds something else.
        TokenizerError: its tokenizer cannot be read.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise CheckpointError(f"{out}: got something that is there already, wanted a new or empty directory")
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: got no directory, wanted a model's")
    checkpoint = IMPORTERS[toolkit](directory, naming)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    try:
        save_checkpoint(staging, checkpoint)
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return checkpoint
