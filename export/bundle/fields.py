"""Typed reading of JSON records, with one clear line where a field is missing or wrong.

BundleError (a ValueError) is the only error that leaves ``export.bundle``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class BundleError(ValueError):
    """A bundle is damaged, incomplete or of an unknown format; one line names the file, got and wanted."""


class Fields:
    """A JSON object that is read field by field."""

    def __init__(self, values: object, *, where: str) -> None:
        """Wrap ``values``; ``where`` names the file (and field) in messages.

        Raises:
            BundleError: ``values`` is no JSON object.
        """
        if not isinstance(values, Mapping):
            raise BundleError(f"{where}: got {_brief(values)}, wanted a JSON object")
        self._values: Mapping[str, Any] = values
        self.where = where

    @classmethod
    def parse(cls, text: str | bytes, *, where: str) -> Fields:
        """Read a JSON document that is one object."""
        return cls(parse_json(text, where=where), where=where)

    def names(self) -> tuple[str, ...]:
        """What fields there are."""
        return tuple(self._values)

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self._values.get(name) is not None

    def text(self, name: str) -> str:
        """A string."""
        value = self._get(name)
        if not isinstance(value, str):
            raise self.fault(name, "a string")
        return value

    def integer(self, name: str, *, minimum: int = 0) -> int:
        """An integer of at least ``minimum``."""
        value = self._get(name)
        if not _is_integer(value) or value < minimum:
            raise self.fault(name, f"an integer of at least {minimum}")
        return int(value)

    def number(self, name: str) -> float:
        """A finite number."""
        value = self._get(name)
        if not _is_number(value):
            raise self.fault(name, "a number")
        return float(value)

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self._get(name)
        if not isinstance(value, bool):
            raise self.fault(name, "true or false")
        return value

    def items(self, name: str) -> list[Any]:
        """A list of anything."""
        value = self._get(name)
        if not isinstance(value, list):
            raise self.fault(name, "a list")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings."""
        values = self.items(name)
        if not all(isinstance(value, str) for value in values):
            raise self.fault(name, "a list of strings")
        return tuple(values)

    def integers(self, name: str) -> tuple[int, ...]:
        """A list of integers, none negative."""
        values = self.items(name)
        if not all(_is_integer(value) and value >= 0 for value in values):
            raise self.fault(name, "a list of integers, none negative")
        return tuple(values)

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of finite numbers."""
        values = self.items(name)
        if not all(_is_number(value) for value in values):
            raise self.fault(name, "a list of numbers")
        return tuple(map(float, values))

    def record(self, name: str) -> Fields:
        """A nested object."""
        return Fields(self._get(name), where=f"{self.where}: {name}")

    def text_map(self, name: str) -> dict[str, str]:
        """An object whose values are all strings."""
        nested = self.record(name)._values
        if not all(isinstance(value, str) for value in nested.values()):
            raise self.fault(name, "an object of strings")
        return dict(nested)

    def number_map(self, name: str) -> dict[str, float]:
        """An object whose values are all finite numbers."""
        nested = self.record(name)._values
        if not all(_is_number(value) for value in nested.values()):
            raise self.fault(name, "an object of numbers")
        return {key: float(value) for key, value in nested.items()}

    def choice(self, name: str, allowed: tuple[str, ...]) -> str:
        """One of ``allowed``."""
        value = self.text(name)
        if value not in allowed:
            raise self.fault(name, f"one of {', '.join(allowed)}")
        return value

    def fault(self, name: str, wanted: str) -> BundleError:
        """The error that says what was found in ``name`` and what was wanted."""
        return BundleError(f"{self.where}: {name}: got {_brief(self._values.get(name))}, wanted {wanted}")

    def _get(self, name: str) -> Any:
        if name not in self._values:
            raise BundleError(f"{self.where}: {name}: missing")
        return self._values[name]


def parse_json(text: str | bytes, *, where: str) -> Any:
    """Read a JSON document; no NaN, infinity, integer beyond 64 bits, half a surrogate pair or repeated name.

    Raises:
        BundleError: ``text`` is no such document.
    """
    try:
        values = json.loads(
            text, parse_constant=_refuse_constant, parse_int=_parse_integer, object_pairs_hook=_unique_names
        )
        if "\\u" in (text if isinstance(text, str) else text.decode()):
            json.dumps(values, ensure_ascii=False).encode()  # only an escape can stand for half a surrogate pair
        return values
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where}: not JSON: {error}") from error


def to_json(values: object, *, indent: int | None = None) -> str:
    """The one JSON text of ``values``: sorted names, UTF-8 as it is, no NaN."""
    separators = (",", ":") if indent is None else (",", ": ")
    return json.dumps(values, indent=indent, separators=separators, sort_keys=True, ensure_ascii=False, allow_nan=False)


def read_bytes(path: Path) -> bytes:
    """Contents of a file.

    Raises:
        BundleError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from error


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return unique


def _parse_integer(text: str) -> int:
    value = int(text)
    if not -(1 << 63) <= value < 1 << 63:
        raise ValueError(f"{text[:24]}... does not fit 64 bits")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
