"""Marian's tokenizers give transformers' ids and text."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from model.importers.tokenizers import marian_tokenizer
from model.tokenizer import Tokenizer, TokenizerError
from tests.importers.hf_tokenizers import (
    LINES,
    assert_same_ids,
    assert_same_text,
    load_hf,
    piece_model,
    reloaded,
    text_pieces,
    write_json,
    write_vocab,
)

CODES = (">>fra<<", ">>deu<<", ">>zho_Hans<<", ">>zho_Hant<<")


def write_marian(directory: Path, *, codes: tuple[str, ...] = (), separate: bool = False, target: bytes = b"") -> Path:
    """As opus-mt models lie on the hub: ids of vocab.json in an order of their own, the padding token last."""
    directory.mkdir()
    source, target = piece_model("unigram", 300, seed=1), target or piece_model("unigram", 400, seed=2)
    (directory / "source.spm").write_bytes(source)
    (directory / "target.spm").write_bytes(target)
    shared = text_pieces(source) if separate else [*text_pieces(source), *text_pieces(target)]
    write_vocab(directory / "vocab.json", ["</s>", "<unk>", *codes, *reversed(shared), "<pad>"])
    if separate:
        pieces = text_pieces(target)
        write_vocab(directory / "target_vocab.json", ["</s>", "<unk>", *pieces[::2], *pieces[1::2], "<pad>"])
    write_json(directory / "tokenizer_config.json", {"separate_vocabs": separate, "source_lang": "en"})
    return directory


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("marian")


@pytest.fixture(scope="module")
def shared(folder: Path) -> Path:
    return write_marian(folder / "shared")


@pytest.fixture(scope="module")
def separate(folder: Path) -> Path:
    return write_marian(folder / "separate", separate=True)


@pytest.fixture(scope="module")
def multilingual(folder: Path) -> Path:
    return write_marian(folder / "multilingual", codes=CODES)


def ours_of(directory: Path) -> Tokenizer:
    return reloaded(marian_tokenizer(directory), directory)


def test_one_vocabulary_for_both_sides(shared: Path) -> None:
    ours, theirs = ours_of(shared), load_hf("MarianTokenizer", shared)
    assert (ours.pad_id, ours.unk_id, ours.eos_id) == (theirs.pad_token_id, theirs.unk_token_id, theirs.eos_token_id)
    assert ours.vocab_size == ours.target_vocab_size == len(theirs)
    assert_same_ids(ours, theirs)
    assert_same_text(ours, theirs, ids=range(len(theirs)))


def test_outputs_are_joined_with_the_sources_model_where_there_is_one_vocabulary(folder: Path) -> None:
    # The two models differ here in what they know of bytes; transformers takes the source's, which knows none.
    directory = write_marian(folder / "bytes", target=piece_model("unigram", 700, seed=2, byte_fallback=True))
    ours, theirs = ours_of(directory), load_hf("MarianTokenizer", directory)
    assert_same_text(ours, theirs, ids=range(len(theirs)))
    ids = theirs(text_target="a \N{SNOWMAN}").input_ids
    assert ours.decode(ids) == "a <0xE2><0x98><0x83>"
    assert theirs.decode(ids, skip_special_tokens=True, use_source_tokenizer=False) == "a \N{SNOWMAN}"
    assert {path.name for path in (directory / "ours").iterdir()} == {
        "config.json",
        "source.model",
        "source_vocab.json",
    }


def test_a_vocabulary_for_each_side(separate: Path) -> None:
    ours, theirs = ours_of(separate), load_hf("MarianTokenizer", separate)
    assert ours.vocab_size == len(theirs.encoder)
    assert ours.target_vocab_size == len(theirs.target_encoder)
    assert_same_ids(ours, theirs)
    # transformers hides the target piece that has the id of the source's padding token, and shows the target's own.
    both = (len(theirs.encoder) - 1, len(theirs.target_encoder) - 1)
    assert_same_text(ours, theirs, ids=range(min(both)))
    assert ours.decode([both[1]]) == ""
    assert ours.decode([both[0]]) == theirs.spm_target.decode([theirs.decoder[both[0]]]).strip() != ""


def test_a_source_begins_with_its_target_language(multilingual: Path) -> None:
    ours, theirs = ours_of(multilingual), load_hf("MarianTokenizer", multilingual)
    assert dict(ours.language_ids) == {"fr": 2, "de": 3, "zh-Hans": 4, "zh-Hant": 5}
    assert dict(ours.language_aliases) == {"fra": "fr", "deu": "de", "zho_Hans": "zh-Hans", "zho_Hant": "zh-Hant"}
    for code, own in zip(ours.language_ids, CODES, strict=True):
        for line in LINES[:: len(CODES)]:
            expected = theirs(f"{own} {line}").input_ids
            assert ours.encode(line, target_language=code) == expected, repr(line)
            assert ours.encode(f"{own} {line}", target_language="fr") == expected, repr(line)
    with pytest.raises(TokenizerError, match="target language: got none, wanted one of de, fr, zh-Hans, zh-Hant"):
        ours.encode("a house")
    assert ours.forced_tokens("fr") == ()
    # A language token in an output is nothing to read; transformers shows it.
    assert ours.decode([2, *ours.encode("a house", target_language="de")]) == "a house"


def test_punctuation_is_not_normalised_though_transformers_holds_a_normaliser(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Shouting:
        def __init__(self, lang: str) -> None:
            pass

        def normalize(self, text: str) -> str:
            return text.upper()

    moses = types.ModuleType("sacremoses")
    monkeypatch.setattr(moses, "MosesPunctNormalizer", Shouting, raising=False)
    monkeypatch.setitem(sys.modules, "sacremoses", moses)
    theirs = load_hf("MarianTokenizer", shared)
    assert theirs.normalize("a") == "A"
    assert_same_ids(ours_of(shared), theirs)


@pytest.mark.parametrize("text", ["a </s> house", "<pad>", "<unk> is unknown", ">>fra<< in a model without languages"])
def test_special_tokens_in_a_text_are_text(text: str, shared: Path) -> None:
    ours = ours_of(shared)
    assert set(ours.encode(text)[:-1]).isdisjoint({ours.pad_id, ours.eos_id})
    assert len(ours.encode(text)) > 3


def test_blanks_are_closed_up_where_the_directory_says_so(shared: Path, folder: Path) -> None:
    directory = write_marian(folder / "cleaned")
    write_json(directory / "tokenizer_config.json", {"clean_up_tokenization_spaces": True})
    ours, theirs = ours_of(directory), load_hf("MarianTokenizer", directory)
    assert_same_text(ours, theirs, ids=range(len(theirs)))
    ids = ours.encode("Hello , the house !")
    assert ours.decode(ids) != ours_of(shared).decode(ids)
