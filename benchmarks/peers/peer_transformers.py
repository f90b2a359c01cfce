"""``generate()`` of Hugging Face's transformers on a MarianMT directory, in process: PyTorch in fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.peers.works import Outputs, Work


class Transformers:
    """All sources of a work as one padded batch."""

    def __init__(self, directory: Path, *, threads: int) -> None:
        torch.set_num_threads(threads)
        transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        self._model: Any = transformers.MarianMTModel.from_pretrained(directory)  # in eval mode
        self._pad = self._model.config.pad_token_id
        self._end = self._model.config.eos_token_id

    def run(self, work: Work) -> Outputs:
        """Pad, generate, cut the outputs at their ends."""
        assert min(work.outputs) == max(work.outputs), "generate() has one limit for a whole batch"
        longest = max(map(len, work.sources))
        padding = [longest - len(source) for source in work.sources]
        sources = [[*source, *[self._pad] * pads] for source, pads in zip(work.sources, padding, strict=True)]
        mask = [[1] * (longest - pads) + [0] * pads for pads in padding]
        with torch.inference_mode():
            generated = self._model.generate(
                input_ids=torch.tensor(sources),
                attention_mask=torch.tensor(mask),
                num_beams=work.beam_size,
                do_sample=False,
                max_new_tokens=work.outputs[0],
            )
        return Outputs(tuple(self._cut(row[1:]) for row in generated.tolist()))

    def close(self) -> None:
        """Nothing to do: the process ends."""

    def _cut(self, tokens: list[int]) -> tuple[int, ...]:
        ends = [index for index, token in enumerate(tokens) if token in (self._end, self._pad)]
        return tuple(tokens[: ends[0]] if ends else tokens)
