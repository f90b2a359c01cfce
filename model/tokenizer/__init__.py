"""Tokenizers: text to token ids and back, without torch.

A tokenizer is a directory of ``config.json`` (what goes around the pieces of a text, as data) and the files of its
segmenter (what cuts text into pieces).
"""

from model.tokenizer.config import Kind, Part, TokenizerConfig
from model.tokenizer.errors import TokenizerError
from model.tokenizer.tokenizer import Tokenizer
from model.tokenizer.training import train_tokenizer

__all__ = ["Kind", "Part", "Tokenizer", "TokenizerConfig", "TokenizerError", "train_tokenizer"]
