"""The tokenizers of BART and mBART-50 give transformers' ids and text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model.importers.tokenizers import bart_tokenizer, mbart50_tokenizer
from model.importers.tokenizers.language_lists import MBART50
from model.tokenizer import Tokenizer, TokenizerError
from tests.importers.hf_tokenizers import (
    added,
    assert_same_ids,
    assert_same_text,
    byte_pairs,
    load_hf,
    piece_model,
    reloaded,
    text_pieces,
    write_json,
)

MODEL = "sentencepiece.bpe.model"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bart")


def write_bart(directory: Path, **settings: Any) -> Path:
    """As BART lies on the hub."""
    directory.mkdir()
    vocab, merges = byte_pairs()
    write_json(directory / "vocab.json", vocab)
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (directory / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if settings:
        write_json(directory / "tokenizer_config.json", settings)
    return directory


@pytest.fixture(scope="module")
def bart(folder: Path) -> Path:
    return write_bart(folder / "bart")


def check_bart(directory: Path) -> Tokenizer:
    """Hold a directory against transformers: ids and text."""
    ours = reloaded(bart_tokenizer(directory), directory)
    theirs = load_hf("BartTokenizer", directory)
    ids = (theirs.pad_token_id, theirs.unk_token_id, theirs.eos_token_id, theirs.bos_token_id)
    assert (ours.pad_id, ours.unk_id, ours.eos_id, ours.bos_id) == ids
    assert ours.vocab_size == ours.target_vocab_size == len(theirs)
    assert_same_ids(ours, theirs)
    assert_same_text(ours, theirs, ids=range(len(theirs)))
    return ours


def test_bart_from_vocabulary_and_merges(bart: Path) -> None:
    check_bart(bart)


def test_bart_from_tokenizer_json_alone(bart: Path, folder: Path) -> None:
    directory = folder / "json"
    load_hf("BartTokenizer", bart).save_pretrained(directory)
    assert {path.name for path in directory.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    check_bart(directory)


def test_bart_with_a_blank_before_the_first_word(folder: Path, bart: Path) -> None:
    ours = check_bart(write_bart(folder / "prefix", add_prefix_space=True))
    assert ours.encode("house") != bart_tokenizer(bart).encode("house")


def test_bart_does_not_close_up_blanks_unless_told_twice(folder: Path) -> None:
    once = {"clean_up_tokenization_spaces": True}
    check_bart(write_bart(folder / "once", **once))
    twice = {"clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": True}
    ours = check_bart(write_bart(folder / "twice", **once, **twice))
    assert ours.decode(ours.encode("Hello , you")) == "Hello, you"


def test_what_barts_outputs_begin_with(bart: Path) -> None:
    assert bart_tokenizer(bart).forced_tokens() == ()
    assert bart_tokenizer(bart, forced_ids=(0,)).forced_tokens() == (0,)
    with pytest.raises(TokenizerError, match=r"got outputs that begin with \[7\], wanted \[0\]"):
        bart_tokenizer(bart, forced_ids=(7,))


def test_barts_begin_and_class_tokens_are_one(folder: Path) -> None:
    directory = write_bart(folder / "class", cls_token="<mask>")
    with pytest.raises(TokenizerError, match=r"cls_token: got id 4, wanted 0 as bos_token$"):
        bart_tokenizer(directory)
    (directory / "tokenizer_config.json").unlink()
    (directory / "merges.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(TokenizerError, match=r"merges\.txt: not text in UTF-8$"):
        bart_tokenizer(directory)


@pytest.mark.parametrize("text", ["a </s> house", "<pad>", "<mask>", "<s><unk>"])
def test_special_tokens_in_a_text_are_barts_text(text: str, bart: Path) -> None:
    ours = bart_tokenizer(bart)
    ids = ours.encode(text)[1:-1]
    assert set(ids).isdisjoint({ours.pad_id, ours.eos_id, ours.bos_id, ours.unk_id, byte_pairs()[0]["<mask>"]})
    assert ours.decode(ids) == text


def write_mbart(directory: Path, *, further: tuple[str, ...] = (), rule: str = "nmt_nfkc", **settings: Any) -> Path:
    """The SentencePiece model; with further languages also the added tokens, as transformers 4 saved them."""
    directory.mkdir()
    model = piece_model("unigram", 500, rule=rule)
    (directory / MODEL).write_bytes(model)
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *text_pieces(model), *MBART50, "<mask>", *further]
    ids = {token: place for place, token in enumerate(tokens)}
    if further:
        special = ("<s>", "<pad>", "</s>", "<unk>", *MBART50, "<mask>", *further)
        settings["added_tokens_decoder"] = {str(ids[token]): added(token) for token in special}
    write_json(directory / "tokenizer_config.json", settings)
    return directory


@pytest.fixture(scope="module")
def mbart(folder: Path) -> Path:
    return write_mbart(folder / "mbart")


def check_mbart(directory: Path) -> Tokenizer:
    """Hold a directory against transformers: ids, text and every language token."""
    ours = reloaded(mbart50_tokenizer(directory), directory)
    theirs = load_hf("MBart50Tokenizer", directory, src_lang="de_DE", tgt_lang="fr_XX")
    assert (ours.pad_id, ours.unk_id, ours.eos_id) == (theirs.pad_token_id, theirs.unk_token_id, theirs.eos_token_id)
    assert_same_ids(ours, theirs, source_language="de")
    assert_same_text(ours, theirs, ids=range(len(theirs)))
    assert ours.forced_tokens("fr") == (theirs.convert_tokens_to_ids("fr_XX"),)
    assert {alias: ours.language_ids[code] for alias, code in ours.language_aliases.items()} == {
        own: theirs.convert_tokens_to_ids(own) for own in ours.language_aliases
    }
    assert set(MBART50) <= set(ours.language_aliases)
    return ours


def test_mbart50_with_nothing_but_a_sentencepiece_model(mbart: Path) -> None:
    check_mbart(mbart)


def test_mbart50_from_tokenizer_json_alone(mbart: Path, folder: Path) -> None:
    directory = folder / "mbart-json"
    load_hf("MBart50Tokenizer", mbart).save_pretrained(directory)
    assert {path.name for path in directory.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    check_mbart(directory)


def test_mbart50_with_a_language_of_its_own(folder: Path) -> None:
    ours = check_mbart(write_mbart(folder / "mbart-further", further=("ca_ES",)))
    assert ours.language_ids["ca"] == ours.vocab_size - 1


def test_mbart50_without_a_character_map(folder: Path) -> None:
    check_mbart(write_mbart(folder / "mbart-identity", rule="identity"))


def test_mbart50_closes_up_blanks_where_the_directory_says_so(folder: Path) -> None:
    check_mbart(write_mbart(folder / "mbart-cleaned", clean_up_tokenization_spaces=True))


@pytest.mark.parametrize("text", ["a </s> house", "<pad>", "fr_XX", "<mask> <unk>", "<s>de_DE</s>"])
@pytest.mark.parametrize("form", ["model", "json"])
def test_special_tokens_in_a_text_are_mbarts_text(form: str, text: str, mbart: Path, tmp_path: Path) -> None:
    # The pieces of a unigram model may hold special tokens; here text must not find them.
    if form == "json":
        load_hf("MBart50Tokenizer", mbart).save_pretrained(tmp_path)
    ours = mbart50_tokenizer(tmp_path if form == "json" else mbart)
    special = {ours.pad_id, ours.eos_id, 0, *ours.language_ids.values()}
    ids = ours.encode(text, source_language="de")[1:-1]
    assert special.isdisjoint(ids)
    assert len(ids) > 3
