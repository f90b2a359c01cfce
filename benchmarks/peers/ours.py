"""This project's decode loop, the one that serves, driven in process: all use of it by these benchmarks is here."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path

from benchmarks.peers.works import Outputs, Work
from export.bundle import Bundle
from export.runners.ort_cpu import OrtCpuRunner
from server.decoding.loop import DecodeLoop
from server.decoding.sequence import Outcome, Result, SearchOptions
from server.decoding.sequence import Sequence as Job
from server.decoding.waiting import Order

FAIR, LONGEST_FIRST = Order.FAIR.value, Order.LONGEST_FIRST.value
_MAX_QUEUE = 4096
_CLOSE_TIMEOUT_S = 10.0


class Ours:
    """A decode loop with its workers on their threads, as ``dragoman serve`` runs it.

    Args:
        bundle_path: what is served.
        cores: threads of a step, and workers, as the server has by default.
        max_rows: of a worker, as of ``--max-rows``.
        admission: order of those that wait, as of ``--admission``.
    """

    def __init__(self, bundle_path: Path, *, cores: int, max_rows: int, admission: str) -> None:
        bundle = Bundle.open(bundle_path)
        manifest = bundle.manifest
        self._runners = OrtCpuRunner.open_workers(bundle, workers=cores, threads=cores, max_rows=max_rows)
        self._loop = DecodeLoop(
            *self._runners,
            start_id=manifest.start_id,
            eos_id=manifest.eos_id,
            pad_id=manifest.pad_id,
            max_queue=_MAX_QUEUE,
            order=Order(admission),
        )
        self._loop.start()

    def run(self, work: Work) -> Outputs:
        """Submit all sources at once and wait for the last output."""
        results: dict[int, Result] = {}
        all_ended = threading.Event()

        def finish(index: int, result: Result) -> None:
            results[index] = result
            if len(results) == len(work.sources):
                all_ended.set()

        # One for many texts, as the texts of a call have it.
        options = {
            output: SearchOptions(beam_size=work.beam_size, max_output_tokens=output) for output in set(work.outputs)
        }
        self._loop.submit(
            [
                Job(source, options[output], on_finished=partial(finish, index))
                for index, (source, output) in enumerate(zip(work.sources, work.outputs, strict=True))
            ]
        )
        all_ended.wait()
        return Outputs(tuple(_best(results[index]) for index in range(len(work.sources))))

    def close(self) -> None:
        """End the loop's threads and free the graphs."""
        self._loop.close(timeout_s=_CLOSE_TIMEOUT_S)
        for runner in self._runners:
            runner.close()


def _best(result: Result) -> tuple[int, ...]:
    assert result.outcome is Outcome.FINISHED, f"got {result.outcome}, wanted a finished output"
    return result.hypotheses[0].tokens
