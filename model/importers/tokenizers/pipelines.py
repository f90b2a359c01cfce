"""Pipelines of the `tokenizers` library from tokenizer.json, a SentencePiece model, or vocab.json and merges.txt.

Around its pieces each family has a fixed normaliser, pre-tokenizer and decoder, as transformers 5.23 has them; of
tokenizer.json only the pieces and the character map are read. Special tokens are made so that no text gives them.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from model.importers.tokenizers.files import TOKENIZER_JSON, pieces_by_id, read_vocab
from model.tokenizer import TokenizerError
from model.tokenizer.pieces import SPACE, read_model_file
from model.tokenizer.reading import brief, check_text, read_bytes, read_object

_PROTO: Any = sentencepiece_model_pb2  # generated, without types
ModelType = Literal["BPE", "Unigram"]
SENTENCEPIECE = "sentencepiece.bpe.model"
_METASPACE = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": True}
_ONE_BLANK = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
# The first pieces of a SentencePiece model (unk, bos, eos) give way to fairseq's.
_REPLACED = 3
_FAIRSEQ = ("bos", "pad", "eos", "unk")
# What a model of tokenizer.json may switch on and no family here has.
_UNUSED = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")


@dataclass(frozen=True, kw_only=True)
class Subwords:
    """The pieces of a model.

    Attributes:
        pieces: by id, special tokens among them.
        scores: log-probs by id (Unigram only).
        merges: pairs in the order they are merged in (BPE only).
        charsmap: SentencePiece's character map, base64; empty where there is none.
    """

    pieces: tuple[str, ...]
    scores: tuple[float, ...] = ()
    merges: tuple[tuple[str, str], ...] = ()
    charsmap: str = ""


def read_subwords(directory: Path, *, model_type: ModelType, names: dict[str, str]) -> Subwords:
    """Pieces of NLLB or mBART-50, from tokenizer.json, or where there is none from the SentencePiece model.

    Args:
        directory: a Hugging Face directory.
        model_type: what the family has.
        names: the tokens that stand first in fairseq's order: bos, pad, eos, unk.

    Raises:
        TokenizerError: a file is missing or broken, or holds another type of model.
    """
    if (directory / TOKENIZER_JSON).exists():
        return read_tokenizer_json(directory / TOKENIZER_JSON, model_type=model_type)
    path = directory / SENTENCEPIECE
    if not path.exists():
        raise TokenizerError(f"{directory}: got neither {TOKENIZER_JSON} nor {SENTENCEPIECE}, wanted one of them")
    return _read_sentencepiece(path, model_type=model_type, first=[names[role] for role in _FAIRSEQ])


def read_byte_pairs(directory: Path) -> Subwords:
    """Pieces of BART, from tokenizer.json, or where there is none from vocab.json and merges.txt.

    Raises:
        TokenizerError: a file is missing or broken, or holds another type of model.
    """
    path = directory / TOKENIZER_JSON
    if path.exists():
        pre_tokenizer = read_object(path).get("pre_tokenizer")
        if not isinstance(pre_tokenizer, dict):
            raise TokenizerError(f"{path}: pre_tokenizer: got {brief(pre_tokenizer)}, wanted an object")
        kind = pre_tokenizer.get("type")
        if kind != "ByteLevel":
            raise TokenizerError(f"{path}: pre_tokenizer: got {brief(kind)}, wanted 'ByteLevel'")
        return read_tokenizer_json(path, model_type="BPE")
    path = directory / "merges.txt"
    pieces = read_vocab(directory / "vocab.json")
    try:
        lines = read_bytes(path).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: not text in UTF-8") from error
    pairs = [line.rstrip("\r").split(" ") for line in lines if line.strip() and not line.startswith("#version")]
    return Subwords(pieces=pieces, merges=_checked_merges(pairs, pieces, where=str(path)))


def read_tokenizer_json(path: Path, *, model_type: ModelType) -> Subwords:
    """Pieces and character map of a tokenizer.json.

    Raises:
        TokenizerError: it is missing or broken, or holds another type of model.
    """
    values = read_object(path)
    where = f"{path}: model"
    model = values.get("model")
    if not isinstance(model, dict) or model.get("type") != model_type:
        got = model.get("type") if isinstance(model, dict) else model
        raise TokenizerError(f"{where}: got type {brief(got)}, wanted {model_type!r}")
    for name in _UNUSED:
        if model.get(name):
            raise TokenizerError(f"{where}: {name}: got {brief(model[name])}, wanted none")
    charsmap = _charsmap(values, where=str(path))
    vocab = model.get("vocab")
    if model_type == "Unigram":
        pieces, scores = _checked_scores(vocab, where=f"{where}: vocab")
        return Subwords(pieces=pieces, scores=scores, charsmap=charsmap)
    if not isinstance(vocab, dict):
        raise TokenizerError(f"{where}: vocab: got {brief(vocab)}, wanted an object")
    pieces = pieces_by_id(vocab, where=f"{where}: vocab")
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise TokenizerError(f"{where}: merges: got {brief(merges)}, wanted a list")
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    return Subwords(pieces=pieces, merges=_checked_merges(pairs, pieces, where=where), charsmap=charsmap)


def metaspace_pipeline(subwords: Subwords, *, special_ids: Collection[int], unk: str) -> bytes:
    """The pipeline of a model that came from SentencePiece: a blank becomes the beginning of a word."""
    unigram = bool(subwords.scores)
    steps: list[dict[str, Any]] = []
    if subwords.charsmap:
        steps.append({"type": "Precompiled", "precompiled_charsmap": subwords.charsmap})
    if subwords.charsmap or unigram:
        steps.append(_ONE_BLANK)
    model = _unigram_model(subwords, special_ids, unk=unk) if unigram else _bpe_model(subwords, special_ids, unk=unk)
    normalizer = {"type": "Sequence", "normalizers": steps} if steps else None
    return _pipeline(model, normalizer=normalizer, pre_tokenizer=_METASPACE, decoder=_METASPACE)


def byte_pipeline(subwords: Subwords, *, special_ids: Collection[int], add_prefix_space: bool) -> bytes:
    """The pipeline of byte-level BPE."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": True, "use_regex": True}
    model = _bpe_model(subwords, special_ids, unk=None)
    return _pipeline(model, normalizer=None, pre_tokenizer=byte_level, decoder=byte_level)


