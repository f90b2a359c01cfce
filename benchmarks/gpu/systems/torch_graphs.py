"""The PyTorch baseline as a system: batches sorted by length, steps that shrink as outputs end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.models.bundles import bundle_at, graphs_of
from benchmarks.gpu.models.graph_weights import read_description
from benchmarks.gpu.specs import CACHED_TOKENS, GREEDY_ROWS, MAX_OUTPUT_TOKENS, MAX_SOURCE_TOKENS
from benchmarks.gpu.stepping import FIRST_TIMED, LAST_TIMED
from benchmarks.gpu.systems.protocol import Setting, Tokens, by_length, smallest_holding
from benchmarks.gpu.systems.torch_baseline import TorchBaseline
from benchmarks.gpu.works import Work, step_sources


class TorchSystem:
    """Loads a bundle's weights from its graphs."""

    def __init__(self, setting: Setting) -> None:
        """Read the weights; caches are allocated for greedy search or a beam as each is asked for."""
        bundle = bundle_at(setting.bundle)
        self._manifest = bundle.manifest
        self._description = read_description(
            graphs_of(bundle), bundle.manifest.dims, suppressed_ids=bundle.manifest.suppressed_ids
        )
        self._setting = setting
        self._baseline: TorchBaseline | None = None
        self._facts: dict[str, Any] = {"torch": str(torch.__version__), "kernels": {}, "failures": {}}

    @property
    def facts(self) -> dict[str, Any]:
        """Version, and by kind of search and rows the kernel of attention that was fastest."""
        if self._baseline is not None:
            self._facts["failures"].update(self._baseline.failures)
        return self._facts

    def step_seconds(self, *, rows: int, beam_size: int, enough: Callable[[int], bool]) -> list[float]:
        """As ``System`` says; every token reaches the host, one step behind."""
        baseline = self._with_beam(beam_size)
        sources = step_sources(rows // beam_size, vocab=self._manifest.dims.source_vocab)
        baseline.begin(sources, start_id=self._manifest.start_id)
        baseline.prepare(rows)
        self._facts["kernels"][f"beam {beam_size}, {rows} rows"] = baseline.kernel(rows)
        seconds: list[float] = []
        while not enough(len(seconds)):
            baseline.begin(sources, start_id=self._manifest.start_id)
            for position in range(LAST_TIMED):
                began = time.perf_counter()
                baseline.step(rows)
                if position >= FIRST_TIMED:
                    seconds.append(time.perf_counter() - began)
        return seconds

    def decode(self, work: Work) -> Tokens:
        """Each batch by itself; graphs that are not there yet are captured on the way."""
        baseline = self._with_beam(work.beam_size)
        outputs: dict[int, tuple[int, ...]] = {}
        for batch in by_length(work, size=self._setting.max_rows // work.beam_size):
            decoded = decode_batch(
                baseline,
                [work.sources[place] for place in batch],
                [work.outputs[place] for place in batch],
                start_id=self._manifest.start_id,
            )
            outputs.update(zip(batch, decoded, strict=True))
        return [cut(outputs[place], end=self._manifest.eos_id) for place in range(len(work.sources))]

    def close(self) -> None:
        """The process ends."""

    def _with_beam(self, beam_size: int) -> TorchBaseline:
        if self._baseline is None or self._baseline.beam_size != beam_size:
            self._baseline = None
            if self._setting.device == "cuda":
                torch.cuda.empty_cache()
            self._baseline = TorchBaseline(
                self._description,
                device=self._setting.device,
                max_rows=self._setting.max_rows,
                capacity=MAX_OUTPUT_TOKENS,
                source_capacity=MAX_SOURCE_TOKENS,
                beam_size=beam_size,
                compiled=self._setting.system == "torch-compiled",
            )
        return self._baseline


def decode_batch(
    baseline: TorchBaseline, sources: list[tuple[int, ...]], outputs: list[int], *, start_id: int
) -> list[tuple[int, ...]]:
    """Decode sources whose outputs become shorter from one to the next, each as long as asked.

    Args:
        baseline: whose rows hold them all.
        sources: token ids, end token included.
        outputs: tokens of each output, descending.
        start_id: token that a decoder starts with.
    """
    beam, steps = baseline.beam_size, []
    sizes = [rows for rows in sorted({*GREEDY_ROWS, beam, baseline.max_rows}) if not rows % beam]
    sizes = [rows for rows in sizes if rows <= baseline.max_rows]
    baseline.begin(sources, start_id=start_id)
    for number in range(outputs[0]):
        live = sum(length > number for length in outputs)
        behind = baseline.step(smallest_holding(sizes, live * beam))
        if number:
            steps.append(behind[:, : len(sources) * beam].tolist())
    steps.append(baseline.last()[:, : len(sources) * beam].tolist())
    decoded = []
    for source, length in enumerate(outputs):
        row, tokens = source * beam, []
        for step in reversed(steps[:length]):
            tokens.append(step[0][row])
            row = step[1][row] if beam > 1 else row
        decoded.append(tuple(reversed(tokens)))
    return decoded


def cut(tokens: tuple[int, ...], *, end: int) -> tuple[int, ...]:
    """What comes before the end token."""
    return tokens[: tokens.index(end)] if end in tokens else tokens


assert FIRST_TIMED < CACHED_TOKENS < LAST_TIMED < MAX_OUTPUT_TOKENS
