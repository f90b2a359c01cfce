"""Tokenizers of Hugging Face directories as tokenizers of ours, held equal to transformers 5.23 in ids and text.

No punctuation is normalised: transformers keeps a normaliser for Marian, but does not call it when it tokenises.

Source: transformers 5.23, models/{marian,nllb,m2m_100,mbart50,roberta}/tokenization_*.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from model.importers.tokenizers.files import ROLES, TOKENIZER_JSON, SpecialTokens, read_special_tokens, read_vocab
from model.importers.tokenizers.language_lists import M2M100, MBART50, NLLB, WMT21
from model.importers.tokenizers.languages import bare, served_codes
from model.importers.tokenizers.pipelines import (
    SENTENCEPIECE,
    ModelType,
    byte_pipeline,
    metaspace_pipeline,
    read_byte_pairs,
    read_subwords,
)
from model.tokenizer import Kind, Part, Tokenizer, TokenizerConfig, TokenizerError
from model.tokenizer.fast import FastSegmenter
from model.tokenizer.pieces import PieceSegmenter, read_model_file
from model.tokenizer.reading import brief, flag_of

_SOURCE_SPM, _TARGET_SPM = "source.spm", "target.spm"
_VOCAB, _TARGET_VOCAB = "vocab.json", "target_vocab.json"
_MARIAN_CODE = re.compile(r">>[^<>\s]+<<")
_NLLB_CODE = re.compile(r"[a-z]{3}_[A-Z][a-z]{3}")
_MBART_CODE = re.compile(r"[a-z]{2,3}_[A-Z]{2}")
_M2M100_CODE = re.compile(r"__[a-z]{2,3}(?:_[A-Za-z]+)?__")
_BART_CLASSES = ("BartTokenizer", "BartTokenizerFast", "RobertaTokenizer", "RobertaTokenizerFast")


def marian_tokenizer(directory: Path) -> Tokenizer:
    """MarianMT: two SentencePiece models, and a vocabulary for both sides or one for each.

    Where the vocabulary holds target languages (``>>fra<<``), a source begins with one.

    Args:
        directory: holds source.spm, vocab.json and, where tokenizer_config.json says ``separate_vocabs``, target.spm
            and target_vocab.json.

    Raises:
        TokenizerError: a file is missing or broken, or the vocabularies do not fit each other.
    """
    special = read_special_tokens(directory, roles=("eos", "unk", "pad"), classes=("MarianTokenizer",))
    special.refuse_sampling()
    separate = flag_of(special.settings, "separate_vocabs", where=special.where)
    pieces = read_vocab(directory / _VOCAB)
    vocab = _ids(pieces)
    target_pieces = read_vocab(directory / _TARGET_VOCAB) if separate else pieces
    target_vocab = _ids(target_pieces)
    # With one vocabulary transformers joins outputs with the source's model, from which the target's may differ.
    target_model = read_model_file(directory / _TARGET_SPM) if separate or (directory / _TARGET_SPM).exists() else None
    languages = {piece: token for piece, token in vocab.items() if _MARIAN_CODE.fullmatch(piece)}
    special.check(vocab, languages=languages)
    eos_id = special.id_of("eos", vocab)
    if special.id_of("eos", target_vocab) != eos_id:
        got = f"id {special.id_of('eos', target_vocab)} for {special.names['eos']}"
        raise TokenizerError(f"{directory / _TARGET_VOCAB}: got {got}, wanted {eos_id} as in {_VOCAB}")
    language_ids, aliases = _served(languages)
    config = TokenizerConfig(
        kind=Kind.SENTENCEPIECE,
        pad_id=special.id_of("pad", vocab),
        unk_id=special.id_of("unk", vocab),
        eos_id=eos_id,
        source_template=(Part.TARGET_LANGUAGE, Part.TEXT, Part.EOS) if languages else (Part.TEXT, Part.EOS),
        special_ids=_sorted(special.special_ids(vocab), languages.values()),
        silent_ids=_sorted(special.special_ids(target_vocab), () if separate else languages.values()),
        clean_up_spaces=special.cleans_up(bpe=False),
        language_ids=language_ids,
        language_aliases=aliases,
    )
    segmenter = PieceSegmenter(
        read_model_file(directory / _SOURCE_SPM),
        unk_id=config.unk_id,
        target_model=target_model if separate else None,
        source_vocab=pieces,
        target_vocab=target_pieces if separate else None,
        special_ids=config.special_ids,
    )
    return Tokenizer(config, segmenter)


def m2m100_tokenizer(directory: Path) -> Tokenizer:
    """M2M-100: a SentencePiece model, a vocabulary, and language tokens behind it.

    As in transformers, the tokens of the family's languages stand in the family's order whatever ids the directory
    gives them; it may name fewer, and further ones with an id.

    Args:
        directory: holds sentencepiece.bpe.model and vocab.json.

    Raises:
        TokenizerError: a file is missing or broken, or a language has no id.
    """
    special = read_special_tokens(directory, roles=("bos", "eos", "sep", "unk", "pad"), classes=("M2M100Tokenizer",))
    special.refuse_sampling()
    pieces = read_vocab(directory / _VOCAB)
    vocab = _ids(pieces)
    family = special.settings.get("language_codes", "m2m100")
    codes = {"m2m100": M2M100, "wmt21": WMT21}.get(family) if isinstance(family, str) else None
    if codes is None:
        raise TokenizerError(f"{directory}: language_codes: got {brief(family)}, wanted 'm2m100' or 'wmt21'")
    fixed = {f"__{code}__": len(pieces) + place for place, code in enumerate(codes)}
    named = [token for token in (*special.listed, *special.added) if _M2M100_CODE.fullmatch(token)]
    further = {token: special.added.get(token) for token in named if token not in fixed}
    languages = {token: fixed[token] for token in named if token in fixed} if named else fixed
    languages |= _with_ids(further, taken=fixed.values(), where=special.where)
    special.check(vocab, languages=languages)
    config = _fairseq_config(special, vocab, languages, kind=Kind.SENTENCEPIECE, bpe=False)
    segmenter = PieceSegmenter(
        read_model_file(directory / SENTENCEPIECE),
        unk_id=config.unk_id,
        source_vocab=pieces,
        special_ids=config.special_ids,
    )
    return Tokenizer(config, segmenter)


def nllb_tokenizer(directory: Path) -> Tokenizer:
    """NLLB-200: BPE from SentencePiece and language tokens behind it; the source's language stands before its text.

    With ``legacy_behaviour`` in tokenizer_config.json it stands behind the end token.

    Args:
        directory: holds tokenizer.json, or sentencepiece.bpe.model.

    Raises:
        TokenizerError: a file is missing or broken, or a language has no id.
    """
    special = read_special_tokens(directory, roles=ROLES, classes=("NllbTokenizer", "NllbTokenizerFast"))
    legacy = flag_of(special.settings, "legacy_behaviour", where=special.where)
    return _metaspace_tokenizer(
        directory, special, model_type="BPE", pattern=_NLLB_CODE, family=NLLB, language_last=legacy
    )


def mbart50_tokenizer(directory: Path) -> Tokenizer:
    """mBART-50: a unigram model from SentencePiece and language tokens behind it, one before the source's text.

    Args:
        directory: holds tokenizer.json, or sentencepiece.bpe.model.

    Raises:
        TokenizerError: a file is missing or broken, or a language has no id.
    """
    special = read_special_tokens(
        directory,
        roles=("eos", "cls", "sep", "unk", "pad", "mask"),
        classes=("MBart50Tokenizer", "MBart50TokenizerFast"),
    )
    return _metaspace_tokenizer(
        directory, special, model_type="Unigram", pattern=_MBART_CODE, family=MBART50, language_last=False
    )


def bart_tokenizer(directory: Path, *, forced_ids: Sequence[int] = ()) -> Tokenizer:
    """BART: byte-level BPE, a begin token before the text.

    Args:
        directory: holds tokenizer.json, or vocab.json and merges.txt.
        forced_ids: what every output begins with: nothing, or the begin token.

    Raises:
        TokenizerError: a file is missing or broken, or outputs are to begin with another token.
    """
    special = read_special_tokens(directory, roles=ROLES, classes=_BART_CLASSES)
    subwords = read_byte_pairs(directory)
    vocab = _ids(subwords.pieces)
    special.check(vocab, languages={})
    ids = {role: special.id_of(role, vocab) for role in ("bos", "cls", "eos", "sep", "pad", "unk")}
    for role, other in (("cls", "bos"), ("sep", "eos")):
        if ids[role] != ids[other]:
            raise TokenizerError(f"{directory}: {role}_token: got id {ids[role]}, wanted {ids[other]} as {other}_token")
    if tuple(forced_ids) not in {(), (ids["bos"],)}:
        raise TokenizerError(f"{directory}: got outputs that begin with {list(forced_ids)}, wanted [{ids['bos']}]")
    special_ids = _sorted(special.special_ids(vocab))
    config = TokenizerConfig(
        kind=Kind.TOKENIZERS,
        pad_id=ids["pad"],
        unk_id=ids["unk"],
        eos_id=ids["eos"],
        bos_id=ids["bos"],
        source_template=(Part.BOS, Part.TEXT, Part.EOS),
        forced_template=(Part.BOS,) if forced_ids else (),
        special_ids=special_ids,
        silent_ids=special_ids,
        clean_up_spaces=special.cleans_up(bpe=True),
    )
    prefix = flag_of(special.settings, "add_prefix_space", where=special.where)
    pipeline = byte_pipeline(subwords, special_ids=special_ids, add_prefix_space=prefix)
    return Tokenizer(config, _fast(pipeline, directory))


def _metaspace_tokenizer(
    directory: Path,
    special: SpecialTokens,
    *,
    model_type: ModelType,
    pattern: re.Pattern[str],
    family: Sequence[str],
    language_last: bool,
) -> Tokenizer:
    """What NLLB and mBART-50 share."""
    names = {**special.names, "bos": special.names.get("bos", special.names["cls"])}
    subwords = read_subwords(directory, model_type=model_type, names=names)
    vocab = _ids(subwords.pieces)
    languages = {token: token_id for token, token_id in special.added.items() if pattern.fullmatch(token)}
    if not languages and (directory / TOKENIZER_JSON).exists():
        named = (token for token in (*special.listed, *family) if pattern.fullmatch(token))
        languages = {token: vocab[token] for token in named if token in vocab}
    elif not languages:
        # fairseq's order: the family's languages behind the pieces, then the mask token.
        fixed = {token: len(vocab) + place for place, token in enumerate(family)}
        tokens = [token for token in special.listed if pattern.fullmatch(token)] or family
        languages = _with_ids({token: fixed.get(token) for token in tokens}, taken=(), where=special.where)
    if not languages:
        raise TokenizerError(f"{directory}: got no language among the added tokens, wanted some like {family[0]}")
    special.check(vocab, languages=languages)
    config = _fairseq_config(
        special, vocab, languages, kind=Kind.TOKENIZERS, bpe=model_type == "BPE", language_last=language_last
    )
    pipeline = metaspace_pipeline(subwords, special_ids=config.special_ids, unk=special.names["unk"])
    return Tokenizer(config, _fast(pipeline, directory))


def _fairseq_config(
    special: SpecialTokens,
    vocab: Mapping[str, int],
    languages: Mapping[str, int],
    *,
    kind: Kind,
    bpe: bool,
    language_last: bool = False,
) -> TokenizerConfig:
    """A language on both sides: around the source, and as the first token of outputs."""
    language_ids, aliases = _served(languages)
    special_ids = _sorted(special.special_ids(vocab), languages.values())
    plain = (Part.TEXT, Part.EOS)
    return TokenizerConfig(
        kind=kind,
        pad_id=special.id_of("pad", vocab),
        unk_id=special.id_of("unk", vocab),
        eos_id=special.id_of("eos", vocab),
        source_template=(*plain, Part.SOURCE_LANGUAGE) if language_last else (Part.SOURCE_LANGUAGE, *plain),
        forced_template=(Part.TARGET_LANGUAGE,),
        special_ids=special_ids,
        silent_ids=special_ids,
        clean_up_spaces=special.cleans_up(bpe=bpe),
        language_ids=language_ids,
        language_aliases=aliases,
    )


def _served(languages: Mapping[str, int]) -> tuple[dict[str, int], dict[str, str]]:
    """Language tokens by served code, and served codes by own code where the two differ."""
    served = served_codes(languages)
    aliases = {bare(own): code for code, own in served.items() if bare(own) != code}
    return {code: languages[own] for code, own in served.items()}, aliases


def _with_ids(tokens: Mapping[str, int | None], *, taken: Iterable[int], where: str) -> dict[str, int]:
    """Language tokens, each with an id of its own."""
    taken = set(taken)
    found = {}
    for token, token_id in tokens.items():
        if token_id is None or token_id in taken:
            got = "no id" if token_id is None else f"the id {token_id} of another language"
            raise TokenizerError(f"{where}: language {brief(token)}: got {got}, wanted one of its own")
        taken.add(token_id)
        found[token] = token_id
    return found


def _fast(pipeline: bytes, directory: Path) -> FastSegmenter:
    try:
        return FastSegmenter(pipeline)
    except TokenizerError as error:
        raise TokenizerError(f"{directory}: {error}") from error


def _ids(pieces: Sequence[str]) -> dict[str, int]:
    return {piece: token for token, piece in enumerate(pieces)}


def _sorted(*groups: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted({token for group in groups for token in group}))