def _pipeline(
    model: dict[str, Any], *, normalizer: dict[str, Any] | None, pre_tokenizer: dict[str, Any], decoder: dict[str, Any]
) -> bytes:
    values: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()


def _bpe_model(subwords: Subwords, special_ids: Collection[int], *, unk: str | None) -> dict[str, Any]:
    special = {piece for token, piece in enumerate(subwords.pieces) if token in special_ids}
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unk,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": unk is not None,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {piece: token for token, piece in enumerate(subwords.pieces)},
        # Text is put together from characters: without a merge that ends in it, a special token never comes about.
        "merges": [pair for pair in subwords.merges if "".join(pair) not in special],
    }


def _unigram_model(subwords: Subwords, special_ids: Collection[int], *, unk: str) -> dict[str, Any]:
    # A special token is a piece as all others here. No piece of text holds a blank: this is what it is called.
    names = [f" {token}" if token in special_ids else piece for token, piece in enumerate(subwords.pieces)]
    return {
        "type": "Unigram",
        "unk_id": subwords.pieces.index(unk),
        "vocab": list(zip(names, subwords.scores, strict=True)),
        "byte_fallback": False,
    }


def _read_sentencepiece(path: Path, *, model_type: ModelType, first: list[str]) -> Subwords:
    proto = _PROTO.ModelProto()
    try:
        proto.ParseFromString(read_model_file(path))
    except DecodeError as error:
        raise TokenizerError(f"{path}: not a SentencePiece model") from error
    got = {1: "Unigram", 2: "BPE"}.get(proto.trainer_spec.model_type)
    if got != model_type:
        raise TokenizerError(f"{path}: got a model of type {got}, wanted {model_type!r}")
    kinds = _PROTO.ModelProto.SentencePiece
    for token, piece in enumerate(proto.pieces):
        if (piece.type in (kinds.CONTROL, kinds.UNKNOWN)) != (token < _REPLACED) or piece.type == kinds.USER_DEFINED:
            name = kinds.Type.Name(piece.type)
            wanted = "unk, bos and eos as the first pieces and only text behind them"
            raise TokenizerError(f"{path}: got piece {token}, {brief(piece.piece)}, of type {name}, wanted {wanted}")
    texts = [piece.piece for piece in proto.pieces[_REPLACED:]]
    pieces = (*first, *texts)
    charsmap = base64.b64encode(proto.normalizer_spec.precompiled_charsmap).decode("ascii")
    if model_type == "BPE":
        return Subwords(pieces=pieces, merges=_merges_of(texts), charsmap=charsmap)
    scores = (*(0.0 for _ in first), *(piece.score for piece in proto.pieces[_REPLACED:]))
    return Subwords(pieces=pieces, scores=scores, charsmap=charsmap)


