"""``dragoman import marian``: MarianMT directories of Hugging Face, that is any opus-mt model.

Post-norm, sinusoids in halves, a bias of the logits; source and target may have vocabularies of their own.

Source: transformers 5.23, models/marian/modeling_marian.py; Junczys-Dowmunt et al. 2018, "Marian".
"""

from __future__ import annotations

from pathlib import Path

from model.checkpoint import Checkpoint
from model.config import Positions
from model.importers.card import Languages, Naming
from model.importers.huggingface import (
    Directory,
    assemble,
    find_embeddings,
    finish,
    make_config,
    open_directory,
    token_languages,
)
from model.importers.tokenizers import marian_tokenizer, served_code
from model.transformer import sinusoidal_positions
from model.weight_files import CheckpointError, read_directory

_POSITIONS = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")


def read_marian(path: Path, naming: Naming) -> Checkpoint:
    """Read a MarianMT directory.

    Raises:
        CheckpointError: a file is missing or broken, or the model is not one that can be imported faithfully.
        TokenizerError: its tokenizer cannot be read.
    """
    directory = open_directory(path, model_types=("marian",))
    if directory.generation.forced_ids:
        raise CheckpointError(
            f"{path}: forced_bos_token_id: got {directory.generation.forced_ids[0]}, wanted none for a Marian model"
        )
    tokenizer = marian_tokenizer(path)
    settings = directory.config
    stored = read_directory(path)
    shared = settings.flag("share_encoder_decoder_embeddings", True)
    embeddings = find_embeddings(directory, stored, shared=shared)
    source_vocab_size = settings.integer("vocab_size")
    config = make_config(
        directory,
        stored,
        tokenizer=tokenizer,
        tied=embeddings.tied,
        target_vocab_size=source_vocab_size if shared else settings.integer("decoder_vocab_size", source_vocab_size),
        positions=Positions.SINUSOIDAL_HALVES,
        scale_embeddings=settings.flag("scale_embedding", False),
        family="marian",
    )
    table = sinusoidal_positions(config.positions, first=0, count=config.max_positions, d_model=config.d_model)
    model = assemble(
        directory, stored, config=config, origins={}, embeddings=embeddings, tables=dict.fromkeys(_POSITIONS, table)
    )
    return finish(
        directory,
        model,
        tokenizer,
        naming=naming,
        sources=_named_language(directory, "source_lang"),
        targets=token_languages(tokenizer) if tokenizer.language_ids else _named_language(directory, "target_lang"),
    )


def _named_language(directory: Directory, field: str) -> Languages:
    code = directory.tokenizer_config.text(field, "")
    return Languages(named=(served_code(code),) if code else ())
