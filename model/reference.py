"""The slow, cache-free decoder: the oracle that everything faster is held against.

Every step runs the whole decoder over the whole prefix of one source. Nothing is shared with the served search.

Source: greedy and beam search as in Wu et al. 2016 (length penalty: equation 14), candidates and stopping as in
Hugging Face generate() with ``early_stopping=False``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from model.transformer import Transformer

LengthPenaltyType = Literal["GNMT", "POWER"]
FinishReason = Literal["END_TOKEN", "MAX_TOKENS"]
BEST = 8


@dataclass(frozen=True)
class ReferenceHypothesis:
    """One finished output of the reference.

    Attributes:
        tokens: output token ids, end token not included.
        score: log-probability, end token counted; beam search: divided by the length penalty.
        log_probs: of each token; the end token's last, where the output ended with it.
        best: for each of ``log_probs``, the 8 best selectable (token id, log-prob) of that step, best first.
        finish_reason: whether the model ended it or ``max_output_tokens`` did.
    """

    tokens: tuple[int, ...]
    score: float
    log_probs: tuple[float, ...]
    best: tuple[tuple[tuple[int, float], ...], ...]
    finish_reason: FinishReason


@dataclass(frozen=True)
class _Running:
    tokens: tuple[int, ...] = ()
    total: float = 0.0


def length_penalty_divisor(n: int, *, exponent: float, kind: LengthPenaltyType) -> float:
    """What a log-probability over ``n`` output tokens (end token counted) is divided by."""
    return float(((5 + n) / 6) ** exponent) if kind == "GNMT" else float(n**exponent)


def greedy_search(
    model: Transformer, source: Sequence[int], *, max_output_tokens: int, min_output_tokens: int = 0
) -> ReferenceHypothesis:
    """Take the best token of each step until the end token or ``max_output_tokens``.

    Args:
        model: in eval mode.
        source: token ids, end token included.
        max_output_tokens: most output tokens, end token not counted.
        min_output_tokens: fewest output tokens, end token not counted.
    """
    distribution = _Distribution(model, source, min_output_tokens=min_output_tokens)
    tokens: tuple[int, ...] = ()
    finish_reason: FinishReason = "MAX_TOKENS"
    while len(tokens) < max_output_tokens:
        token = int(distribution.selectable([tokens])[0].argmax())
        if token == model.config.eos_id:
            finish_reason = "END_TOKEN"
            break
        tokens = (*tokens, token)
    return distribution.hypothesis(tokens, finish_reason, divisor=lambda _: 1.0)


def beam_search(
    model: Transformer,
    source: Sequence[int],
    *,
    beam_size: int,
    length_penalty: float,
    length_penalty_type: LengthPenaltyType,
    max_output_tokens: int,
    min_output_tokens: int = 0,
) -> list[ReferenceHypothesis]:
    """Keep the ``beam_size`` best hypotheses of each step; the finished ones come back, best first.

    Args:
        model: in eval mode.
        source: token ids, end token included.
        beam_size: hypotheses kept, at least 2.
        length_penalty: exponent of the length penalty.
        length_penalty_type: GNMT or POWER.
        max_output_tokens: most output tokens, end token not counted.
        min_output_tokens: fewest output tokens, end token not counted.
    """
    distribution = _Distribution(model, source, min_output_tokens=min_output_tokens)
    eos_id = model.config.eos_id

    def divisor(n: int) -> float:
        return length_penalty_divisor(n, exponent=length_penalty, kind=length_penalty_type)

    running = [_Running()]
    finished: list[tuple[float, tuple[int, ...], FinishReason]] = []
    for n in range(1, max_output_tokens + 1):
        selectable = distribution.selectable([hypothesis.tokens for hypothesis in running])
        candidates = _candidates(running, selectable, count=2 * beam_size)
        last_step = n == max_output_tokens
        running = []
        for rank, (total, parent, token) in enumerate(candidates):
            if token == eos_id and rank < beam_size:
                finished.append((total / divisor(n), parent, "END_TOKEN"))
            elif token != eos_id and last_step and rank < beam_size:
                finished.append((total / divisor(n), (*parent, token), "MAX_TOKENS"))
            elif token != eos_id and len(running) < beam_size:
                running.append(_Running((*parent, token), total))
        finished = sorted(finished, key=lambda item: -item[0])[:beam_size]
        if last_step or not running:
            break
        if len(finished) == beam_size and running[0].total / divisor(n) <= finished[-1][0]:
            break
    return [distribution.hypothesis(tokens, reason, divisor=divisor) for _, tokens, reason in finished]


def _candidates(running: list[_Running], selectable: Tensor, *, count: int) -> list[tuple[float, tuple[int, ...], int]]:
    """The best finite extensions as (summed log-prob, parent's tokens, token), best first."""
    totals = torch.tensor([hypothesis.total for hypothesis in running], dtype=torch.float64).unsqueeze(1) + selectable
    flat = totals.flatten()
    order = torch.sort(flat, descending=True, stable=True).indices[:count].tolist()
    vocab_size = selectable.shape[1]
    return [
        (float(flat[place]), running[place // vocab_size].tokens, place % vocab_size)
        for place in order
        if flat[place] > -torch.inf
    ]


class _Distribution:
    """Log-probs of the next token after any prefix of one source, recomputed from nothing each time."""

    def __init__(self, model: Transformer, source: Sequence[int], *, min_output_tokens: int) -> None:
        self._model = model
        self._min_output_tokens = min_output_tokens
        self._source = torch.tensor([list(source)], dtype=torch.int64)

    @torch.no_grad()
    def all_steps(self, prefixes: Sequence[Sequence[int]]) -> Tensor:
        """Log-probs after every position of equally long prefixes: float64 [prefixes, length + 1, vocab]."""
        source = self._source.expand(len(prefixes), -1)
        source_mask = torch.ones_like(source, dtype=torch.bool)
        target = torch.tensor([[self._model.config.bos_id, *prefix] for prefix in prefixes], dtype=torch.int64)
        return self._model(source, target, source_mask=source_mask).log_softmax(-1).double()  # type: ignore[no-any-return]

    def selectable(self, prefixes: Sequence[Sequence[int]]) -> Tensor:
        """Log-probs of the next token, -inf where it may not be selected: float64 [prefixes, vocab]."""
        return self._suppress(self.all_steps(prefixes)[:, -1], step=len(prefixes[0]))

    def hypothesis(
        self, tokens: tuple[int, ...], finish_reason: FinishReason, *, divisor: Callable[[int], float]
    ) -> ReferenceHypothesis:
        """Score an output anew from its teacher-forced log-probs."""
        chosen = (*tokens, self._model.config.eos_id) if finish_reason == "END_TOKEN" else tokens
        steps = self.all_steps([chosen[:-1]])[0]
        log_probs = tuple(float(steps[step, token]) for step, token in enumerate(chosen))
        best = []
        for step in range(len(chosen)):
            top = self._suppress(steps[step : step + 1].clone(), step=step)[0].topk(min(BEST, steps.shape[1]))
            pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
            best.append(tuple((token, value) for token, value in pairs if value > -torch.inf))
        return ReferenceHypothesis(tokens, sum(log_probs) / divisor(len(chosen)), log_probs, tuple(best), finish_reason)

    def _suppress(self, log_probs: Tensor, *, step: int) -> Tensor:
        config = self._model.config
        log_probs[:, list(config.suppressed_ids)] = -torch.inf
        if step < self._min_output_tokens:
            log_probs[:, config.eos_id] = -torch.inf
        return log_probs
