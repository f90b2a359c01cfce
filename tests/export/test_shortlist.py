"""The shortlist: what is learned from sentence pairs, and the file that keeps it."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.bundle import BundleError, Shortlist
from export.bundle.arrays import write_arrays
from export.errors import ExportError
from export.shortlist import learn
from export.shortlist.learn import Pair, learn_shortlist

EOS, SUPPRESSED = 3, (0, 1, 2)
VOCAB = 60
WORDS = 40


def pair(source: list[int], target: list[int]) -> Pair:
    return np.array([*source, EOS], np.int32), np.array([*target, EOS], np.int32)


def learned(pairs: list[Pair], **settings: Any) -> Shortlist:
    fields = {"tokens_of_each": 3, "most_frequent": 5} | settings
    return learn_shortlist(
        pairs, source_vocab=VOCAB, target_vocab=VOCAB, eos_id=EOS, suppressed_ids=SUPPRESSED, **fields
    )


def planted(seed: int, *, sentences: int = 400) -> tuple[list[Pair], dict[int, int]]:
    """Sentences in which each source token has its translation, in any order and among frequent words of no origin."""
    draw = np.random.default_rng(seed)
    dictionary = dict(zip(range(4, 4 + WORDS), (4 + draw.permutation(WORDS)).tolist(), strict=True))
    pairs = []
    for _ in range(sentences):
        source = draw.integers(4, 4 + WORDS, draw.integers(1, 9)).tolist()
        target = [dictionary[token] for token in source] + draw.integers(50, 54, 3).tolist()
        pairs.append(pair(source, draw.permutation(target).tolist()))
    return pairs, dictionary


@pytest.mark.parametrize("seed", range(3))
def test_a_planted_dictionary_is_found(seed: int) -> None:
    pairs, dictionary = planted(seed)
    found = learned(pairs, tokens_of_each=1, most_frequent=4)
    assert found.always.tolist() == [EOS, 50, 51, 52, 53]
    for source, target in dictionary.items():
        assert found.of_source(np.array([source, EOS])).tolist() == sorted(
            {*found.always.tolist(), target} | own_of(found, EOS)
        )


def own_of(shortlist: Shortlist, token: int) -> set[int]:
    return set(shortlist.tokens[shortlist.starts[token] : shortlist.starts[token + 1]].tolist())


def model_1(pairs: list[Pair], *, iterations: int = 5) -> dict[int, dict[int, float]]:
    """Probability of each target token given a source token, word by word as Brown et al. write it."""
    null = -1
    together: dict[int, set[int]] = defaultdict(set)
    for source, target in pairs:
        for token in (*source.tolist(), null):
            together[token] |= set(target.tolist())
    table = {token: dict.fromkeys(targets, 1.0) for token, targets in together.items()}
    for _ in range(iterations):
        counts: dict[int, Counter[int]] = defaultdict(Counter)
        for source, target in pairs:
            for word in target.tolist():
                total = sum(table[token][word] for token in (*source.tolist(), null))
                for token in (*source.tolist(), null):
                    counts[token][word] += table[token][word] / total  # type: ignore[assignment]
        table = {
            token: {word: count / sum(words.values()) for word, count in words.items()}
            for token, words in counts.items()
        }
    return table


@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_probabilities_are_those_of_the_paper_in_batches_of_any_size(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learn, "_SENTENCES_AT_ONCE", at_once)
    pairs, _ = planted(7, sentences=40)
    wanted = model_1(pairs)
    found = learn._learn_translations(pairs, source_vocab=VOCAB, target_vocab=VOCAB)
    assert len(found.sources) == sum(map(len, wanted.values()))
    for source, target, probability in zip(*map(np.ndarray.tolist, vars(found).values()), strict=True):
        assert probability == pytest.approx(wanted[-1 if source == VOCAB else source][target], rel=1e-9)


def test_each_token_has_its_most_probable_ones_beside_those_that_all_have() -> None:
    pairs, _ = planted(1)
    found, table = learned(pairs, tokens_of_each=3, most_frequent=4), model_1(pairs)
    for source in range(4, 4 + WORDS):
        others = {word: p for word, p in table[source].items() if word not in found.always}
        assert own_of(found, source) == set(sorted(others, key=lambda word: (-others[word], word))[:3])
    assert all(own_of(found, source) == set() for source in range(4 + WORDS, VOCAB)), "tokens that never came"


def test_every_list_holds_the_end_token_and_the_most_frequent_and_no_suppressed_one() -> None:
    pairs = [pair([10], [20, 20, 20, 20, 21, 21, 21, 22, 1, 1, 1, 1, 1, 0]), pair([11], [23])]
    assert learned(pairs, most_frequent=1).always.tolist() == [EOS, 20], "the end token comes twice only"
    found = learned(pairs, most_frequent=2)
    assert found.always.tolist() == [EOS, 20, 21]
    assert found.of_source(np.array([EOS])).tolist() == [EOS, 20, 21, 22, 23]
    assert own_of(found, 11) == {23}
    nothing_else = learned([pair([10], [1])], most_frequent=4)
    assert nothing_else.always.tolist() == [EOS, 4, 5, 6, 7], "filled up, for a search needs something to choose from"
    assert len(learned(pairs, most_frequent=1000).always) == VOCAB - len(SUPPRESSED)


def test_the_same_pairs_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, _ = planted(5)
    learned(pairs).save(tmp_path / "a.npz")
    monkeypatch.setattr(time, "time", lambda: 2e9)
    monkeypatch.setattr(time, "localtime", lambda *_: time.gmtime(2e9))
    learned(pairs).save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_no_pair_is_an_error() -> None:
    with pytest.raises(ExportError, match="got no sentence pair, wanted at least one"):
        learned([])


@pytest.fixture
def sound() -> Shortlist:
    return learned(planted(2)[0])


def load(path: Path) -> Shortlist:
    return Shortlist.load(path, source_vocab=VOCAB, target_vocab=VOCAB, eos_id=EOS, suppressed_ids=SUPPRESSED)


def test_what_is_saved_is_read(sound: Shortlist, tmp_path: Path) -> None:
    sound.save(tmp_path / "shortlist.npz")
    again = load(tmp_path / "shortlist.npz")
    for name, array in vars(sound).items():
        read = getattr(again, name)
        assert np.array_equal(read, array)
        assert read.dtype == array.dtype
    source = np.array([4, 9, 4, EOS])
    assert again.of_source(source).tolist() == sorted(
        {*sound.always.tolist()} | own_of(sound, 4) | own_of(sound, 9) | own_of(sound, EOS)
    )
    assert again.of_source(source).dtype == np.int64


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Shortlist], Shortlist]:
    return lambda shortlist: dataclasses.replace(shortlist, **{name: change(getattr(shortlist, name).copy())})


def put(place: int, value: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[place] = value
        return array

    return change


FAULTS: dict[str, Callable[[Shortlist], Shortlist]] = {
    "starts: got int64 [60], wanted int64 [61]": changed("starts", lambda array: array[:-1]),
    "tokens: got int64": changed("tokens", lambda array: array.astype(np.int64)),
    "always: got int64 [2, 3], wanted int64 [entries]": changed("always", lambda array: array.reshape(2, 3)),
    "starts: got 0 to 0, wanted 0 to": changed("starts", put(-1, 0)),
    "starts: got 1 to": changed("starts", put(0, 1)),
    ", rising": changed("starts", put(10, 0)),
    "tokens: got -1 to": changed("tokens", put(0, -1)),
    "to 60, wanted 0 to 59": changed("tokens", put(-1, VOCAB)),
    "always: got the suppressed token 2, wanted none": changed("always", put(0, 2)),
    "tokens: got the suppressed token 1, wanted none": changed("tokens", put(0, 1)),
    "out of order": changed("tokens", lambda array: array[::-1].copy()),
    "always: got no end token, wanted 3 among them": changed("always", lambda array: array[1:]),
}


@pytest.mark.parametrize("message", FAULTS)
def test_a_file_that_does_not_fit_the_model_is_one_line(message: str, sound: Shortlist, tmp_path: Path) -> None:
    path = tmp_path / "shortlist.npz"
    FAULTS[message](sound).save(path)
    with pytest.raises(BundleError) as caught:
        load(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert message in said
    assert "\n" not in said


def test_a_file_that_is_no_shortlist_is_one_line(sound: Shortlist, tmp_path: Path) -> None:
    path = tmp_path / "shortlist.npz"
    sound.save(path)
    whole = path.read_bytes()
    write_arrays(tmp_path / "other.npz", {"always": sound.always})
    np.savez(tmp_path / "pickle.npz", always=np.array([None], object), starts=sound.starts, tokens=sound.tokens)
    contents = [b"", b"garbage", whole[: len(whole) // 2], (tmp_path / "other.npz").read_bytes()]
    for content in [*contents, (tmp_path / "pickle.npz").read_bytes()]:
        path.write_bytes(content)
        with pytest.raises(BundleError) as caught:
            load(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
    with pytest.raises(BundleError, match=r"nowhere\.npz"):
        load(tmp_path / "nowhere.npz")
