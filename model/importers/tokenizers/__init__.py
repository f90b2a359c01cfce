"""Tokenizers of Hugging Face directories: one function per family, without transformers."""

from model.importers.tokenizers.families import (
    bart_tokenizer,
    m2m100_tokenizer,
    marian_tokenizer,
    mbart50_tokenizer,
    nllb_tokenizer,
)
from model.importers.tokenizers.languages import served_code

__all__ = [
    "bart_tokenizer",
    "m2m100_tokenizer",
    "marian_tokenizer",
    "mbart50_tokenizer",
    "nllb_tokenizer",
    "served_code",
]
