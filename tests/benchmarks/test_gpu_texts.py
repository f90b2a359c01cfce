"""BLEU of outputs that a machine without a tokenizer has written down."""

from __future__ import annotations

import pytest

from benchmarks.gpu.models.prepare import DEMO_BUNDLE
from benchmarks.gpu.texts import losses
from export.bundle import Bundle


def test_the_references_own_outputs_lose_nothing_and_shorter_ones_do() -> None:
    golden = Bundle.open(DEMO_BUNDLE).golden()
    exact = [list(sentence.greedy.ids) for sentence in golden]
    found = losses(
        {
            "exam demo fp16 tensorrt: exam: greedy": exact,
            "exam demo fp16 cuda: exam: beam": [tokens[:-3] for tokens in exact],
            "steps base fp16 torch: decode loop, beam 1: outputs": [[5]],
        }
    )
    assert set(found) == {"exam demo fp16 tensorrt: exam: greedy", "exam demo fp16 cuda: exam: beam"}
    assert found["exam demo fp16 tensorrt: exam: greedy"]["loss"] == pytest.approx(0.0)
    assert found["exam demo fp16 cuda: exam: beam"]["loss"] > 5.0
