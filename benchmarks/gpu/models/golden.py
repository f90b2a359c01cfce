"""Golden sentences of a random model: a few short sources, answered by the reference decoder."""

from __future__ import annotations

import random

from benchmarks.gpu.specs import BEAM_SIZE
from export.bundle import BeamOptions, GoldenHypothesis, GoldenSentence
from model.reference import ReferenceHypothesis, ReferenceOptions, beam_search, greedy_search
from model.transformer import Transformer

_FIRST_ORDINARY_ID = 4
_SEED = 5


def random_golden(
    model: Transformer, *, sentences: int, source_tokens: int, output_tokens: int
) -> list[GoldenSentence]:
    """Ask the reference, greedily and with a beam of 4.

    Args:
        model: in eval mode, on the CPU.
        sentences: how many.
        source_tokens: of the longest source, end token included; the others are up to a half shorter.
        output_tokens: most tokens of an output.
    """
    draw = random.Random(_SEED)
    config = model.config
    options = BeamOptions(
        beam_size=BEAM_SIZE, length_penalty=1.0, length_penalty_type="GNMT", max_output_tokens=output_tokens
    )
    golden = []
    for number in range(sentences):
        length = source_tokens - number % (source_tokens // 2)
        drawn = draw.choices(range(_FIRST_ORDINARY_ID, config.source_vocab_size), k=length - 1)
        source = (*drawn, config.eos_id)
        greedy = greedy_search(model, source, ReferenceOptions(max_output_tokens=output_tokens))
        rules = ReferenceOptions(max_output_tokens=output_tokens, beam_size=BEAM_SIZE, length_penalty_type="GNMT")
        beam = beam_search(model, source, rules)[0]
        golden.append(
            GoldenSentence(
                source=" ".join(map(str, source)),
                source_ids=source,
                reference=None,
                greedy=_golden(greedy),
                beam=_golden(beam),
                beam_options=options,
            )
        )
    return golden


def _golden(hypothesis: ReferenceHypothesis) -> GoldenHypothesis:
    return GoldenHypothesis(
        ids=hypothesis.tokens,
        score=hypothesis.score,
        log_probs=hypothesis.log_probs,
        best=hypothesis.best,
        finish_reason=hypothesis.finish_reason,
    )
