"""Checking SentencePiece's character maps before the `tokenizers` library walks them without looking.

A map is a double array (what to replace, as bytes) and the replacements, each ended by a NUL.

Source: Aoe 1989, "An efficient digital search algorithm by using a double-array structure".
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.tokenizer.errors import TokenizerError

_HEADER_BYTES = 4
_UNIT_BYTES = 4
_LABEL = 0x8000_00FF
_VALUE = 0x7FFF_FFFF
_HAS_VALUE = 1 << 8


def check_charsmap(charsmap: bytes) -> None:
    """Hold that every walk through a character map stays within it.

    Raises:
        TokenizerError: it is cut off, leads outside, or its replacements are no text.
    """
    size = int.from_bytes(charsmap[:_HEADER_BYTES], "little")
    body = charsmap[_HEADER_BYTES:]
    if len(charsmap) < _HEADER_BYTES or size % _UNIT_BYTES or not 0 < size <= len(body):
        raise TokenizerError(f"character map: got {len(charsmap)} bytes, wanted {size} and a header of {_HEADER_BYTES}")
    units = np.frombuffer(body[:size], dtype="<u4").astype(np.int64)
    replacements = body[size:]
    try:
        replacements.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError("character map: got replacements that are no UTF-8") from error
    for values in _reachable_values(units):
        for value in values.tolist():
            if not (value < len(replacements) and (value == 0 or replacements[value - 1] == 0)):
                raise TokenizerError(f"character map: got a replacement at {value}, wanted the beginning of one")


def _reachable_values(units: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The values of all keys, level by level; every unit is looked at once, so that a circle ends."""
    labels = np.arange(1, 256, dtype=np.int64)
    seen = np.zeros(len(units), dtype=bool)
    bases = _offsets(units[:1])
    values = []
    while len(bases):
        if int(bases.max()) | 0xFF >= len(units):
            raise TokenizerError(f"character map: got a way to unit {int(bases.max())}, wanted fewer than {len(units)}")
        nodes = bases[:, None] ^ labels
        nodes = np.unique(nodes[(units[nodes] & _LABEL) == labels])
        nodes = nodes[~seen[nodes]]
        seen[nodes] = True
        bases = nodes ^ _offsets(units[nodes])
        ends = bases[(units[nodes] & _HAS_VALUE) != 0]
        if len(ends) and int(ends.max()) >= len(units):
            raise TokenizerError(f"character map: got a way to unit {int(ends.max())}, wanted fewer than {len(units)}")
        values.append(units[ends] & _VALUE)
    return values


def _offsets(units: NDArray[np.int64]) -> NDArray[np.int64]:
    return (units >> 10) << ((units & (1 << 9)) >> 6)
