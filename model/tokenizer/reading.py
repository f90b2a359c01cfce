"""Reading JSON that others wrote: every fault is one line that names the file, got and wanted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from model.tokenizer.errors import TokenizerError

_SURROGATE = re.compile("[\ud800-\udfff]")


def read_bytes(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        TokenizerError: it cannot be read.
    """
    if path.exists() and not path.is_file():
        raise TokenizerError(f"{path}: got something that is no plain file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{path}: {error.strerror}") from error


def read_json(path: Path) -> Any:
    """A JSON document in UTF-8.

    Raises:
        TokenizerError: it cannot be read or is no JSON.
    """
    content = read_bytes(path)
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path}: not JSON in UTF-8") from error


def read_object(path: Path) -> dict[str, Any]:
    """A JSON document that is one object.

    Raises:
        TokenizerError: it is not.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise TokenizerError(f"{path}: got {brief(values)}, wanted a JSON object")
    return values


def read_texts(path: Path) -> tuple[str, ...]:
    """A JSON document that is a list of texts.

    Raises:
        TokenizerError: it is not.
    """
    values = read_json(path)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TokenizerError(f"{path}: got {brief(values)}, wanted a list of texts")
    check_text(values, where=str(path))
    return tuple(values)


def check_text(texts: Iterable[str], *, where: str) -> None:
    """Hold that texts can be written as UTF-8.

    Raises:
        TokenizerError: one of them holds a lone surrogate.
    """
    for text in texts:
        if not text.isascii() and _SURROGATE.search(text):
            raise TokenizerError(f"{where}: got {brief(text)}, wanted text without lone surrogates")


def is_id(value: object) -> bool:
    """Whether a JSON value is a token id."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def id_of(values: Mapping[str, Any], name: str, *, where: str) -> int:
    """A field that holds a token id."""
    value = values.get(name)
    if not is_id(value):
        raise TokenizerError(f"{where}: {name}: got {brief(value)}, wanted a token id")
    return int(value)  # type: ignore[arg-type]


def flag_of(values: Mapping[str, Any], name: str, *, where: str) -> bool:
    """A field that is true or false; absent and null read as false."""
    value = values.get(name)
    if value is not None and not isinstance(value, bool):
        raise TokenizerError(f"{where}: {name}: got {brief(value)}, wanted true or false")
    return bool(value)


def ids_of(values: Mapping[str, Any], name: str, *, where: str) -> dict[str, int]:
    """A field that holds a mapping from text to token id."""
    value = values.get(name)
    if not isinstance(value, dict) or not all(is_id(token) for token in value.values()):
        raise TokenizerError(f"{where}: {name}: got {brief(value)}, wanted an object of token ids")
    return dict(value)


def texts_of(values: Mapping[str, Any], name: str, *, where: str) -> dict[str, str]:
    """A field that holds a mapping from text to text."""
    value = values.get(name)
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise TokenizerError(f"{where}: {name}: got {brief(value)}, wanted an object of texts")
    return dict(value)


def brief(value: object) -> str:
    """A value for a message: one line, not too long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
