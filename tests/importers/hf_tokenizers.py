"""Tokenizer directories as Hugging Face has them, and what transformers makes of them."""

from __future__ import annotations

import io
import json
import random
import warnings
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
import transformers

from model.tokenizer import Tokenizer
from tests.importers.lines import odd_lines, plain_lines

LINES = odd_lines(500, seed=17)


def train_pieces(lines: Iterable[str], kind: str, size: int, **options: Any) -> bytes:
    """A SentencePiece model trained on ``lines``."""
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=buffer,
        model_type=kind,
        vocab_size=size,
        minloglevel=2,
        num_threads=1,
        **options,
    )
    return buffer.getvalue()


@cache
def piece_model(kind: str, size: int, *, seed: int = 1, rule: str = "nmt_nfkc", **options: Any) -> bytes:
    """A SentencePiece model trained on text of our own in several scripts."""
    return train_pieces(plain_lines(1500, seed=seed), kind, size, normalization_rule_name=rule, **options)


def text_pieces(model: bytes) -> list[str]:
    """The pieces of a SentencePiece model without unk, bos and eos."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [processor.id_to_piece(token) for token in range(3, processor.vocab_size())]


def write_json(path: Path, values: object) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")


def write_vocab(path: Path, pieces: Sequence[str], *, seed: int | None = None) -> dict[str, int]:
    """Write pieces with their ids, shuffled where there is a seed; returns the ids."""
    ordered = list(dict.fromkeys(pieces))
    if seed is not None:
        random.Random(seed).shuffle(ordered)
    vocab = {piece: token for token, piece in enumerate(ordered)}
    write_json(path, vocab)
    return vocab


def added(token: str, *, special: bool = True) -> dict[str, Any]:
    """A token as transformers 4 wrote it into tokenizer_config.json."""
    lstrip = token == "<mask>"
    return {
        "content": token,
        "lstrip": lstrip,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": special,
    }


@cache
def byte_pairs() -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    """A byte-level BPE trained on text of our own: vocabulary and merges."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(plain_lines(600, seed=3), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], tuple((left, right) for left, right in model["merges"])


def load_hf(kind: str, directory: Path, **options: Any) -> Any:
    """A tokenizer of transformers."""
    with warnings.catch_warnings():
        # Marian's asks for a library that it never calls.
        warnings.filterwarnings("ignore", message="Recommended: pip install sacremoses")
        return getattr(transformers, kind).from_pretrained(directory, **options)


def reloaded(tokenizer: Tokenizer, directory: Path) -> Tokenizer:
    """The tokenizer as a server finds it."""
    tokenizer.save(directory / "ours")
    return Tokenizer.load(directory / "ours")


def assert_same_ids(ours: Tokenizer, theirs: Any, **languages: str) -> None:
    """Hold that both give the same ids for every line."""
    for line in LINES:
        assert ours.encode(line, **languages) == theirs(line).input_ids, repr(line)


def assert_same_text(ours: Tokenizer, theirs: Any, *, ids: range) -> None:
    """Hold that both give the same text, for the ids of lines as targets and for ids drawn at random."""
    draw = random.Random(29)
    outputs = [theirs(text_target=line).input_ids for line in LINES]
    outputs += [draw.choices(ids, k=draw.randint(0, 30)) for _ in range(200)]
    for output in outputs:
        assert ours.decode(output) == theirs.decode(output, skip_special_tokens=True), output
