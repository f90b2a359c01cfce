"""Parallel text, as token ids of a checkpoint's model."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from export.golden import Question, encode_source, language_of
from export.shortlist.learn import Pair
from model.checkpoint import Checkpoint


def encode_pairs(checkpoint: Checkpoint, questions: Iterable[Question]) -> list[Pair]:
    """Encode sources as a server would, and translations as the outputs that they would have been.

    Args:
        checkpoint: gives the tokenizer and the languages.
        questions: each with its reference.

    Raises:
        ExportError: the languages of a sentence are not the model's.
    """
    tokenizer = checkpoint.tokenizer
    pairs = []
    for question in questions:
        assert question.reference is not None, "a sentence without its translation"
        forced = tokenizer.forced_tokens(language_of("target", question, checkpoint))
        output = [*forced, *tokenizer.encode_target(question.reference), tokenizer.eos_id]
        pairs.append((np.array(encode_source(checkpoint, question), np.int32), np.array(output, np.int32)))
    return pairs
