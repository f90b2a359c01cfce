"""Pipelines of the tokenizers library: only read where one is used, and a broken one is one line."""

from __future__ import annotations

import base64
import io
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2

from model.tokenizer import Kind, Tokenizer, TokenizerConfig, TokenizerError
from model.tokenizer.charsmap import check_charsmap
from model.tokenizer.fast import FastSegmenter

CONFIG = TokenizerConfig(
    kind=Kind.TOKENIZERS, pad_id=0, unk_id=1, eos_id=2, special_ids=(0, 1, 2), silent_ids=(0, 1, 2)
)
PROTO: Any = sentencepiece_model_pb2


def pipeline(**changes: Any) -> bytes:
    pieces = ["<pad>", "<unk>", "</s>", "m", "a", "n", "Ġ", "ma", "man", "Ġman", "Ċ", "ð", "Ł", "ĺ", "Ģ"]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    values = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {piece: token for token, piece in enumerate(pieces)},
            "merges": [["m", "a"], ["ma", "n"], ["Ġ", "man"]],
        },
        **changes,
    }
    return json.dumps(values).encode()


@pytest.fixture(scope="module")
def charsmap() -> bytes:
    """The character map that most SentencePiece models carry."""
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["man runs"] * 20),
        model_writer=buffer,
        vocab_size=20,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    proto = PROTO.ModelProto()
    proto.ParseFromString(buffer.getvalue())
    return bytes(proto.normalizer_spec.precompiled_charsmap)


def with_charsmap(charsmap: bytes | str) -> bytes:
    text = charsmap if isinstance(charsmap, str) else base64.b64encode(charsmap).decode()
    step = {"type": "Precompiled", "precompiled_charsmap": text}
    return pipeline(normalizer={"type": "Sequence", "normalizers": [step]})


def test_text_survives_a_round_trip_and_a_directory(tmp_path: Path) -> None:
    tokenizer = Tokenizer(CONFIG, FastSegmenter(pipeline()))
    assert tokenizer.encode("man man") == [8, 9, 2]
    assert tokenizer.decode([8, 9, 2, 1, 999]) == "man man"
    assert tokenizer.vocab_size == tokenizer.target_vocab_size == 15
    tokenizer.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "pipeline.json"}
    assert Tokenizer.load(tmp_path).encode("man man") == [8, 9, 2]


def test_a_character_is_held_back_until_its_last_byte() -> None:
    tokenizer = Tokenizer(CONFIG, FastSegmenter(pipeline()))
    ids = tokenizer.encode("man 😀")[:-1]
    assert tokenizer.decode(ids) == "man 😀"
    assert [tokenizer.decode_prefix(ids[:end]) for end in range(1, len(ids) + 1)] == ["man", *["man "] * 4, "man 😀"]


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Tokenizer(CONFIG, FastSegmenter(pipeline())).save(tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(TokenizerError, match=r'pipeline\.json: this tokenizer needs: pip install "dragoman\[bpe\]"$'):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        pipeline(version="9"),
        pipeline(model={"type": "Pickle"}),
        pipeline(model={"type": "Unigram", "unk_id": 0, "vocab": []}),
        pipeline(model={"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}),
        with_charsmap("no base64"),
        with_charsmap(b""),
        with_charsmap(b"\x08\0\0\0abc"),
    ],
)
def test_a_broken_pipeline_is_one_line(content: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    CONFIG.save(tmp_path)
    (tmp_path / "pipeline.json").write_bytes(content)
    with pytest.raises(TokenizerError, match=r"pipeline\.json: not a pipeline of the tokenizers library") as raised:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(raised.value)
    assert capfd.readouterr().err == ""


def test_a_character_map_is_read(charsmap: bytes) -> None:
    check_charsmap(charsmap)
    assert FastSegmenter(with_charsmap(charsmap)).encode("\uff4d\uff41\uff4e") == [8]  # full-width letters


def test_no_character_map_leads_outside_itself(charsmap: bytes) -> None:
    # The library does not look where a map leads: one that is let through must not make it fail.
    text = "".join(chr(code) for code in (*range(1, 0xD800), *range(0xE000, 0x20000)))
    refused = 0
    for seed in range(60):
        draw = random.Random(seed)
        damaged = bytearray(charsmap)
        for _ in range(draw.randint(1, 12)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        try:
            check_charsmap(bytes(damaged))
        except TokenizerError:
            refused += 1
        else:
            tokenizers.normalizers.Precompiled(bytes(damaged)).normalize_str(text)
    assert 0 < refused < 60


@pytest.mark.parametrize(
    ("charsmap", "message"),
    [
        (b"", "got 0 bytes"),
        (b"\x03\0\0\0abc", "got 7 bytes, wanted 3 and a header of 4"),
        (b"\0\0\0\0", "got 4 bytes"),
        (b"\x04\0\0\0\0\0\0\0", "got a way to unit 0, wanted fewer than 1"),
        (b"\x00\x04\0\0" + bytes(0x400) + b"\xff", "got replacements that are no UTF-8"),
    ],
)
def test_a_character_map_that_is_none_is_named(charsmap: bytes, message: str) -> None:
    with pytest.raises(TokenizerError, match=f"^character map: {message}"):
        check_charsmap(charsmap)
