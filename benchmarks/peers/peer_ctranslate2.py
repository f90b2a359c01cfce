"""CTranslate2's translator, in process, at its best settings for the work."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ctranslate2

from benchmarks.peers.works import Outputs, Work

LARGEST_BATCH = 32
_COMPUTE_TYPES = {"int8": "int8", "fp32": "float32"}


class CTranslate2:
    """One translator with ``workers`` workers of ``threads`` threads each.

    Sources are sorted by length and cut into batches of at most ``LARGEST_BATCH``, at least one for each worker.
    """

    def __init__(self, directory: Path, *, precision: str, workers: int, threads: int) -> None:
        self._translator = ctranslate2.Translator(
            str(directory),
            device="cpu",
            compute_type=_COMPUTE_TYPES[precision],
            inter_threads=workers,
            intra_threads=threads,
        )
        self.workers = workers
        self._names: list[str] = json.loads((directory / "shared_vocabulary.json").read_text())
        self._ids = {name: token for token, name in enumerate(self._names)}

    def run(self, work: Work) -> Outputs:
        """Hand over all batches at once and wait for the last."""
        order = sorted(range(len(work.sources)), key=lambda index: len(work.sources[index]))
        size = min(LARGEST_BATCH, -(-len(order) // self.workers))
        pending: dict[int, Any] = {}
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            results = self.translate(
                [work.sources[index] for index in batch],
                [work.outputs[index] for index in batch],
                beam_size=work.beam_size,
                asynchronous=True,
            )
            pending |= zip(batch, results, strict=True)
        return Outputs(tuple(self.output(pending[index].result()) for index in range(len(order))))

    def translate(
        self,
        sources: Sequence[Sequence[int]],
        outputs: Sequence[int],
        *,
        beam_size: int = 1,
        asynchronous: bool = False,
        on_last: Callable[[int], None] | None = None,
    ) -> list[Any]:
        """Translate one batch.

        Args:
            sources: token ids, the end token included.
            outputs: most output tokens of each. There is one limit for a whole batch, so where they differ a callback
                looks at every token and ends each greedy output at its own.
            beam_size: 1 is greedy.
            asynchronous: whether to return at once, with results that are still to come.
            on_last: called with a source's number in the batch at the last token of its greedy output.
        """

        def ends(step: Any) -> bool:
            last: bool = step.is_last or step.step + 1 >= outputs[step.batch_id]
            if last and on_last is not None:
                on_last(step.batch_id)
            return last

        watched = on_last is not None or min(outputs) < max(outputs)
        assert beam_size == 1 or not watched, "a beam's outputs cannot end at limits of their own"
        results: list[Any] = self._translator.translate_batch(
            [[self._names[token] for token in source] for source in sources],
            beam_size=beam_size,
            max_decoding_length=max(outputs),
            max_batch_size=0,
            asynchronous=asynchronous,
            callback=ends if watched else None,
        )
        return results

    def output(self, result: Any) -> tuple[int, ...]:
        """Token ids of a result's best output."""
        return tuple(self._ids[name] for name in result.hypotheses[0])

    def close(self) -> None:
        """Nothing to do: the process ends."""