def _merges_of(pieces: list[str]) -> tuple[tuple[str, str], ...]:
    """All merges that lead to a piece, best first: pieces of BPE are in the order in which they were merged."""
    rank = {piece: place for place, piece in enumerate(pieces)}
    merges = []
    for piece in pieces:
        splits = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [(left, right) for left, right in splits if left in rank and right in rank]
        merges += sorted(known, key=lambda pair: (len(pair[0]), len(pair[1]), rank[pair[0]], rank[pair[1]]))
    return tuple(merges)


def _charsmap(values: dict[str, Any], *, where: str) -> str:
    """The character map of a normaliser, which may be one of a sequence."""
    normalizer = values.get("normalizer") or {}
    steps = normalizer.get("normalizers") if isinstance(normalizer, dict) else None
    for step in steps if isinstance(steps, list) else [normalizer]:
        if isinstance(step, dict) and step.get("type") == "Precompiled":
            charsmap = step.get("precompiled_charsmap")
            try:
                if not isinstance(charsmap, str):
                    raise ValueError("no text")
                base64.b64decode(charsmap, validate=True)
            except (ValueError, binascii.Error) as error:
                raise TokenizerError(f"{where}: precompiled_charsmap: got {brief(charsmap)}, wanted base64") from error
            return charsmap
    return ""


def _checked_merges(pairs: list[Any], pieces: Collection[str], *, where: str) -> tuple[tuple[str, str], ...]:
    known = set(pieces)
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
            raise TokenizerError(f"{where}: merges: got {brief(pair)}, wanted two pieces")
        for piece in (*pair, "".join(pair)):
            if piece not in known:
                raise TokenizerError(f"{where}: merges: got {brief(piece)}, wanted a piece of the vocabulary")
    return tuple((pair[0], pair[1]) for pair in pairs)


def _checked_scores(vocab: object, *, where: str) -> tuple[tuple[str, ...], tuple[float, ...]]:
    if not isinstance(vocab, list) or not vocab:
        raise TokenizerError(f"{where}: got {brief(vocab)}, wanted a list of pieces with scores")
    for entry in vocab:
        if not (
            isinstance(entry, list)
            and len(entry) == 2
            and isinstance(entry[0], str)
            and isinstance(entry[1], int | float)
            and math.isfinite(entry[1])
        ):
            raise TokenizerError(f"{where}: got {brief(entry)}, wanted a piece and its score")
    pieces = tuple(entry[0] for entry in vocab)
    check_text(pieces, where=where)
    for piece, count in Counter(pieces).items():
        if count > 1:
            raise TokenizerError(f"{where}: got {brief(piece)} twice, wanted each piece once")
    return pieces, tuple(float(entry[1]) for entry in vocab)
