"""Fixtures of the model floor: a tiny corpus, its tokenizer and small seeded models."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.config import TransformerConfig
from model.tokenizer import Tokenizer, train_tokenizer
from model.transformer import Transformer

ENGLISH = [
    "man",
    "woman",
    "dog",
    "child",
    "runs",
    "sits",
    "sleeps",
    "red",
    "small",
    "the",
    "a",
    "on",
    "street",
    "bench",
]
GERMAN = [
    "Mann",
    "Frau",
    "Hund",
    "Kind",
    "rennt",
    "sitzt",
    "schläft",
    "rot",
    "klein",
    "der",
    "ein",
    "auf",
    "Straße",
    "Bank",
]


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of train.en, train.de, val.en, val.de: word-by-word translations."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(7)
    for split, count in (("train", 120), ("val", 12)):
        sentences = [[draw.randrange(len(ENGLISH)) for _ in range(draw.randint(2, 9))] for _ in range(count)]
        for language, words in (("en", ENGLISH), ("de", GERMAN)):
            lines = [" ".join(words[place] for place in sentence) for sentence in sentences]
            (folder / f"{split}.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A joint vocabulary of 48 tokens."""
    return train_tokenizer([" ".join(ENGLISH), " ".join(GERMAN)] * 20, vocab_size=48)


@pytest.fixture
def make_model() -> Callable[..., Transformer]:
    """Builds a seeded random model whose best tokens stand well apart."""

    def make(*, seed: int = 0, **fields: Any) -> Transformer:
        torch.manual_seed(seed)
        shape: dict[str, Any] = {
            "source_vocab_size": 41,
            "target_vocab_size": 41,
            "d_model": 24,
            "heads": 3,
            "encoder_layers": 2,
        }
        shape |= {"decoder_layers": 2, "ffn_dim": 40, "tied_embeddings": "none", "max_positions": 32}
        model = Transformer(TransformerConfig.from_dict(shape | fields))
        model.initialise()
        with torch.no_grad():
            model.output.weight.mul_(4)
        return model.eval()

    return make
