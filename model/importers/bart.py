"""``dragoman import bart``: BART and mBART-50 directories of Hugging Face.

Learned positions that begin behind two unused ones, normed embeddings, a bias of the logits; BART is post-norm, mBART
pre-norm with final norms.

Source: transformers 5.23, models/bart/modeling_bart.py and models/mbart/modeling_mbart.py; Lewis et al. 2019; Tang et
al. 2020.
"""

from __future__ import annotations

from pathlib import Path

from model.checkpoint import Checkpoint
from model.config import NormPlacement, Positions
from model.importers.card import Naming
from model.importers.huggingface import (
    FINAL_NORMS,
    Directory,
    assemble,
    find_embeddings,
    finish,
    make_config,
    open_directory,
    pair_origins,
    target_languages,
    token_languages,
)
from model.importers.tokenizers import bart_tokenizer, mbart50_tokenizer
from model.tokenizer import Tokenizer
from model.weight_files import CheckpointError, read_directory
from model.weights import Origin

_UNUSED_POSITIONS = 2
_EMBEDDING_NORMS = {
    "source_embedding.norm": "model.encoder.layernorm_embedding",
    "target_embedding.norm": "model.decoder.layernorm_embedding",
}
_MBART25_TOKENIZERS = ("MBartTokenizer", "MBartTokenizerFast")


def read_bart(path: Path, naming: Naming) -> Checkpoint:
    """Read a BART or mBART-50 directory.

    Raises:
        CheckpointError: a file is missing or broken, or the model is not one that can be imported faithfully.
        TokenizerError: its tokenizer cannot be read.
    """
    directory = open_directory(path, model_types=("bart", "mbart"))
    settings = directory.config
    multilingual = settings.text("model_type") == "mbart"
    tokenizer = _tokenizer(directory, multilingual=multilingual)
    stored = read_directory(path)
    embeddings = find_embeddings(directory, stored, shared=True)
    config = make_config(
        directory,
        stored,
        tokenizer=tokenizer,
        tied=embeddings.tied,
        norm=NormPlacement.PRE if multilingual else NormPlacement.POST,
        positions=Positions.LEARNED,
        embedding_norm=True,
        scale_embeddings=settings.flag("scale_embedding", False),
        family=settings.text("model_type"),
    )
    origins = {
        "source_embedding.position": Origin("model.encoder.embed_positions.weight", skip=_UNUSED_POSITIONS),
        "target_embedding.position": Origin("model.decoder.embed_positions.weight", skip=_UNUSED_POSITIONS),
        **pair_origins(_EMBEDDING_NORMS),
        **(pair_origins(FINAL_NORMS) if multilingual else {}),
    }
    model = assemble(directory, stored, config=config, origins=origins, embeddings=embeddings)
    return finish(
        directory,
        model,
        tokenizer,
        naming=naming,
        sources=token_languages(tokenizer),
        targets=target_languages(directory, tokenizer),
    )


def _tokenizer(directory: Directory, *, multilingual: bool) -> Tokenizer:
    forced = directory.generation.forced_ids
    if not multilingual:
        return bart_tokenizer(directory.path, forced_ids=forced)
    if directory.tokenizer_config.text("tokenizer_class", "") in _MBART25_TOKENIZERS:
        # It begins outputs with the language instead of the end token: another family than mBART-50.
        raise directory.tokenizer_config.fault("tokenizer_class", "MBart50Tokenizer: mBART-25 is not supported")
    if directory.generation.start_id != directory.generation.eos_id:
        raise CheckpointError(
            f"{directory.path}: decoder_start_token_id: got {directory.generation.start_id}, "
            f"wanted the end token {directory.generation.eos_id} as mBART-50 has it"
        )
    return mbart50_tokenizer(directory.path)
