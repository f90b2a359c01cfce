"""Closing up the blanks before English punctuation and short forms.

Tokenizers that were saved with Hugging Face's ``clean_up_tokenization_spaces`` have their outputs treated so.
"""

from __future__ import annotations

# In this order, each over the whole text.
_SHORTER = (
    *((f" {mark}", mark) for mark in ".?!,"),
    (" ' ", "'"),
    *((f" {form}", form) for form in ("n't", "'m", "'s", "'ve", "'re")),
)


def clean_up(text: str) -> str:
    """The text without those blanks."""
    for long, short in _SHORTER:
        text = text.replace(long, short)
    return text


def settled(text: str) -> str:
    """The beginning of an unfinished text whose cleaned form does not depend on what follows."""
    # Words of at most two characters may still become a mark or a short form, together or with what follows.
    words = text.split(" ")
    while len(words) > 1 and len(words[-1]) <= 2:
        words.pop()
    return text[: sum(map(len, words)) + len(words) - 1].rstrip("'")
