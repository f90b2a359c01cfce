"""A tokenizer's directory that is broken or hostile: one line each, nothing read outside it."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.importers.tokenizers import (
    bart_tokenizer,
    m2m100_tokenizer,
    marian_tokenizer,
    mbart50_tokenizer,
    nllb_tokenizer,
)
from model.tokenizer import Tokenizer, TokenizerError
from tests.importers.hf_tokenizers import added, byte_pairs, load_hf, piece_model, text_pieces, write_json, write_vocab

SPM = "sentencepiece.bpe.model"
READERS: dict[str, Callable[[Path], Tokenizer]] = {
    "marian": marian_tokenizer,
    "m2m100": m2m100_tokenizer,
    "nllb": nllb_tokenizer,
    "mbart": mbart50_tokenizer,
    "bart": bart_tokenizer,
}


def write(kind: str, directory: Path) -> Path:
    """A sound directory of a family, with tokenizer_config.json only where it says what the default would not."""
    directory.mkdir(parents=True, exist_ok=True)
    unigram, bpe = piece_model("unigram", 300), piece_model("bpe", 600)
    match kind:
        case "marian":
            write_vocab(directory / "vocab.json", ["</s>", "<unk>", *text_pieces(unigram), "<pad>"])
            write_vocab(directory / "target_vocab.json", ["</s>", "<unk>", *text_pieces(unigram), "<pad>"])
            write_json(directory / "tokenizer_config.json", {"separate_vocabs": True})
            (directory / "source.spm").write_bytes(unigram)
            (directory / "target.spm").write_bytes(unigram)
        case "m2m100":
            write_vocab(directory / "vocab.json", ["<s>", "<pad>", "</s>", "<unk>", *text_pieces(unigram)])
            (directory / SPM).write_bytes(unigram)
        case "bart":
            vocab, merges = byte_pairs()
            write_json(directory / "vocab.json", vocab)
            (directory / "merges.txt").write_text("\n".join(map(" ".join, merges)), encoding="utf-8")
        case _:
            (directory / SPM).write_bytes(bpe if kind == "nllb" else unigram)
    return directory


def refused(kind: str, directory: Path, message: str) -> None:
    """Hold that a directory is refused in one line."""
    with pytest.raises(TokenizerError, match=message) as raised:
        READERS[kind](directory)
    assert "\n" not in str(raised.value)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """tokenizer.json as transformers 5 writes it."""
    found = {}
    for kind, name in (("nllb", "NllbTokenizer"), ("mbart", "MBart50Tokenizer"), ("bart", "BartTokenizer")):
        folder = tmp_path_factory.mktemp(kind)
        load_hf(name, write(kind, folder / "from")).save_pretrained(folder / "to")
        found[kind] = json.loads((folder / "to" / "tokenizer.json").read_text(encoding="utf-8"))
        if kind == "nllb":  # transformers forgets the languages of such a directory
            token = {**added("fra_Latn"), "id": len(found[kind]["model"]["vocab"]) + 1}
            found[kind]["added_tokens"].append(token)
    return found


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("marian", name) for name in ("source.spm", "target.spm", "vocab.json", "target_vocab.json")),
        *(("m2m100", name) for name in (SPM, "vocab.json")),
        *(("bart", name) for name in ("vocab.json", "merges.txt")),
    ],
)
def test_a_missing_file_is_named(kind: str, name: str, tmp_path: Path) -> None:
    READERS[kind](write(kind, tmp_path))
    (tmp_path / name).unlink()
    refused(kind, tmp_path, rf"{name}: No such file or directory$")


@pytest.mark.parametrize("kind", ["nllb", "mbart"])
def test_a_directory_without_a_tokenizer_is_named(kind: str, tmp_path: Path) -> None:
    refused(kind, tmp_path, rf"got neither tokenizer\.json nor {SPM}, wanted one of them$")


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x80\x04\x95cos\nsystem\n", bytes(1000)])
@pytest.mark.parametrize(
    ("kind", "name"),
    [("marian", "source.spm"), ("marian", "target.spm"), *((kind, SPM) for kind in ("m2m100", "nllb"))],
)
def test_a_garbage_model_is_one_line(
    kind: str, name: str, content: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (write(kind, tmp_path) / name).write_bytes(content)
    refused(kind, tmp_path, rf"{name}: not a SentencePiece model$")
    assert capfd.readouterr().err == ""


def test_a_garbage_target_model_is_refused_though_nothing_would_use_it(tmp_path: Path) -> None:
    write("marian", tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    marian_tokenizer(tmp_path)
    (tmp_path / "target.spm").write_bytes(b"garbage")
    refused("marian", tmp_path, r"target\.spm: not a SentencePiece model$")


@pytest.mark.parametrize("kind", ["nllb", "mbart", "m2m100", "marian"])
def test_a_damaged_model_is_refused_or_cuts_text(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    name = "source.spm" if kind == "marian" else SPM
    sound = (write(kind, tmp_path) / name).read_bytes()
    refusals = 0
    for seed in range(40):
        draw = random.Random(seed)
        damaged = bytearray(sound[: draw.randrange(len(sound))] if seed % 3 == 0 else sound)
        for _ in range(draw.randint(1, 20) if damaged else 0):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        (tmp_path / name).write_bytes(damaged)
        try:
            ours = READERS[kind](tmp_path)
        except TokenizerError as error:
            refusals += "\n" not in str(error)
        else:
            ours.encode("a house, ёлка \uff76\uff9e ½", source_language="de")
    assert refusals > 0
    assert "panicked" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("garbage", "not JSON in UTF-8$"),
        ("[" * 50_000, "not JSON in UTF-8$"),
        ('["a", "b"]', r"got \['a', 'b'\], wanted a JSON object$"),
        ("null", "got None, wanted a JSON object$"),
        ("{}", "got no piece for id 0, wanted ids without gaps from 0 on$"),
        ('{"a": 0, "b": 0}', "got id 0 for 'a' and 'b', wanted one piece for each id$"),
        ('{"a": 0, "b": 2}', "got no piece for id 1, wanted ids without gaps from 0 on$"),
        ('{"a": 1, "b": 2}', "got no piece for id 0, wanted ids without gaps from 0 on$"),
        ('{"a": 99999999999999999999}', "got no piece for id 0, wanted ids without gaps from 0 on$"),
        ('{"a": "0"}', "'a': got '0', wanted a token id$"),
        ('{"a": -1}', "'a': got -1, wanted a token id$"),
        ('{"a": true}', "'a': got True, wanted a token id$"),
        ('{"a": 0.5}', "'a': got 0.5, wanted a token id$"),
        (r'{"\ud800": 0}', r"got '\\ud800', wanted text without lone surrogates$"),
    ],
)
@pytest.mark.parametrize(
    ("kind", "name"), [("marian", "vocab.json"), ("marian", "target_vocab.json"), ("m2m100", "vocab.json")]
)
def test_a_broken_vocabulary_is_one_line(kind: str, name: str, content: str, message: str, tmp_path: Path) -> None:
    (write(kind, tmp_path) / name).write_text(content, encoding="utf-8")
    refused(kind, tmp_path, f"{name}: {message}")


@pytest.mark.parametrize(
    ("kind", "token", "role"), [("marian", "</s>", "eos"), ("marian", "<pad>", "pad"), ("m2m100", "<unk>", "unk")]
)
def test_a_missing_special_token_is_named(kind: str, token: str, role: str, tmp_path: Path) -> None:
    path = write(kind, tmp_path) / "vocab.json"
    pieces = [piece for piece in json.loads(path.read_text(encoding="utf-8")) if piece != token]
    write_vocab(path, pieces)
    refused(kind, tmp_path, f"{role}_token: got '{token}', wanted a token of the vocabulary$")


def test_end_tokens_of_two_vocabularies_are_the_same(tmp_path: Path) -> None:
    write_vocab(write("marian", tmp_path) / "target_vocab.json", ["a", "</s>", "<unk>", "<pad>"])
    refused("marian", tmp_path, r"target_vocab\.json: got id 1 for </s>, wanted 0 as in vocab\.json$")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], r"tokenizer_config\.json: got \[\], wanted a JSON object$"),
        ({"tokenizer_class": "T5Tokenizer"}, "tokenizer_class: got 'T5Tokenizer', wanted M2M100Tokenizer$"),
        ({"tokenizer_class": ["M2M100Tokenizer"]}, "tokenizer_class: got .*, wanted M2M100Tokenizer$"),
        ({"eos_token": 2}, "eos_token: got 2, wanted a token$"),
        ({"eos_token": {"content": None}}, "eos_token: got {'content': None}, wanted a token$"),
        ({"eos_token": "</end>"}, "eos_token: got '</end>', wanted a token of the vocabulary$"),
        ({"pad_token": "\ud800"}, "special tokens: got .*, wanted text without lone surrogates$"),
        ({"additional_special_tokens": "__fr__"}, "additional_special_tokens: got '__fr__', wanted a list of tokens$"),
        ({"extra_special_tokens": [3]}, "extra_special_tokens: got 3, wanted a token$"),
        ({"added_tokens_decoder": [1]}, r"added_tokens_decoder: got \[1\], wanted an object$"),
        ({"added_tokens_decoder": {"x": added("a")}}, "added_tokens_decoder: got .*, wanted tokens by id$"),
        ({"added_tokens_decoder": {"9" * 5000: added("a")}}, "added_tokens_decoder: got .*, wanted tokens by id$"),
        ({"added_tokens_decoder": {"7": added("a")}}, "got id 7 for .* and 'a', wanted one token for each id$"),
        (
            {"added_tokens_decoder": {"900": added("a", special=False)}},
            "added tokens: got 'a' as text, wanted special tokens only$",
        ),
        (
            {"added_tokens_decoder": {"900": added("a"), "901": added("a")}},
            "added tokens: got ids 900 and 901 for 'a', wanted one$",
        ),
        ({"sp_model_kwargs": {"enable_sampling": True}}, "sp_model_kwargs: got .*, wanted none$"),
        ({"clean_up_tokenization_spaces": "yes"}, "clean_up_tokenization_spaces: got 'yes', wanted true or false$"),
    ],
)
def test_broken_settings_are_one_line(settings: object, message: str, tmp_path: Path) -> None:
    path = write("m2m100", tmp_path) / "tokenizer_config.json"
    path.write_text(json.dumps(settings), encoding="utf-8")
    refused("m2m100", tmp_path, message)


def test_paths_in_settings_are_not_followed(tmp_path: Path) -> None:
    directory = write("marian", tmp_path / "model")
    expected = marian_tokenizer(directory).encode("a house")
    (tmp_path / "outside").write_text("{}", encoding="utf-8")
    outside = dict.fromkeys(("source_spm", "target_spm", "vocab", "vocab_file", "tokenizer_file"), "../outside")
    write_json(directory / "tokenizer_config.json", {"separate_vocabs": True, "name_or_path": "../outside", **outside})
    assert marian_tokenizer(directory).encode("a house") == expected


def test_the_links_of_a_download_cache_are_followed(tmp_path: Path) -> None:
    stored = write("nllb", tmp_path / "blobs") / SPM
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / SPM).symlink_to(Path("..") / "blobs" / SPM)
    assert stored.is_file()
    assert nllb_tokenizer(tmp_path / "snapshot").vocab_size > 600


def changed(values: Any, keys: tuple[Any, ...], value: Any) -> Any:
    """A JSON document with one place changed."""
    if not keys:
        return value
    copy = values.copy()
    copy[keys[0]] = changed(copy[keys[0]], keys[1:], value)
    return copy


CHARSMAP = ("normalizer", "normalizers", 0, "precompiled_charsmap")


@pytest.mark.parametrize(
    ("kind", "keys", "value", "message"),
    [
        ("nllb", (), [], r"got \[\], wanted a JSON object$"),
        ("nllb", ("model",), None, "model: got type None, wanted 'BPE'$"),
        ("nllb", ("model", "type"), "WordPiece", "model: got type 'WordPiece', wanted 'BPE'$"),
        ("nllb", ("model", "type"), "Unigram", "model: got type 'Unigram', wanted 'BPE'$"),
        ("mbart", ("model", "type"), "BPE", "model: got type 'BPE', wanted 'Unigram'$"),
        ("bart", ("model", "type"), "WordLevel", "model: got type 'WordLevel', wanted 'BPE'$"),
        ("bart", ("pre_tokenizer",), {"type": "BertPreTokenizer"}, "pre_tokenizer: got 'BertPreTokenizer', wanted 'B"),
        ("bart", ("pre_tokenizer",), "ByteLevel", "pre_tokenizer: got 'ByteLevel', wanted an object$"),
        ("bart", ("model", "dropout"), 0.1, "model: dropout: got 0.1, wanted none$"),
        ("nllb", ("model", "vocab"), [["a", 0]], "vocab: got .*, wanted an object$"),
        ("nllb", ("model", "vocab"), {"a": 0, "b": 0}, "vocab: got id 0 for 'a' and 'b', wanted one piece"),
        ("nllb", ("model", "merges"), None, "merges: got None, wanted a list$"),
        ("nllb", ("model", "merges"), ["a b c"], "merges: got .*, wanted two pieces$"),
        ("nllb", ("model", "merges"), [["a", 3]], "merges: got .*, wanted two pieces$"),
        ("nllb", ("model", "merges"), ["qq qq"], "merges: got 'qq', wanted a piece of the vocabulary$"),
        ("nllb", CHARSMAP, 3, "precompiled_charsmap: got 3, wanted base64$"),
        ("nllb", CHARSMAP, "§", "precompiled_charsmap: got '§', wanted base64$"),
        ("nllb", CHARSMAP, base64.b64encode(b"\x08\0\0\0abc").decode(), "character map: got 7 bytes, wanted 8"),
        ("nllb", ("added_tokens",), {"a": 1}, "added_tokens: got {'a': 1}, wanted a list of tokens with ids$"),
        ("nllb", ("added_tokens",), [{"id": "x"}], "added_tokens: got .*, wanted a list of tokens with ids$"),
        ("nllb", ("added_tokens",), [{"id": 1}], "added_tokens: got {'id': 1}, wanted a token$"),
        ("nllb", ("added_tokens",), [], "got no language among the added tokens, wanted some like ace_Arab$"),
        ("nllb", ("added_tokens", -1, "id"), 9, "added tokens: got id 9 for '.*' and 'fra_Latn', wanted one token"),
        ("mbart", ("model", "vocab"), [], r"vocab: got \[\], wanted a list of pieces with scores$"),
        ("mbart", ("model", "vocab", 7), ["a"], "vocab: got .*, wanted a piece and its score$"),
        ("mbart", ("model", "vocab", 7), ["a", float("nan")], "vocab: got .*, wanted a piece and its score$"),
        ("mbart", ("model", "vocab", 7), ["<s>", 0.0], "vocab: got '<s>' twice, wanted each piece once$"),
    ],
)
def test_a_broken_tokenizer_json_is_one_line(
    kind: str,
    keys: tuple[Any, ...],
    value: Any,
    message: str,
    saved: dict[str, dict[str, Any]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(saved[kind]), encoding="utf-8")
    READERS[kind](tmp_path)
    path.write_text(json.dumps(changed(saved[kind], keys, value)), encoding="utf-8")
    refused(kind, tmp_path, message)
    assert capfd.readouterr().err == ""


def test_models_of_another_type_are_refused(tmp_path: Path) -> None:
    (write("nllb", tmp_path) / SPM).write_bytes(piece_model("unigram", 300))
    refused("nllb", tmp_path, rf"{SPM}: got a model of type Unigram, wanted 'BPE'$")
    (tmp_path / SPM).write_bytes(piece_model("bpe", 600))
    refused("mbart", tmp_path, rf"{SPM}: got a model of type BPE, wanted 'Unigram'$")
    (tmp_path / SPM).write_bytes(piece_model("unigram", 300, user_defined_symbols="@@"))
    refused("mbart", tmp_path, rf"{SPM}: got piece 3, '@@', of type USER_DEFINED, wanted unk, bos and eos as the first")
