"""Learns a lexical shortlist from sentence pairs.

Source: Brown et al. 1993, "The Mathematics of Statistical Machine Translation", Model 1.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.bundle.shortlist import Shortlist
from export.errors import ExportError

TOKENS_OF_EACH = 50
MOST_FREQUENT = 100
_ITERATIONS = 5
_SENTENCES_AT_ONCE = 3_000  # 10 MB an array, at 20 tokens a sentence

Pair = tuple[NDArray[np.int32], NDArray[np.int32]]
"""Token ids of a source and of its translation, each int32 [tokens]; neither is empty."""


def learn_shortlist(
    pairs: Sequence[Pair],
    *,
    source_vocab: int,
    target_vocab: int,
    eos_id: int,
    suppressed_ids: Collection[int],
    tokens_of_each: int = TOKENS_OF_EACH,
    most_frequent: int = MOST_FREQUENT,
) -> Shortlist:
    """Give each source token its most probable target tokens, and every source the most frequent ones.

    Args:
        pairs: sources and translations, end tokens included.
        source_vocab: source tokens are below.
        target_vocab: target tokens are below.
        eos_id: end token; it is in every list.
        suppressed_ids: target tokens that are in no list.
        tokens_of_each: most target tokens of one source token, beside those that every source has.
        most_frequent: target tokens that every source has, beside the end token.

    Raises:
        ExportError: there is no pair.
    """
    if not pairs:
        raise ExportError("shortlist: got no sentence pair, wanted at least one")
    counts = np.bincount(np.concatenate([target for _, target in pairs]), minlength=target_vocab)
    counts[eos_id] = counts.max() + 1
    selectable = np.ones(target_vocab, np.bool_)
    selectable[list(suppressed_ids)] = False
    # Those that never came fill up, lowest first: a search needs some candidates in any case.
    ranked = np.argsort(-counts, kind="stable")
    always = np.sort(ranked[selectable[ranked]][: most_frequent + 1])
    selectable[always] = False
    translations = _learn_translations(pairs, source_vocab=source_vocab, target_vocab=target_vocab)
    known = selectable[translations.targets] & (translations.sources < source_vocab)
    best = _best_of_each(translations.where(known), most=tokens_of_each)
    starts = np.zeros(source_vocab + 1, np.int64)
    np.cumsum(np.bincount(best.sources, minlength=source_vocab), out=starts[1:])
    return Shortlist(always=always, starts=starts, tokens=best.targets.astype(np.int32))


@dataclass(frozen=True)
class _Translations:
    """Source and target tokens that stand in one sentence pair, sorted by both.

    Attributes:
        sources: int64 [entries].
        targets: int64 [entries].
        probabilities: float64 [entries], of the target token given the source token.
    """

    sources: NDArray[np.int64]
    targets: NDArray[np.int64]
    probabilities: NDArray[np.float64]

    def where(self, kept: NDArray[np.bool_] | NDArray[np.int64]) -> _Translations:
        """Some of them."""
        return _Translations(self.sources[kept], self.targets[kept], self.probabilities[kept])


def _learn_translations(pairs: Sequence[Pair], *, source_vocab: int, target_vocab: int) -> _Translations:
    """Expectation maximisation of Model 1 from a uniform beginning, with a NULL source token, ``source_vocab``."""
    batches = [
        _Batch(pairs[start : start + _SENTENCES_AT_ONCE], null=source_vocab, target_vocab=target_vocab)
        for start in range(0, len(pairs), _SENTENCES_AT_ONCE)
    ]
    entries = batches[0].entries
    for batch in batches[1:]:
        entries = np.union1d(entries, batch.entries)
    sources, targets = np.divmod(entries, target_vocab)
    places = [np.searchsorted(entries, batch.entries) for batch in batches]
    probabilities = np.ones(len(entries))
    for _ in range(_ITERATIONS):
        expected = np.zeros(len(entries))
        for batch, place in zip(batches, places, strict=True):
            expected[place] += batch.expected_counts(probabilities[place])
        probabilities = expected / np.bincount(sources, expected)[sources]
    return _Translations(sources, targets, probabilities)


class _Batch:
    """Some sentence pairs, each as all pairs of their tokens.

    Attributes:
        entries: int64, source * target_vocab + target of every two tokens that stand in one pair; rising, none twice.
    """

    def __init__(self, pairs: Sequence[Pair], *, null: int, target_vocab: int) -> None:
        sources = [np.append(source, null).astype(np.int64) for source, _ in pairs]
        tokens = [
            np.add.outer(target, source * target_vocab).ravel()
            for source, (_, target) in zip(sources, pairs, strict=True)
        ]
        self.entries, places = np.unique(np.concatenate(tokens), return_inverse=True)
        self._places = places.astype(np.int32)
        # One piece per target token: all source tokens that may have given it.
        self._widths = np.repeat([len(source) for source in sources], [len(target) for _, target in pairs])
        self._starts = np.cumsum(self._widths) - self._widths

    def expected_counts(self, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        """How often each entry's source token gave its target token: float64 [entries], as ``probabilities``."""
        shares = probabilities[self._places]
        shares /= np.repeat(np.add.reduceat(shares, self._starts), self._widths)
        return np.asarray(np.bincount(self._places, shares, minlength=len(self.entries)), np.float64)


def _best_of_each(translations: _Translations, *, most: int) -> _Translations:
    """The ``most`` most probable of each source token, the lower target token first among equals; sorted as before."""
    ranked = translations.where(np.lexsort((translations.targets, -translations.probabilities, translations.sources)))
    starts = np.searchsorted(ranked.sources, ranked.sources)
    best = ranked.where(np.arange(len(starts)) - starts < most)
    return best.where(np.lexsort((best.targets, best.sources)))
