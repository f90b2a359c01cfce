"""``dragoman import nllb``: NLLB-200 and M2M-100 directories of Hugging Face.

Pre-norm with final norms, fairseq's sinusoids; the request's languages choose a token on both sides.

Source: transformers 5.23, models/m2m_100/modeling_m2m_100.py; NLLB team 2022; Fan et al. 2020.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from model.checkpoint import Checkpoint
from model.config import NormPlacement, Positions, TransformerConfig
from model.importers.card import Naming
from model.importers.huggingface import (
    FINAL_NORMS,
    assemble,
    find_embeddings,
    finish,
    make_config,
    open_directory,
    pair_origins,
    target_languages,
    token_languages,
)
from model.importers.tokenizers import m2m100_tokenizer, nllb_tokenizer
from model.transformer import sinusoidal_positions
from model.weight_files import read_directory

# Old files hold the table that is computed today.
_POSITIONS = ("model.encoder.embed_positions.weights", "model.decoder.embed_positions.weights")


def read_nllb(path: Path, naming: Naming) -> Checkpoint:
    """Read an NLLB-200 or M2M-100 directory.

    Raises:
        CheckpointError: a file is missing or broken, or the model is not one that can be imported faithfully.
        TokenizerError: its tokenizer cannot be read.
    """
    directory = open_directory(path, model_types=("m2m_100",))
    settings, generation = directory.config, directory.generation
    # Of the two, M2M-100 alone keeps its ids outside the SentencePiece model.
    tokenizer = m2m100_tokenizer(path) if (path / "vocab.json").is_file() else nllb_tokenizer(path)
    stored = read_directory(path)
    embeddings = find_embeddings(directory, stored, shared=True)
    config = make_config(
        directory,
        stored,
        tokenizer=tokenizer,
        tied=embeddings.tied,
        norm=NormPlacement.PRE,
        positions=Positions.SINUSOIDAL_FAIRSEQ,
        # The positions before are the padding token's and the unused ones of the tokens before it.
        position_offset=generation.pad_id + 1,
        scale_embeddings=settings.flag("scale_embedding", True),
        family="m2m100",
    )
    model = assemble(
        directory,
        stored,
        config=config,
        origins=pair_origins(FINAL_NORMS),
        embeddings=embeddings,
        tables=dict.fromkeys(_POSITIONS, _stored_positions(config)),
    )
    return finish(
        directory,
        model,
        tokenizer,
        naming=naming,
        sources=token_languages(tokenizer),
        targets=target_languages(directory, tokenizer),
    )


def _stored_positions(config: TransformerConfig) -> Tensor:
    """The table as fairseq kept it: positions before the first token's too, the padding token's zero."""
    first = config.position_offset
    table = sinusoidal_positions(config.positions, first=0, count=config.max_positions + 2, d_model=config.d_model)
    if first - 1 < len(table):
        table[first - 1] = 0.0
    return table
