"""The slow, cache-free decoder: the oracle that everything faster is held against.

Every step runs the whole decoder over the whole prefix. Nothing is shared with the served search.

Source: greedy and beam search as in Wu et al. 2016 (length penalty: equation 14), candidates, stopping
and forced tokens as in Hugging Face generate().
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from model.attention import KeyValue
from model.config import Suppression
from model.transformer import Transformer

LengthPenaltyType = Literal["GNMT", "POWER"]
FinishReason = Literal["END_TOKEN", "MAX_TOKENS"]
BEST = 8


@dataclass(frozen=True, kw_only=True)
class ReferenceOptions:
    """How to search.

    Attributes:
        max_output_tokens: most output tokens, end token not counted.
        min_output_tokens: fewest output tokens, end token not counted.
        beam_size: hypotheses kept.
        length_penalty: exponent of the length penalty.
        length_penalty_type: GNMT or POWER.
        early_stopping: end as soon as ``beam_size`` hypotheses have finished, whatever the running ones promise.
        forced_tokens: output tokens that every output begins with; they count as output tokens, but add no
            log-probability to a score.
        forced_end: the token at place ``max_output_tokens`` is the end token, whatever the model says; it counts as
            forced tokens do.
    """

    max_output_tokens: int
    min_output_tokens: int = 0
    beam_size: int = 1
    length_penalty: float = 1.0
    length_penalty_type: LengthPenaltyType = "GNMT"
    early_stopping: bool = False
    forced_tokens: tuple[int, ...] = ()
    forced_end: bool = False

    @property
    def last_choice(self) -> int:
        """Number of the last output token that the model chooses."""
        return self.max_output_tokens - self.forced_end

    def divisor(self, n: int) -> float:
        """What a log-probability over ``n`` output tokens (end token counted) is divided by."""
        base = (5 + n) / 6 if self.length_penalty_type == "GNMT" else n
        return float(base**self.length_penalty)


@dataclass(frozen=True)
class ReferenceHypothesis:
    """One finished output of the reference.

    Attributes:
        tokens: output token ids, forced ones included, end token not.
        score: log-probability, end token counted, forced tokens not; beam search: divided by the length penalty.
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


@dataclass(frozen=True)
class _Finished:
    score: float
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    divisor: float


def greedy_search(model: Transformer, source: Sequence[int], options: ReferenceOptions) -> ReferenceHypothesis:
    """Take the best token of each step until the end token or the limit.

    Args:
        model: in eval mode.
        source: token ids, end token included.
        options: limits and forced tokens; a greedy score is not divided by any penalty.
    """
    distribution = _Distribution(model, source, options)
    tokens = tuple(options.forced_tokens)
    finish_reason: FinishReason = "MAX_TOKENS"
    while len(tokens) < options.last_choice:
        token = int(distribution.selectable([tokens])[0].argmax())
        if token == model.config.eos_id:
            finish_reason = "END_TOKEN"
            break
        tokens = (*tokens, token)
    return distribution.hypothesis(tokens, finish_reason, divisor=1.0)


def beam_search(model: Transformer, source: Sequence[int], options: ReferenceOptions) -> list[ReferenceHypothesis]:
    """Keep the ``beam_size`` best hypotheses of each step; the finished ones come back, best first.

    Args:
        model: in eval mode.
        source: token ids, end token included.
        options: beam_size of at least 2.
    """
    distribution = _Distribution(model, source, options)
    eos_id, beam_size = model.config.eos_id, options.beam_size
    divisor = options.divisor
    running = [_Running(tuple(options.forced_tokens))]
    finished: list[_Finished] = []
    for n in range(len(options.forced_tokens) + 1, options.last_choice + 1):
        selectable = distribution.selectable([hypothesis.tokens for hypothesis in running])
        candidates = _candidates(running, selectable, count=2 * beam_size)
        cut_now = n == options.max_output_tokens
        running = []
        for rank, (total, parent, token) in enumerate(candidates):
            if token == eos_id and rank < beam_size:
                finished.append(_Finished(total / divisor(n), parent, "END_TOKEN", divisor(n)))
            elif token != eos_id and cut_now and rank < beam_size:
                finished.append(_Finished(total / divisor(n), (*parent, token), "MAX_TOKENS", divisor(n)))
            elif token != eos_id and len(running) < beam_size:
                running.append(_Running((*parent, token), total))
        finished = _best(finished, beam_size)
        if cut_now or not running:
            break
        full = len(finished) == beam_size
        if full and (options.early_stopping or running[0].total / divisor(n) <= finished[-1].score):
            break
        if n == options.last_choice:
            cut = divisor(options.max_output_tokens)
            finished += [_Finished(one.total / cut, one.tokens, "MAX_TOKENS", cut) for one in running]
            finished = _best(finished, beam_size)
    if not finished:  # forced from the first token to the last
        finished = [_Finished(0.0, running[0].tokens, "MAX_TOKENS", divisor(options.max_output_tokens))]
    return [distribution.hypothesis(one.tokens, one.finish_reason, divisor=one.divisor) for one in finished]


