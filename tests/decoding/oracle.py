"""Greedy and beam search once more, written apart from the served ones: whole vocabulary, no rows, no batches.

What is forced is forced as Hugging Face generate() does it: in such a step no other token has a probability above 0.
``test_oracle`` holds all of this against generate() itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from server.decoding.sequence import FinishReason, Hypothesis, LengthPenalty, SearchOptions
from tests.decoding.fake_runner import END, SUPPRESSED, Prefix, Rule, Source, log_softmax


@dataclass(frozen=True)
class _Candidate:
    total: float
    parent: int
    token: int
    prefix: Prefix


def search(rule: Rule, source: Source, options: SearchOptions) -> tuple[Hypothesis, ...]:
    """What the served search must find."""
    return _greedy(rule, source, options) if options.beam_size == 1 else _beam(rule, source, options)


def _choices(rule: Rule, source: Source, prefix: Prefix, options: SearchOptions) -> dict[int, float]:
    if _end_is_forced(prefix, options):
        return {END: 0.0}
    if len(prefix) < len(options.forced_tokens):
        return {options.forced_tokens[len(prefix)]: 0.0}
    log_probs = log_softmax(rule(source, prefix))
    barred = {*SUPPRESSED, END} if len(prefix) < options.min_output_tokens else {*SUPPRESSED}
    return {token: float(value) for token, value in enumerate(log_probs) if token not in barred}


def _end_is_forced(prefix: Prefix, options: SearchOptions) -> bool:
    return options.forced_end and len(prefix) == options.max_output_tokens - 1


def _greedy(rule: Rule, source: Source, options: SearchOptions) -> tuple[Hypothesis, ...]:
    output: Prefix = ()
    total = 0.0
    reason = FinishReason.MAX_TOKENS
    while len(output) < options.max_output_tokens:
        choices = _choices(rule, source, output, options)
        token = max(choices, key=lambda candidate: (choices[candidate], -candidate))
        total += choices[token]
        if token == END:
            reason = FinishReason.MAX_TOKENS if _end_is_forced(output, options) else FinishReason.END_TOKEN
            break
        output += (token,)
    return (Hypothesis(output, total if options.return_scores else None, reason),)


def _beam(rule: Rule, source: Source, options: SearchOptions) -> tuple[Hypothesis, ...]:
    beam = options.beam_size
    running: list[tuple[float, Prefix]] = [(0.0, ())]
    pool: list[Hypothesis] = []
    for n in range(1, options.max_output_tokens + 1):
        base = (5 + n) / 6 if options.length_penalty_type is LengthPenalty.GNMT else n
        penalty = base**options.length_penalty
        candidates = [
            _Candidate(total + value, parent, token, prefix)
            for parent, (total, prefix) in enumerate(running)
            for token, value in _choices(rule, source, prefix, options).items()
        ]
        candidates.sort(key=lambda one: (-one.total, one.parent, one.token))
        running = []
        for rank, one in enumerate(candidates[: 2 * beam]):
            last = n == options.max_output_tokens
            if (one.token == END or last) and rank < beam:
                ended = one.token == END
                tokens = one.prefix if ended else (*one.prefix, one.token)
                cut = not ended or _end_is_forced(one.prefix, options)
                reason = FinishReason.MAX_TOKENS if cut else FinishReason.END_TOKEN
                pool.append(Hypothesis(tokens, one.total / penalty, reason))
            elif one.token != END and not last and len(running) < beam:
                running.append((one.total, (*one.prefix, one.token)))
        pool = sorted(pool, key=_score, reverse=True)[:beam]
        if len(pool) == beam and options.early_stopping:
            break
        if len(pool) == beam and running and running[0][0] / penalty <= _score(pool[-1]):
            break
    return tuple(pool[: options.num_hypotheses])


def _score(hypothesis: Hypothesis) -> float:
    assert hypothesis.score is not None
    assert not np.isnan(hypothesis.score)
    return hypothesis.score
