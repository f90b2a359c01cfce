"""The seeded model: a Marian of Transformer-base size whose weights are random and whose end token is barred.

Every output has the length that is asked for, so that nobody wins by stopping early.
"""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import sentencepiece
import torch
import transformers

VOCAB, PIECES, PAD, END = 32_000, 400, 31_999, 0
_NEVER = -1e4


def make_marian(directory: Path) -> None:
    """A MarianMT directory of base size, seeded."""
    torch.manual_seed(1)
    config = transformers.MarianConfig(
        vocab_size=VOCAB,
        d_model=512,
        encoder_layers=6,
        decoder_layers=6,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=2048,
        decoder_ffn_dim=2048,
        max_position_embeddings=512,
        activation_function="swish",
        scale_embedding=True,
        pad_token_id=PAD,
        decoder_start_token_id=PAD,
        eos_token_id=END,
        forced_eos_token_id=None,
    )
    model = transformers.MarianMTModel(config)
    model.final_logits_bias[0, END] = _NEVER
    model.generation_config.bad_words_ids = [[PAD]]
    model.save_pretrained(directory)
    draw = random.Random(1)
    lines = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz ", k=80)) for _ in range(2000)]
    spm = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=spm, vocab_size=PIECES, minloglevel=2
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=spm.getvalue())
    pieces = [processor.id_to_piece(token) for token in range(3, PIECES)]
    names = ["</s>", "<unk>", *pieces, *(f"filler{number}" for number in range(PAD - len(pieces) - 2)), "<pad>"]
    write_tokenizer(directory, names=names, spm=spm.getvalue())


def write_tokenizer(directory: Path, *, names: list[str], spm: bytes) -> None:
    """Write a MarianMT directory's tokenizer: the tokens' names in the order of their ids, one model for both sides."""
    (directory / "vocab.json").write_text(json.dumps({name: token for token, name in enumerate(names)}))
    for side in ("source", "target"):
        (directory / f"{side}.spm").write_bytes(spm)
    settings = {"source_lang": "eng", "target_lang": "fra", "tokenizer_class": "MarianTokenizer"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
