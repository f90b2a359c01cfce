"""Validation: loss and BLEU of the model as it stands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import sacrebleu
import torch
from torch.nn import functional

from model.attention import KeyValue
from model.data import TokenisedCorpus, pad
from model.tokenizer import Tokenizer
from model.transformer import Transformer

_ROWS = 128


@dataclass(frozen=True)
class Validation:
    """Negative log-likelihood per target token (nats) and sacreBLEU (13a, cased) of greedy search."""

    nll: float
    bleu: float


@torch.inference_mode()
def greedy_decode(model: Transformer, sources: Sequence[Sequence[int]], *, max_output_tokens: int) -> list[list[int]]:
    """Greedy search with a cache, one padded batch; for validation, where the reference decoder is too slow.

    Args:
        model: in eval mode.
        sources: token ids, end token included.
        max_output_tokens: most tokens of an output, end token not counted.

    Returns:
        Token ids of each output, end token not included.
    """
    config = model.config
    source = pad(sources, pad_id=config.pad_id)
    source_mask = source != config.pad_id
    cross = model.cross_memory(model.encode(source, source_mask=source_mask))
    cache = model.new_cache(rows=len(sources), capacity=max_output_tokens + 1)
    tokens = torch.full((len(sources),), config.start_id)
    outputs: list[list[int]] = [[] for _ in sources]
    live = torch.arange(len(sources))
    for position in range(max_output_tokens):
        logits = model.step(tokens, cache, cross, positions=torch.full_like(tokens, position), source_mask=source_mask)
        logits[:, list(config.suppressed_ids)] = -torch.inf
        tokens = logits.argmax(-1)
        going = tokens != config.eos_id
        for row, token in zip(live[going].tolist(), tokens[going].tolist(), strict=True):
            outputs[row].append(token)
        if not going.all():
            tokens, live, source_mask = tokens[going], live[going], source_mask[going]
            cross = [KeyValue(memory.key[going], memory.value[going]) for memory in cross]
            cache = [KeyValue(memory.key[going], memory.value[going]) for memory in cache]
        if not len(live):
            break
    return outputs


@torch.inference_mode()
def validate(model: Transformer, corpus: TokenisedCorpus, tokenizer: Tokenizer, references: list[str]) -> Validation:
    """Measure ``model`` on ``corpus``, whose pairs and ``references`` are aligned."""
    was_training = model.training
    model.eval()
    nll = tokens = 0.0
    for batch in corpus.batches(seed=0, epoch=0):
        logits = model(batch.source, batch.target_in, source_mask=batch.source_mask)
        nll += functional.cross_entropy(
            logits.flatten(0, 1), batch.target_out.flatten(), ignore_index=tokenizer.pad_id, reduction="sum"
        ).item()
        tokens += int((batch.target_out != tokenizer.pad_id).sum())
    outputs: list[str] = [""] * len(corpus.pairs)
    order = sorted(range(len(corpus.pairs)), key=lambda index: len(corpus.pairs[index][0]))
    for start in range(0, len(order), _ROWS):
        rows = order[start : start + _ROWS]
        sources = [corpus.pairs[index][0] for index in rows]
        longest = min(math.ceil(1.5 * max(map(len, sources))) + 10, model.config.max_positions - 1)
        for index, ids in zip(rows, greedy_decode(model, sources, max_output_tokens=longest), strict=True):
            outputs[index] = tokenizer.decode(ids)
    model.train(was_training)
    return Validation(nll / tokens, sacrebleu.corpus_bleu(outputs, [references]).score)
