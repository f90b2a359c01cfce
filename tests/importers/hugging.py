"""Hugging Face directories with random weights, one for every shape that the importers know."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from tests.importers.hf_tokenizers import text_pieces, train_pieces, write_json

EOS_BOOST = 2.2
EMBEDDING_STD = 1.0
Configure = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One random model.

    Attributes:
        toolkit: the importer.
        kind: class names in transformers begin with it.
        seed: of weights and sources.
        config: fields of the model's config.
        generation: fields of its generation_config.json.
        languages: own codes of source and target language; empty: the model has none.
    """

    toolkit: str
    kind: str
    seed: int
    config: dict[str, Any]
    generation: dict[str, Any] = field(default_factory=dict)
    languages: tuple[str, str] = ("", "")


def sizes(d_model: int, heads: int, layers: tuple[int, int], ffn: int, vocab: int) -> dict[str, Any]:
    """Sizes under Hugging Face's names."""
    return {
        "d_model": d_model,
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_layers": layers[0],
        "decoder_layers": layers[1],
        "encoder_ffn_dim": ffn,
        "decoder_ffn_dim": ffn,
        "vocab_size": vocab,
        "max_position_embeddings": 512,
    }


def build(drawing: Drawing, directory: Path) -> Any:
    """Write a model with its tokenizer files and return it, in eval mode."""
    torch.manual_seed(drawing.seed)
    config_class = getattr(transformers, f"{drawing.kind}Config")
    names = {"Marian": "MarianMTModel"}
    model_class = getattr(transformers, names.get(drawing.kind, f"{drawing.kind}ForConditionalGeneration"))
    model = model_class(config_class(**drawing.config)).eval()
    _draw_weights(model, eos_id=model.config.eos_token_id)
    for name, value in drawing.generation.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(directory)
    _TOKENIZER_FILES[drawing.kind](directory, model.config)
    return model


def _draw_weights(model: Any, *, eos_id: int) -> None:
    """Weights whose logits lie well apart and hang on the source, and an end token that comes now and then."""
    scale = model.config.d_model**0.5 if model.config.scale_embedding else 1.0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_positions" in name:
                if parameter.requires_grad:
                    parameter.normal_(std=0.5)
            elif parameter.ndim == 2 and ("embed" in name or "shared" in name or "lm_head" in name):
                parameter.normal_(std=max(EMBEDDING_STD / scale, 0.7 * parameter.shape[1] ** -0.5))
                parameter[eos_id] *= EOS_BOOST
            elif parameter.ndim == 2:
                nn.init.xavier_normal_(parameter, gain=_gain(name))
            elif "norm" in name and name.endswith("weight"):
                parameter.normal_(mean=1.0, std=0.3)
            else:
                parameter.normal_(std=0.1)
        bias = getattr(model, "final_logits_bias", None)
        if bias is not None:
            bias.normal_(std=0.3)


def _gain(name: str) -> float:
    """Sharp attention and a loud source: else every source gives the same output."""
    if "q_proj" in name or "k_proj" in name:
        return 2.5
    return 4.0 if "encoder_attn" in name else 1.0


@cache
def piece_model(kind: str, size: int) -> bytes:
    """A SentencePiece model so small that it fits any vocabulary drawn here, trained on made-up words."""
    draw = random.Random(size)
    words = ["".join(draw.choices("aeiourstnlmdkp", k=draw.randint(1, 9))) for _ in range(600)]
    return train_pieces([" ".join(draw.choices(words, k=draw.randint(2, 12))) for _ in range(800)], kind, size)


def _marian(directory: Path, config: Any) -> None:
    model = piece_model("unigram", 90)
    pieces = text_pieces(model)
    separate = not config.share_encoder_decoder_embeddings
    for name, size in (("vocab.json", config.vocab_size), ("target_vocab.json", config.decoder_vocab_size)):
        if name == "vocab.json" or separate:
            filler = [f"filler{number}" for number in range(size - len(pieces) - 3)]
            ordered = ["</s>", "<unk>", *pieces, *filler]
            vocab = {piece: token for token, piece in enumerate(ordered)}
            # The padding token has one id on both sides, whatever their sizes.
            vocab = {piece: token + (token >= config.pad_token_id) for piece, token in vocab.items()}
            write_json(directory / name, {**vocab, "<pad>": config.pad_token_id})
    (directory / "source.spm").write_bytes(model)
    (directory / "target.spm").write_bytes(model)
    settings = {"source_lang": "eng", "target_lang": "fra", "separate_vocabs": separate}
    write_json(directory / "tokenizer_config.json", {**settings, "tokenizer_class": "MarianTokenizer"})


def _m2m100(directory: Path, config: Any) -> None:
    model = piece_model("bpe", 90)
    if config.vocab_size < 300:
        ordered = ["<s>", "<pad>", "</s>", "<unk>", *text_pieces(model)]
        write_json(directory / "vocab.json", {piece: token for token, piece in enumerate(ordered)})
        write_json(directory / "tokenizer_config.json", {"tokenizer_class": "M2M100Tokenizer"})
    else:
        write_json(directory / "tokenizer_config.json", {"tokenizer_class": "NllbTokenizer"})
    (directory / "sentencepiece.bpe.model").write_bytes(model)


def _mbart(directory: Path, config: Any) -> None:
    (directory / "sentencepiece.bpe.model").write_bytes(piece_model("unigram", 90))
    write_json(directory / "tokenizer_config.json", {"tokenizer_class": "MBart50Tokenizer"})


def _bart(directory: Path, config: Any) -> None:
    # The bytes as byte-level BPE writes them: printable ones as themselves, the rest from U+0100 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = [chr(byte) for byte in printable] + [chr(256 + place) for place in range(len(others))]
    merges = ["t h", "th e", "i n", "a n", "an d", "Ġ a", "e r"]
    ordered = ["<s>", "<pad>", "</s>", "<unk>", *alphabet, *(merge.replace(" ", "") for merge in merges), "<mask>"]
    write_json(directory / "vocab.json", {piece: token for token, piece in enumerate(ordered)})
    (directory / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    write_json(directory / "tokenizer_config.json", {"tokenizer_class": "BartTokenizer"})


_TOKENIZER_FILES: dict[str, Callable[[Path, Any], None]] = {
    "Marian": _marian,
    "M2M100": _m2m100,
    "MBart": _mbart,
    "Bart": _bart,
}
