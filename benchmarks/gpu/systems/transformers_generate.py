"""``generate()`` of Hugging Face's transformers, on a MarianMT of the same sizes with random weights.

Its end token is barred by the bias of the logits, as in the other systems' models: it needs no logits processor.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import transformers

from benchmarks.gpu.models.bundles import bundle_at
from benchmarks.gpu.models.random_model import BARRED
from benchmarks.gpu.specs import CACHED_TOKENS, END, MAX_OUTPUT_TOKENS, MODELS, PAD, START
from benchmarks.gpu.systems.protocol import Setting, Tokens, by_length
from benchmarks.gpu.works import Work, step_sources

_SHORT, _LONG = 5, 2 * CACHED_TOKENS - 5
"""Lengths of two outputs; between them lie steps with ``CACHED_TOKENS`` tokens in the cache on average."""

_SEED = 1
_LEAST_ROUNDS = 3


class TransformersSystem:
    """The model in fp16 on a GPU, in fp32 on a CPU; its cache grows, or is static and its step compiled."""

    def __init__(self, setting: Setting) -> None:
        """Draw a model of the bundle's sizes."""
        transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        self._dims = bundle_at(setting.bundle).manifest.dims
        self._device = setting.device
        self._static = setting.system == "hf-static"
        self._max_rows = setting.max_rows
        torch.manual_seed(_SEED)
        with torch.device(setting.device):
            model: Any = transformers.MarianMTModel(self._config(_inner_width(setting)))
        model.final_logits_bias[0, [END, PAD]] = BARRED
        self._model = (model.half() if setting.device == "cuda" else model).eval()
        self._model.generation_config.eos_token_id = None

    def _config(self, ffn_dim: int) -> Any:
        dims = self._dims
        return transformers.MarianConfig(
            vocab_size=dims.target_vocab,
            d_model=dims.d_model,
            encoder_layers=dims.encoder_layers,
            decoder_layers=dims.decoder_layers,
            encoder_attention_heads=dims.heads,
            decoder_attention_heads=dims.heads,
            encoder_ffn_dim=ffn_dim,
            decoder_ffn_dim=ffn_dim,
            max_position_embeddings=4 * MAX_OUTPUT_TOKENS,
            activation_function="relu",
            scale_embedding=True,
            pad_token_id=PAD,
            decoder_start_token_id=START,
            eos_token_id=END,
            forced_eos_token_id=None,
            dropout=0.0,
        )

    @property
    def facts(self) -> dict[str, Any]:
        """Version, kind of cache, attention."""
        return {
            "transformers": transformers.__version__,
            "torch": str(torch.__version__),
            "cache": "static, compiled" if self._static else "dynamic",
            "attention": self._model.config._attn_implementation,
            "dtype": str(self._model.dtype),
        }

    def step_seconds(self, *, rows: int, beam_size: int, enough: Callable[[int], bool]) -> list[float]:
        """The difference of a long and a short output's time, over the steps between: one figure a round."""
        sources = step_sources(rows // beam_size, vocab=self._dims.source_vocab)
        self._generate(sources, beam_size=beam_size, tokens=_LONG)
        seconds: list[float] = []
        while len(seconds) < _LEAST_ROUNDS or not enough(len(seconds) * (_LONG - _SHORT)):
            long, short = (self._timed(sources, beam_size=beam_size, tokens=tokens) for tokens in (_LONG, _SHORT))
            seconds.append((long - short) / (_LONG - _SHORT))
        return seconds

    def decode(self, work: Work) -> Tokens:
        """Batches sorted by length; a batch runs to its longest output, and the others' surplus is cut off."""
        outputs: dict[int, tuple[int, ...]] = {}
        for batch in by_length(work, size=self._max_rows // work.beam_size):
            sources = tuple(work.sources[place] for place in batch)
            generated = self._generate(sources, beam_size=work.beam_size, tokens=work.outputs[batch[0]])
            for place, row in zip(batch, generated.tolist(), strict=True):
                outputs[place] = tuple(row[1 : 1 + work.outputs[place]])
        return [outputs[place] for place in range(len(work.sources))]

    def close(self) -> None:
        """The process ends."""

    def _timed(self, sources: tuple[tuple[int, ...], ...], *, beam_size: int, tokens: int) -> float:
        began = time.perf_counter()
        self._generate(sources, beam_size=beam_size, tokens=tokens)
        return time.perf_counter() - began

    @torch.inference_mode()
    def _generate(self, sources: tuple[tuple[int, ...], ...], *, beam_size: int, tokens: int) -> torch.Tensor:
        longest = max(map(len, sources))
        padded = [[*source, *[PAD] * (longest - len(source))] for source in sources]
        ids = torch.tensor(padded, device=self._device)
        generated: torch.Tensor = self._model.generate(
            input_ids=ids,
            attention_mask=(ids != PAD).long(),
            num_beams=beam_size,
            do_sample=False,
            max_new_tokens=tokens,
            use_cache=True,
            **({"cache_implementation": "static"} if self._static else {}),
        )
        return generated.cpu()


def _inner_width(setting: Setting) -> int:
    """Width of the feed-forward sub-layer, which a manifest does not say: of the model of this name."""
    name = bundle_at(setting.bundle).manifest.name
    return next((spec.ffn_dim for spec in MODELS.values() if spec.name == name), MODELS["demo"].ffn_dim)
