"""Every buffer of a runner but its caches: on the device, and the pinned host memory that it is filled from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.contract import ModelDimensions
from export.runners.gpu.device import Device, Event, Stream
from export.runners.gpu.graphs import Tensor
from export.runners.protocol import IntArray

_ALIGNMENT = 256


@dataclass(frozen=True)
class BufferSizes:
    """Sizes that decide the buffers.

    Attributes:
        rows: most rows of a step.
        candidates: ``k`` of the top-k head, which is always asked for as many.
        encoder_tokens: most source tokens of one call of the encoder, padding counted.
    """

    rows: int
    candidates: int
    encoder_tokens: int

    @property
    def line(self) -> int:
        """Rows rounded up so that every line of int64 is aligned."""
        return _aligned(self.rows * 8) // 8


class Uploaded:
    """Numbers that the host writes and the device reads: pinned memory with its place on the device.

    Attributes:
        address: on the device.
        values: int64, on the host; to be written between ``writable`` and ``send``.
    """

    def __init__(self, device: Device, address: int, shape: tuple[int, ...]) -> None:
        """Pin host memory for ``shape``."""
        self.address = address
        self.values: IntArray = _pinned(device, shape, np.int64)
        self._sent: Event | None = None

    def writable(self) -> IntArray:
        """The values, once the device has read what was in them."""
        if self._sent is not None:
            self._sent.synchronize()
        return self.values

    def send(self, stream: Stream) -> None:
        """Copy the values to the device."""
        stream.upload(self.address, self.values)
        self._sent = stream.record()


class Buffers:
    """The buffers, allocated once, by the name of the tensor that lies in them.

    Attributes:
        step: int64 [3, rows and some more]: tokens, positions and source lengths of a step.
        parents: int64 [rows].
        sources: int64: tokens of sources, then their lengths.
    """

    def __init__(self, device: Device, dims: ModelDimensions, sizes: BufferSizes, *, itemsize: int) -> None:
        """Allocate all of them; ``itemsize`` of the caches."""
        places, size = _places(dims, sizes, itemsize=itemsize)
        base = device.allocate(size)
        self._addresses = {name: base + place for name, place in places.items()}
        rows = sizes.rows
        self.step = Uploaded(device, self._addresses["step"], (3, sizes.line))
        self.parents = Uploaded(device, self._addresses["parents"], (rows,))
        self.sources = Uploaded(device, self._addresses["sources"], (_lengths_place(sizes) + rows,))
        self._sizes, self._dims, self._device = sizes, dims, device
        self._k = _pinned(device, (1,), np.int64)
        self._k[0] = sizes.candidates
        # Two of them: while the host reads one, the device may write the other.
        self.ids = [_pinned(device, (rows,), np.int64) for _ in range(2)]
        self.top_ids: IntArray = _pinned(device, (rows, sizes.candidates), np.int64)
        self.top_log_probs: NDArray[np.float32] = _pinned(device, (rows, sizes.candidates), np.float32)
        self._logits: NDArray[np.float32] | None = None

    @staticmethod
    def device_bytes(dims: ModelDimensions, sizes: BufferSizes, *, itemsize: int) -> int:
        """What they need on the device."""
        return _places(dims, sizes, itemsize=itemsize)[1]

    def __getitem__(self, name: str) -> int:
        """Where a buffer lies on the device."""
        return self._addresses[name]

    @property
    def logits(self) -> NDArray[np.float32]:
        """Pinned memory for logits [rows, padded vocabulary], there once somebody has asked for them."""
        if self._logits is None:
            self._logits = _pinned(self._device, (self._sizes.rows, self._dims.padded_target_vocab), np.float32)
        return self._logits

    def step_inputs(self, rows: int) -> dict[str, Tensor]:
        """Tokens, positions and source lengths of the first rows."""
        line = self._sizes.line * 8
        names = ("tokens", "positions", "source_lengths")
        return {name: Tensor(self["step"] + number * line, (rows,)) for number, name in enumerate(names)}

    def greedy(self, rows: int) -> dict[str, Tensor]:
        """Inputs and outputs of the greedy head."""
        own = {name: Tensor(self[name], (rows,)) for name in ("ids", "next_positions")}
        return {"logits": self.logits_tensor(rows), "positions": self.step_inputs(rows)["positions"], **own}

    def top_k(self, rows: int) -> dict[str, Tensor]:
        """Inputs and outputs of the top-k head; ``k`` lies on the host."""
        shape = (rows, self._sizes.candidates)
        found = {"ids": Tensor(self["top_ids"], shape), "log_probs": Tensor(self["top_log_probs"], shape)}
        return {"logits": self.logits_tensor(rows), "k": Tensor(self._k.ctypes.data, (1,)), **found}

    def encoder(self, batch: int, src_len: int) -> dict[str, Tensor]:
        """Inputs and outputs of the encoder."""
        dims = self._dims
        memory = (2 * dims.decoder_layers, batch, dims.heads, src_len, dims.head_dim)
        return {
            "tokens": Tensor(self["sources"], (batch, src_len)),
            "lengths": Tensor(self["sources"] + _lengths_place(self._sizes) * 8, (batch,)),
            "cross": Tensor(self["memory"], memory),
        }

    def encoder_arrays(self, batch: int, src_len: int) -> tuple[IntArray, IntArray]:
        """Where the host writes tokens [batch, src_len] and lengths [batch], once those before have been read."""
        values, place = self.sources.writable(), _lengths_place(self._sizes)
        return values[: batch * src_len].reshape(batch, src_len), values[place : place + batch]

    def logits_tensor(self, rows: int) -> Tensor:
        """Where a step leaves its logits."""
        return Tensor(self["logits"], (rows, self._dims.padded_target_vocab))


def _places(dims: ModelDimensions, sizes: BufferSizes, *, itemsize: int) -> tuple[dict[str, int], int]:
    """Where each buffer begins, and where the last one ends."""
    rows = sizes.rows
    bytes_of = {
        "step": 3 * sizes.line * 8,
        "parents": rows * 8,
        "sources": (_lengths_place(sizes) + rows) * 8,
        "memory": 2 * dims.decoder_layers * dims.attention_width * sizes.encoder_tokens * itemsize,
        "logits": rows * dims.padded_target_vocab * 4,
        "ids": rows * 8,
        "next_positions": rows * 8,
        "top_ids": rows * sizes.candidates * 8,
        "top_log_probs": rows * sizes.candidates * 4,
    }
    places, end = {}, 0
    for name, size in bytes_of.items():
        places[name] = end
        end += _aligned(size)
    return places, end


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _lengths_place(sizes: BufferSizes) -> int:
    """Where the lengths of sources begin, after their tokens."""
    return _aligned(sizes.encoder_tokens * 8) // 8


def _pinned(device: Device, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
    return device.pinned(math.prod(shape) * np.dtype(dtype).itemsize).view(dtype).reshape(shape)
