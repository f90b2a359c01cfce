"""The one error that leaves ``model.tokenizer``."""

from __future__ import annotations


class TokenizerError(ValueError):
    """A tokenizer cannot be read, lacks a token, or was asked for a language it does not know; one line."""
