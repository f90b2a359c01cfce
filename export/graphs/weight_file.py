"""``weights.bin``: the one external-data file that the graphs of a flavour share."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

WEIGHTS_FILE = "weights.bin"
_ALIGNMENT = 64


def smallest_lossless(values: NDArray[Any]) -> NDArray[Any]:
    """``values`` in float16 where every one survives that unchanged, in float32 otherwise."""
    wide = np.ascontiguousarray(values, dtype=np.float32)
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float16)
    return narrow if np.array_equal(narrow.astype(np.float32), wide) else wide


@dataclass(frozen=True)
class _Stored:
    """Where a tensor lies in the file."""

    dtype: int
    shape: tuple[int, ...]
    offset: int
    length: int


class WeightFile:
    """Writes tensors one after the other; equal ones share their bytes, whatever their names."""

    def __init__(self, folder: Path) -> None:
        """Begin ``folder/weights.bin``."""
        self._file: BinaryIO = (folder / WEIGHTS_FILE).open("wb")
        self._stored: dict[tuple[object, ...], _Stored] = {}

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, name: str, values: NDArray[Any]) -> onnx.TensorProto:
        """Store ``values`` as they are and describe them as an initializer called ``name``."""
        stored = self._store(np.ascontiguousarray(values))
        tensor = TensorProto(name=name, data_type=stored.dtype, dims=stored.shape, data_location=TensorProto.EXTERNAL)
        place = {"location": WEIGHTS_FILE, "offset": stored.offset, "length": stored.length}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        return tensor

    def _store(self, values: NDArray[Any]) -> _Stored:
        data = values.tobytes()
        key = (values.dtype.str, values.shape, hashlib.sha256(data).digest())
        if key not in self._stored:
            self._file.write(b"\0" * (-self._file.tell() % _ALIGNMENT))
            dtype = helper.np_dtype_to_tensor_dtype(values.dtype)
            self._stored[key] = _Stored(dtype, values.shape, self._file.tell(), len(data))
            self._file.write(data)
        return self._stored[key]
