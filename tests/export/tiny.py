"""Small seeded models and the bundles made of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch

from export.bundle import Bundle, GoldenSentence, Shortlist
from export.exporter import export_bundle, plan_manifest
from export.quantisation.calibration import calibrate
from export.quantisation.ranges import Calibration
from export.runners.protocol import IntArray
from export.targets import Precision, Target
from model.checkpoint import Checkpoint, ModelCard
from model.config import TransformerConfig
from model.tokenizer import Tokenizer
from model.transformer import Transformer

PAD, START = 0, 2
SMALL: dict[str, Any] = {
    "source_vocab_size": 301,
    "target_vocab_size": 301,
    "d_model": 32,
    "heads": 4,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "ffn_dim": 48,
    "max_positions": 40,
}
CARD = ModelCard(name="tiny", source_languages=("en",), target_languages=("de",), license_note="none")

# tiny matrices: a second thread only waits for the first
torch.set_num_threads(1)


class NoTokenizer:
    """Stands where a bundle wants a tokenizer that no test reads."""

    language_aliases: ClassVar[dict[str, str]] = {}

    def save(self, directory: Path) -> None:
        directory.mkdir()
        (directory / "sentencepiece.model").write_bytes(b"no tokenizer")


def random_model(seed: int = 1, **fields: Any) -> Transformer:
    """A model whose every parameter counts, biases and norms too, and whose logits lie well apart."""
    torch.manual_seed(seed)
    model = Transformer(TransformerConfig(**(SMALL | fields)))
    model.initialise()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def sources_of(lengths: Iterable[int], *, vocab: int, seed: int = 3) -> list[IntArray]:
    """Random sources of the given lengths, end token last."""
    draw = np.random.default_rng(seed)
    return [np.append(draw.integers(4, vocab, length - 1), 3) for length in lengths]


def padded(sources: list[IntArray], *, to: int | None = None) -> tuple[IntArray, IntArray]:
    """One array of sources and their lengths."""
    lengths = np.array([len(source) for source in sources])
    array = np.full((len(sources), to or lengths.max()), PAD)
    for row, source in zip(array, sources, strict=True):
        row[: len(source)] = source
    return array, lengths


def calibrated(model: Transformer) -> Calibration:
    """Calibrated on random sentences, of the vocabulary and of the lengths that tests ask for."""
    vocab = min(model.config.source_vocab_size, model.config.target_vocab_size)
    longest = model.config.max_positions
    sources = sources_of([1, 3, 8, 15, longest], vocab=vocab, seed=71)
    outputs = sources_of([9, 1, 20, 12, longest], vocab=vocab, seed=72)
    pairs = zip(sources, outputs, strict=True)
    return calibrate(model, [(source.tolist(), output[:-1].tolist()) for source, output in pairs])


def export_model(
    model: Transformer,
    out: Path,
    *,
    golden: Iterable[GoldenSentence] = (),
    target: Target = "cpu",
    precision: Precision = "fp32",
    shortlist: Shortlist | None = None,
) -> Bundle:
    """The bundle of a model that has no tokenizer."""
    checkpoint = Checkpoint(model, cast(Tokenizer, NoTokenizer()), CARD)
    manifest = plan_manifest(checkpoint, target=target, precision=precision)
    calibration = calibrated(model) if precision == "int8" else None
    return export_bundle(
        checkpoint, out, manifest=manifest, golden=golden, calibration=calibration, shortlist=shortlist
    )


def shortlist_of(model: Transformer, *, of_each: int, always: int, seed: int = 9) -> Shortlist:
    """So many random tokens for each source token, and so many for every source; suppressed ones left out."""
    config, draw = model.config, np.random.default_rng(seed)
    selectable = np.setdiff1d(np.arange(config.target_vocab_size), config.suppressed_ids)
    frequent = np.union1d(draw.choice(selectable, always - 1, replace=False), [config.eos_id])
    lists = [np.sort(draw.choice(selectable, of_each, replace=False)) for _ in range(config.source_vocab_size)]
    starts = np.arange(config.source_vocab_size + 1, dtype=np.int64) * of_each
    return Shortlist(always=frequent, starts=starts, tokens=np.concatenate(lists).astype(np.int32))


def whole_shortlist(model: Transformer) -> Shortlist:
    """Every token for every source."""
    config = model.config
    selectable = np.setdiff1d(np.arange(config.target_vocab_size, dtype=np.int64), config.suppressed_ids)
    starts = np.zeros(config.source_vocab_size + 1, np.int64)
    return Shortlist(always=selectable, starts=starts, tokens=np.zeros(0, np.int32))
