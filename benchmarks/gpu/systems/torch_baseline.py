"""The baseline: PyTorch with static caches and one captured CUDA graph per row count, written to be hard to beat.

A whole step is one graph: the decoder, the choice of tokens on the device, the next step's inputs. Results reach the
host one step behind. For every row count each kernel of attention is captured and timed once, and the fastest stays.
Rows are sorted by output length: those still live are a prefix, and steps shrink to the smallest graph that holds them.

The beam search keeps no finished hypotheses: it is for models whose end token is barred, and so does less than a whole
search. Rows of one source share its cross-attention cache.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.systems.torch_model import Attend, TorchModel, by_products, by_sdpa
from export.graphs.description import ModelDescription

KERNELS: dict[str, tuple[Attend, SDPBackend | None]] = {
    "memory-efficient": (by_sdpa, SDPBackend.EFFICIENT_ATTENTION),
    "cudnn": (by_sdpa, SDPBackend.CUDNN_ATTENTION),
    "products": (by_products, None),
}
_ON_CPU = "products"
_TRIAL_STEPS = 20
_WARM_UP_STEPS = 3


@dataclass(frozen=True)
class Step:
    """One way to run a step of so many rows.

    Attributes:
        kernel: of attention.
        run: does the step; on a GPU it only puts it into the stream.
    """

    kernel: str
    run: Callable[[], None]


class TorchBaseline:
    """Decodes batches of sources, greedily or with a beam; rows of a beam stand side by side."""

    def __init__(
        self,
        description: ModelDescription,
        *,
        device: str,
        max_rows: int,
        capacity: int,
        source_capacity: int,
        beam_size: int = 1,
        compiled: bool = False,
    ) -> None:
        """Allocate caches and weights.

        Args:
            description: the model.
            device: ``cuda``, in fp16 with captured graphs, or ``cpu``, in fp32 without.
            max_rows: most rows, hypotheses counted.
            capacity: of a row's own cache, in tokens.
            source_capacity: of a source's cache.
            beam_size: 1 is greedy.
            compiled: whether ``torch.compile`` fuses what lies between matrix products.
        """
        self._cuda = device == "cuda"
        dtype = torch.float16 if self._cuda else torch.float32
        self.model = TorchModel(description, device=torch.device(device), dtype=dtype)
        self.beam_size, self.max_rows = beam_size, max_rows
        self._compiled = compiled
        dims, sources = description.dims, max_rows // beam_size
        shape = (dims.decoder_layers, 2, max_rows, dims.heads, capacity, dims.head_dim)
        self._own = [self._zeros(shape) for _ in range(1 if beam_size == 1 else 2)]
        self._cross = self._zeros((dims.decoder_layers, 2, sources, dims.heads, source_capacity, dims.head_dim))
        self._source_mask = self._zeros((sources, 1, 1, source_capacity))
        searched = 1 if beam_size == 1 else 2  # tokens, and of a beam the rows that they continue
        self._chosen = torch.zeros((searched, max_rows), dtype=torch.int64, device=device)
        self._tokens, self._parents = self._chosen[0], self._chosen[-1]
        self._positions = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self._totals = torch.zeros(max_rows, device=device)
        self._turn = 0
        self._on_host = [torch.zeros((searched, max_rows), dtype=torch.int64, pin_memory=self._cuda) for _ in range(2)]
        event: Any = torch.cuda.Event
        self._events = [event() for _ in range(2)] if self._cuda else []
        self.kernels = tuple(KERNELS) if self._cuda else (_ON_CPU,)
        self._steps: dict[tuple[int, int], Step] = {}
        self.failures: dict[str, str] = {}

    def kernel(self, rows: int) -> str:
        """The kernel of attention that steps of so many rows run."""
        return self._steps[rows, 0].kernel

    def begin(self, sources: Sequence[Sequence[int]], *, start_id: int) -> None:
        """Encode sources into the first places and stand before the first step."""
        count = len(sources)
        lengths = torch.tensor([len(source) for source in sources])
        padded = torch.zeros((count, int(lengths.max())), dtype=torch.int64)
        for row, source in zip(padded, sources, strict=True):
            row[: len(source)] = torch.tensor(source)
        device = self.model.device
        with torch.inference_mode():
            memory = self.model.encode(padded.to(device), lengths.to(device))
            self._cross[:, :, :count, :, : memory.shape[4]] = memory
            places = torch.arange(self._source_mask.shape[-1], device=device)
            self._source_mask.copy_(self.model.mask((places < 1)[None]))  # rows that only fill a graph see one token
            self._source_mask[:count] = self.model.mask(places < lengths.to(device)[:, None])
            self._tokens.fill_(start_id)
            self._positions.zero_()
            # the hypotheses of a source begin alike: only the first counts
            self._totals.fill_(-torch.inf).view(-1, self.beam_size)[:, 0] = 0.0

    def stand_at(self, position: int) -> None:
        """Let the next step be the one at ``position`` in every row, whatever the caches hold."""
        self._positions.fill_(position)

    def step(self, rows: int) -> Tensor:
        """Run one step of the first ``rows`` rows.

        Returns:
            What the step before it chose, one behind: int64 [1 or 2, max_rows], tokens, and of a beam the rows that
            they continue. It is valid until the next step.
        """
        turn = self._turn
        self._step_of(rows, turn % len(self._own)).run()
        self._on_host[turn % 2].copy_(self._chosen, non_blocking=True)
        if self._cuda:
            self._events[turn % 2].record()
        self._turn += 1
        return self._result(turn - 1)

    def last(self) -> Tensor:
        """What the last step chose; it waits for it."""
        return self._result(self._turn - 1)

    def _result(self, turn: int) -> Tensor:
        if self._cuda and turn >= 0:
            self._events[turn % 2].synchronize()
        return self._on_host[turn % 2]

    def prepare(self, rows: int) -> None:
        """Capture the graphs of so many rows."""
        for turn in range(len(self._own)):
            self._step_of(rows, turn)

    def _step_of(self, rows: int, turn: int) -> Step:
        if (rows, turn) not in self._steps:
            known = self._steps.get((rows, 0))
            kernels = [known.kernel] if known else list(self.kernels)
            with self._kept_state():
                self._steps[rows, turn] = self._fastest(rows, turn, kernels)
        return self._steps[rows, turn]

    def _fastest(self, rows: int, turn: int, kernels: list[str]) -> Step:
        seconds: dict[Step, float] = {}
        for kernel in kernels:
            try:
                step = self._made(kernel, rows, turn)
            except (RuntimeError, NotImplementedError) as error:
                self.failures[kernel] = (str(error).strip().splitlines() or [type(error).__name__])[0]
                continue
            seconds[step] = self._timed(step) if len(kernels) > 1 else 0.0
        if not seconds:
            raise RuntimeError(f"no kernel of attention runs a step of {rows} rows: {self.failures}")
        return min(seconds, key=lambda step: seconds[step])

    def _timed(self, step: Step) -> float:
        self._wait()
        began = time.perf_counter()
        for _ in range(_TRIAL_STEPS):
            self._positions.zero_()
            step.run()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()

    def _made(self, kernel: str, rows: int, turn: int) -> Step:
        attend, backend = KERNELS[kernel]
        work = self._greedy_step if self.beam_size == 1 else self._beam_step
        if self._compiled:
            work = torch.compile(work, dynamic=False)

        def body() -> None:
            with torch.inference_mode(), sdpa_kernel([backend]) if backend else contextlib.nullcontext():
                work(rows, turn, attend)

        if not self._cuda:
            body()  # refuses at once what it cannot run
            return Step(kernel, body)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP_STEPS):
                self._positions.zero_()
                body()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            body()
        return Step(kernel, graph.replay)

    def _greedy_step(self, rows: int, turn: int, attend: Attend) -> None:
        tokens, positions = self._tokens[:rows], self._positions[:rows]
        own, cross = self._own[turn][:, :, :rows], self._cross[:, :, :rows]
        states = self.model.step(tokens, positions, own, cross, self._source_mask[:rows], attend=attend)
        tokens.copy_(self.model.best(states))
        positions.add_(1)

    def _beam_step(self, rows: int, turn: int, attend: Attend) -> None:
        """Caches alternate: those of the next turn are this one's, each row taken from its parent."""
        sources, beam = rows // self.beam_size, self.beam_size
        tokens, positions, parents = self._tokens[:rows], self._positions[:rows], self._parents[:rows]
        own = self._own[turn][:, :, :rows]
        cross, mask = self._cross[:, :, :sources], self._source_mask[:sources]
        states = self.model.step(tokens, positions, own, cross, mask, attend=attend)
        sums = self._totals[:rows, None] + self.model.log_probs(states)
        totals, places = sums.view(sources, -1).topk(beam)
        vocab = sums.shape[1]
        first = torch.arange(sources, device=self.model.device)[:, None] * beam
        self._totals[:rows] = totals.flatten()
        tokens.copy_((places % vocab).flatten())
        parents.copy_((places // vocab + first).flatten())
        positions.add_(1)
        for origin, moved in zip(own.flatten(0, 1), self._own[1 - turn][:, :, :rows].flatten(0, 1), strict=True):
            torch.index_select(origin, 0, parents, out=moved)

    @contextlib.contextmanager
    def _kept_state(self) -> Iterator[None]:
        """Trials change tokens, positions and caches: put back what a decoding under way needs."""
        state = (self._chosen, self._positions, self._totals, *self._own)
        kept = [tensor.clone() for tensor in state]
        yield
        for tensor, value in zip(state, kept, strict=True):
            tensor.copy_(value)

    def _zeros(self, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(shape, device=self.model.device, dtype=self.model.dtype)
