"""Typed reading of another toolkit's JSON files: every fault names the file, the field, got and wanted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.weight_files import CheckpointError


class Settings:
    """One JSON object. A field that is absent or null counts as its default."""

    def __init__(self, values: Mapping[str, Any], *, where: str) -> None:
        """Wrap ``values``; ``where`` names the file in messages."""
        self._values = values
        self.where = where

    @classmethod
    def read(cls, path: Path, *, optional: bool = False) -> Settings:
        """Read a file.

        Args:
            path: JSON file.
            optional: whether a missing file counts as an empty one.

        Raises:
            CheckpointError: it cannot be read, or is no JSON object.
        """
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path}: got something that is no plain file, wanted a JSON object")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            if optional:
                return cls({}, where=str(path))
            raise CheckpointError(f"{path}: {error.strerror}") from error
        except OSError as error:
            raise CheckpointError(f"{path}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: not JSON: {error}") from error
        if not isinstance(values, dict):
            raise CheckpointError(f"{path}: got {type(values).__name__}, wanted a JSON object")
        return cls(values, where=str(path))

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def names(self) -> set[str]:
        """Names of all fields that are set."""
        return {name for name in self._values if name in self}

    def raw(self, name: str) -> Any:
        """A field as it stands; None where it is absent."""
        return self._values.get(name)

    def integer(self, name: str, default: int | None = None) -> int:
        """An integer of at least 0."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.fault(name, "an integer of at least 0")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A number."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.fault(name, "a number")
        return float(value)

    def flag(self, name: str, default: bool | None = None) -> bool:
        """True or false."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self.fault(name, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A string."""
        value = self._value(name, default)
        if not isinstance(value, str):
            raise self.fault(name, "a text")
        return value

    def texts(self, name: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """A list of strings."""
        value = self._value(name, default)
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
            raise self.fault(name, "a list of texts")
        return tuple(value)

    def section(self, name: str) -> Settings:
        """A nested object; an absent one is empty."""
        value = self._value(name, {})
        if not isinstance(value, dict):
            raise self.fault(name, "an object")
        return Settings(value, where=f"{self.where}: {name}")

    def only(self, *known: str) -> None:
        """Hold that no other field is set.

        Raises:
            CheckpointError: one is.
        """
        if unknown := sorted(self.names() - set(known)):
            raise CheckpointError(
                f"{self.where}: unknown field {', '.join(unknown)}; known fields are {', '.join(known)}"
            )

    def fault(self, name: str, wanted: str) -> CheckpointError:
        """The error that says what stands in ``name`` and what was wanted."""
        got = repr(self._values[name]) if name in self else "none"
        return CheckpointError(f"{self.where}: {name}: got {got[:200]}, wanted {wanted}")

    def _value(self, name: str, default: Any) -> Any:
        return self._values[name] if name in self else default
