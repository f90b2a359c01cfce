"""The tokenizers of NLLB and M2M-100 give transformers' ids and text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model.importers.tokenizers import m2m100_tokenizer, nllb_tokenizer
from model.importers.tokenizers.language_lists import M2M100, NLLB
from model.tokenizer import Tokenizer, TokenizerError
from tests.importers.hf_tokenizers import (
    LINES,
    added,
    assert_same_ids,
    assert_same_text,
    load_hf,
    piece_model,
    reloaded,
    text_pieces,
    write_json,
    write_vocab,
)

MODEL = "sentencepiece.bpe.model"


def write_nllb(directory: Path, *, languages: tuple[str, ...] = NLLB, rule: str = "nmt_nfkc", **settings: Any) -> Path:
    """As transformers 4 saved it: the SentencePiece model, and the added tokens with their ids."""
    directory.mkdir()
    model = piece_model("bpe", 600, rule=rule)
    (directory / MODEL).write_bytes(model)
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *text_pieces(model), *languages[: len(NLLB)], "<mask>"]
    ids = {token: place for place, token in enumerate([*tokens, *languages[len(NLLB) :]])}
    special = {str(ids[token]): added(token) for token in ("<s>", "<pad>", "</s>", "<unk>", *languages, "<mask>")}
    write_json(directory / "tokenizer_config.json", {"added_tokens_decoder": special, **settings})
    return directory


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nllb")


@pytest.fixture(scope="module")
def nllb(folder: Path) -> Path:
    return write_nllb(folder / "nllb")


def ours_of(directory: Path) -> Tokenizer:
    return reloaded(nllb_tokenizer(directory), directory)


def check_nllb(directory: Path) -> Tokenizer:
    """Hold a directory against transformers: ids, text and every language token."""
    ours = ours_of(directory)
    theirs = load_hf("NllbTokenizer", directory, src_lang="deu_Latn", tgt_lang="zho_Hant")
    assert (ours.pad_id, ours.unk_id, ours.eos_id) == (theirs.pad_token_id, theirs.unk_token_id, theirs.eos_token_id)
    assert_same_ids(ours, theirs, source_language="de")
    assert_same_text(ours, theirs, ids=range(len(theirs)))
    assert ours.forced_tokens("zh-Hant") == (theirs.convert_tokens_to_ids("zho_Hant"),)
    own = {code: alias for alias, code in ours.language_aliases.items()}
    assert {own[code]: token for code, token in ours.language_ids.items()} == {
        code: theirs.convert_tokens_to_ids(code) for code in own.values()
    }
    assert set(NLLB) <= set(own.values())
    return ours


def test_nllb_from_a_sentencepiece_model(nllb: Path) -> None:
    ours = check_nllb(nllb)
    assert ours.encode("", source_language="de") == [ours.language_ids["de"], ours.eos_id]


def test_nllb_from_tokenizer_json_alone(nllb: Path, folder: Path) -> None:
    directory = folder / "json"
    load_hf("NllbTokenizer", nllb).save_pretrained(directory)
    assert {path.name for path in directory.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    ours = check_nllb(directory)
    assert dict(ours.language_ids) == dict(ours_of(nllb).language_ids)


def test_nllb_with_the_language_behind_the_text(folder: Path) -> None:
    ours = check_nllb(write_nllb(folder / "legacy", legacy_behaviour=True))
    assert ours.encode("", source_language="de") == [ours.eos_id, ours.language_ids["de"]]


def test_nllb_with_a_language_of_its_own(folder: Path) -> None:
    ours = check_nllb(write_nllb(folder / "further", languages=(*NLLB, "tyv_Cyrl")))
    assert ours.language_ids["tyv"] == ours.vocab_size - 1


def test_nllb_without_a_character_map(folder: Path) -> None:
    check_nllb(write_nllb(folder / "identity", rule="identity"))


def test_nllb_with_nothing_but_a_sentencepiece_model(nllb: Path, folder: Path) -> None:
    # transformers 5 has no language tokens then; the ids are those that the model was trained with.
    directory = folder / "bare"
    directory.mkdir()
    (directory / MODEL).write_bytes((nllb / MODEL).read_bytes())
    ours, theirs = ours_of(directory), load_hf("NllbTokenizer", directory)
    assert theirs.convert_tokens_to_ids("deu_Latn") == theirs.unk_token_id
    assert dict(ours.language_ids) == dict(ours_of(nllb).language_ids)
    for line in LINES:
        expected = theirs(line, add_special_tokens=False).input_ids
        assert ours.encode(line, source_language="de")[1:-1] == expected, repr(line)


def test_nllb_with_fewer_languages(nllb: Path, folder: Path) -> None:
    directory = folder / "fewer"
    directory.mkdir()
    (directory / MODEL).write_bytes((nllb / MODEL).read_bytes())
    write_json(directory / "special_tokens_map.json", {"additional_special_tokens": ["zho_Hans", "eng_Latn"]})
    every = ours_of(nllb).language_ids
    assert dict(ours_of(directory).language_ids) == {"zh": every["zh-Hans"], "en": every["en"]}
    write_json(directory / "special_tokens_map.json", {"additional_special_tokens": ["eng_Latn", "tyv_Cyrl"]})
    with pytest.raises(TokenizerError, match="language 'tyv_Cyrl': got no id, wanted one of its own"):
        nllb_tokenizer(directory)


@pytest.mark.parametrize("text", ["a </s> house", "<pad>", "fra_Latn", "<mask> <unk>", "<s>deu_Latn</s>"])
@pytest.mark.parametrize("kind", ["nllb", "m2m100"])
def test_special_tokens_in_a_text_are_text(kind: str, text: str, request: pytest.FixtureRequest) -> None:
    directory = request.getfixturevalue(kind)
    ours = ours_of(directory) if kind == "nllb" else m2m100_tokenizer(directory)
    special = {ours.pad_id, ours.eos_id, *ours.language_ids.values()}
    ids = ours.encode(text, source_language="de")[1:-1]
    assert special.isdisjoint(ids)
    assert len(ids) > 3


def test_merges_do_not_put_a_special_token_together(nllb: Path, tmp_path: Path) -> None:
    load_hf("NllbTokenizer", nllb).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    vocab, merges = values["model"]["vocab"], values["model"]["merges"]
    for token in values["added_tokens"]:
        token["id"] += 9 if token["id"] >= len(vocab) else 0
    for left, right in (("<", "/"), ("</", "s"), ("</s", ">")):
        for piece in (left, right, left + right):
            vocab.setdefault(piece, len(vocab))
        merges.append([left, right])
    write_json(tmp_path / "tokenizer.json", values)
    ours = nllb_tokenizer(tmp_path)
    _, *ids, _ = ours.encode("</s>", source_language="de")
    assert [ours.decode([token]) for token in ids] == ["", "</s", ">"]


def test_what_nllb_does_with_blanks_is_transformers_choice(nllb: Path) -> None:
    # SentencePiece drops a blank at the end, and so did the training; transformers 5 makes a piece of it.
    ours = ours_of(nllb)
    with_blank, without = (ours.encode(text, source_language="de") for text in ("Москва ", "Москва"))
    assert len(with_blank) == len(without) + 1


def write_m2m100(directory: Path, **settings: Any) -> Path:
    """As M2M-100 lies on the hub."""
    directory.mkdir()
    model = piece_model("unigram", 400)
    (directory / MODEL).write_bytes(model)
    pieces = text_pieces(model)
    write_vocab(directory / "vocab.json", ["<s>", "<pad>", "</s>", "<unk>", *pieces[::2], *pieces[1::2]])
    write_json(directory / "tokenizer_config.json", {"tokenizer_class": "M2M100Tokenizer", **settings})
    return directory


@pytest.fixture(scope="module")
def m2m100(folder: Path) -> Path:
    directory = write_m2m100(folder / "m2m100")
    tokens = [f"__{code}__" for code in M2M100]
    write_json(directory / "special_tokens_map.json", {"additional_special_tokens": tokens, "eos_token": "</s>"})
    return directory


def test_m2m100(m2m100: Path) -> None:
    ours = reloaded(m2m100_tokenizer(m2m100), m2m100)
    theirs = load_hf("M2M100Tokenizer", m2m100, src_lang="de", tgt_lang="ns")
    assert_same_ids(ours, theirs, source_language="de")
    assert_same_text(ours, theirs, ids=range(len(theirs)))
    assert ours.forced_tokens("nso") == (theirs.get_lang_id("ns"),)
    served = {ours.language_aliases.get(code, code): token for code, token in theirs.lang_code_to_id.items()}
    assert dict(ours.language_ids) == served
    assert dict(ours.language_aliases) == {"ns": "nso"}


def test_m2m100_as_transformers_saves_it(m2m100: Path, folder: Path) -> None:
    directory = folder / "m2m100-saved"
    load_hf("M2M100Tokenizer", m2m100).save_pretrained(directory)
    ours, theirs = m2m100_tokenizer(directory), load_hf("M2M100Tokenizer", directory, src_lang="zh", tgt_lang="fr")
    assert_same_ids(ours, theirs, source_language="zh")
    assert_same_text(ours, theirs, ids=range(len(theirs)))


@pytest.mark.parametrize("family", ["m2m100", "wmt21"])
def test_m2m100_with_nothing_but_the_models_files(family: str, folder: Path) -> None:
    directory = write_m2m100(folder / f"{family}-bare", language_codes=family)
    ours, theirs = m2m100_tokenizer(directory), load_hf("M2M100Tokenizer", directory, src_lang="de")
    assert_same_ids(ours, theirs, source_language="de")
    assert list(ours.language_ids.values()) == list(theirs.lang_code_to_id.values())


def test_m2m100_with_fewer_and_further_languages(folder: Path) -> None:
    directory = write_m2m100(folder / "named", added_tokens_decoder={"900": added("__tyv__")})
    write_json(directory / "special_tokens_map.json", {"additional_special_tokens": ["__fr__", "__de__"]})
    theirs = load_hf("M2M100Tokenizer", directory)
    # As transformers has it, the family's languages keep their places though fewer are named.
    expected = {"fr": theirs.get_lang_id("fr"), "de": theirs.get_lang_id("de"), "tyv": 900}
    assert dict(m2m100_tokenizer(directory).language_ids) == expected
    write_json(directory / "special_tokens_map.json", {"additional_special_tokens": ["__fr__", "__xx__"]})
    with pytest.raises(TokenizerError, match="language '__xx__': got no id, wanted one of its own"):
        m2m100_tokenizer(directory)
    write_json(directory / "tokenizer_config.json", {"language_codes": "m2m200"})
    with pytest.raises(TokenizerError, match="language_codes: got 'm2m200', wanted 'm2m100' or 'wmt21'"):
        m2m100_tokenizer(directory)