def _best(finished: list[_Finished], count: int) -> list[_Finished]:
    return sorted(finished, key=lambda one: -one.score)[:count]


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
    """Log-probs of the next token after any prefix of one source, the whole prefix decoded anew each time."""

    @torch.no_grad()
    def __init__(self, model: Transformer, source: Sequence[int], options: ReferenceOptions) -> None:
        self._model = model
        self._options = options
        tokens = torch.tensor([list(source)], dtype=torch.int64)
        self._source_mask = torch.ones_like(tokens, dtype=torch.bool)
        self._cross = model.cross_memory(model.encode(tokens, source_mask=self._source_mask))

    def all_steps(self, prefix: Sequence[int]) -> Tensor:
        """Log-probs after every position of one prefix: float64 [length + 1, vocab]."""
        return self._log_probs(self._states([prefix])[0])

    def selectable(self, prefixes: Sequence[Sequence[int]]) -> Tensor:
        """Log-probs of the token after each prefix, -inf where it may not be selected: float64 [prefixes, vocab]."""
        return self._suppress(self._log_probs(self._states(prefixes)[:, -1]), step=len(prefixes[0]))

    @torch.no_grad()
    def _states(self, prefixes: Sequence[Sequence[int]]) -> Tensor:
        """Decoder states at every position of equally long prefixes: float [prefixes, length + 1, d_model]."""
        target = torch.tensor([[self._model.config.start_id, *prefix] for prefix in prefixes], dtype=torch.int64)
        cross = [KeyValue(*(part.expand(len(prefixes), -1, -1, -1) for part in memory)) for memory in self._cross]
        return self._model.decode(target, cross, source_mask=self._source_mask.expand(len(prefixes), -1))

    @torch.no_grad()
    def _log_probs(self, states: Tensor) -> Tensor:
        config = self._model.config
        logits = self._model.output(states)
        if config.suppression is Suppression.BEFORE_SOFTMAX:
            logits[..., list(config.suppressed_ids)] = -torch.inf
        return logits.log_softmax(-1).double()  # type: ignore[no-any-return]

    def hypothesis(
        self, tokens: tuple[int, ...], finish_reason: FinishReason, *, divisor: float
    ) -> ReferenceHypothesis:
        """Score an output anew from its teacher-forced log-probs; forced tokens count nothing."""
        chosen = (*tokens, self._model.config.eos_id) if finish_reason == "END_TOKEN" else tokens
        steps = self.all_steps(chosen[:-1])
        log_probs = tuple(float(steps[step, token]) for step, token in enumerate(chosen))
        best = []
        for step in range(len(chosen)):
            top = self._suppress(steps[step : step + 1].clone(), step=step)[0].topk(min(BEST, steps.shape[1]))
            pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
            best.append(tuple((token, value) for token, value in pairs if value > -torch.inf))
        score = sum(log_probs[len(self._options.forced_tokens) :]) / divisor
        return ReferenceHypothesis(tokens, score, log_probs, tuple(best), finish_reason)

    def _suppress(self, log_probs: Tensor, *, step: int) -> Tensor:
        config = self._model.config
        log_probs[:, list(config.suppressed_ids)] = -torch.inf
        if step < self._options.min_output_tokens:
            log_probs[:, config.eos_id] = -torch.inf
        return log_probs
