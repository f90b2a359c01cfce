"""What a Hugging Face directory says of its special tokens, and its vocabularies.

All is read as plain data from files of fixed names; paths that stand in them are not followed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.tokenizer import TokenizerError
from model.tokenizer.reading import brief, check_text, flag_of, is_id, read_object

TOKENIZER_JSON = "tokenizer.json"
_CONFIG = "tokenizer_config.json"
_SPECIAL_TOKENS_MAP = "special_tokens_map.json"
_ADDED_TOKENS = "added_tokens.json"
_LISTS = ("additional_special_tokens", "extra_special_tokens")
_CLEAN_UP = "clean_up_tokenization_spaces"
_CLEAN_UP_BPE = f"{_CLEAN_UP}_for_bpe_even_though_it_will_corrupt_output"
_DEFAULTS = {
    "bos": "<s>",
    "eos": "</s>",
    "cls": "<s>",
    "sep": "</s>",
    "unk": "<unk>",
    "pad": "<pad>",
    "mask": "<mask>",
}
ROLES = tuple(_DEFAULTS)


@dataclass(frozen=True)
class SpecialTokens:
    """The tokens of a directory that are no pieces of text.

    Attributes:
        where: the directory, for messages.
        settings: tokenizer_config.json; empty where there is none.
        names: token by its role, one of bos, eos, cls, sep, unk, pad and mask.
        listed: further special tokens that are named without an id, in order.
        added: added token -> id, where the directory gives one.
        plain: those of ``added`` that are not marked as special.
    """

    where: str
    settings: Mapping[str, Any]
    names: Mapping[str, str]
    listed: tuple[str, ...]
    added: Mapping[str, int]
    plain: tuple[str, ...]

    def id_of(self, role: str, vocab: Mapping[str, int]) -> int:
        """The id of the token of a role, in a vocabulary or among the added tokens.

        Raises:
            TokenizerError: it has none.
        """
        token = self.names[role]
        found = vocab.get(token, self.added.get(token))
        if found is None:
            raise TokenizerError(f"{self.where}: {role}_token: got {brief(token)}, wanted a token of the vocabulary")
        return found

    def special_ids(self, vocab: Mapping[str, int]) -> set[int]:
        """The ids of all special tokens that a vocabulary or the directory gives one."""
        tokens = (*self.names.values(), *self.listed, *self.added)
        return {token_id for token in tokens if (token_id := vocab.get(token, self.added.get(token))) is not None}

    def check(self, vocab: Mapping[str, int], *, languages: Mapping[str, int]) -> None:
        """Hold that languages and added tokens fit a vocabulary and that none of them is text.

        Raises:
            TokenizerError: an id is taken by another token, or a token is neither special nor a language.
        """
        taken = {token_id: token for token, token_id in vocab.items()}
        for token, token_id in {**self.added, **languages}.items():
            other = taken.setdefault(token_id, token)
            if other != token:
                got = f"id {token_id} for {brief(other)} and {brief(token)}"
                raise TokenizerError(f"{self.where}: added tokens: got {got}, wanted one token for each id")
        for token in set(self.plain) - {*self.names.values(), *self.listed, *languages}:
            raise TokenizerError(f"{self.where}: added tokens: got {brief(token)} as text, wanted special tokens only")

    def refuse_sampling(self) -> None:
        """Hold that SentencePiece is not asked to draw its pieces at random.

        Raises:
            TokenizerError: it is given options.
        """
        options = self.settings.get("sp_model_kwargs")
        if options:
            raise TokenizerError(f"{self.where}: sp_model_kwargs: got {brief(options)}, wanted none")

    def cleans_up(self, *, bpe: bool) -> bool:
        """Whether transformers closes up blanks in outputs; of BPE it does so only where a second setting insists."""
        wanted = flag_of(self.settings, _CLEAN_UP, where=self.where)
        return wanted and (not bpe or flag_of(self.settings, _CLEAN_UP_BPE, where=self.where))


def read_special_tokens(directory: Path, *, roles: Iterable[str], classes: Collection[str]) -> SpecialTokens:
    """Read tokenizer_config.json, special_tokens_map.json, added_tokens.json and the added tokens of tokenizer.json.

    Args:
        directory: a Hugging Face directory.
        roles: those of bos, eos, cls, sep, unk, pad and mask that the family has even where no file names them.
        classes: what the family's tokenizer is called; a directory that names another is refused.

    Raises:
        TokenizerError: one of the files is there and broken, two disagree, or it is another family's tokenizer.
    """
    settings = _read_if_there(directory / _CONFIG)
    kind = settings.get("tokenizer_class")
    if kind is not None and kind not in classes:
        wanted = " or ".join(classes)
        raise TokenizerError(f"{directory / _CONFIG}: tokenizer_class: got {brief(kind)}, wanted {wanted}")
    sources = (settings, _read_if_there(directory / _SPECIAL_TOKENS_MAP))
    names = {role: _DEFAULTS[role] for role in roles}
    for role in _DEFAULTS:
        stated = [source[f"{role}_token"] for source in sources if source.get(f"{role}_token") is not None]
        if stated:
            names[role] = _content(stated[0], directory, f"{role}_token")
    listed = [token for source in sources for name in _LISTS for token in _listed(source, name, directory)]
    added: dict[str, int] = {}
    special = set()
    for token, token_id, is_special in _added_tokens(directory, settings):
        if added.setdefault(token, token_id) != token_id:
            got = f"ids {added[token]} and {token_id} for {brief(token)}"
            raise TokenizerError(f"{directory}: added tokens: got {got}, wanted one")
        if is_special:
            special.add(token)
    check_text((*names.values(), *listed, *added), where=f"{directory}: special tokens")
    plain = tuple(token for token in added if token not in special)
    return SpecialTokens(str(directory), settings, names, tuple(dict.fromkeys(listed)), added, plain)


def read_vocab(path: Path) -> tuple[str, ...]:
    """Pieces by id of a JSON object that maps pieces to ids.

    Raises:
        TokenizerError: the file is missing or broken, or its ids are not 0, 1, 2, ... once each.
    """
    return pieces_by_id(read_object(path), where=str(path))


def pieces_by_id(values: Mapping[str, Any], *, where: str) -> tuple[str, ...]:
    """Pieces by id; ``where`` names the mapping in messages.

    Raises:
        TokenizerError: the ids are not 0, 1, 2, ... once each.
    """
    pieces: dict[int, str] = {}
    for piece, token in values.items():
        if not is_id(token):
            raise TokenizerError(f"{where}: {brief(piece)}: got {brief(token)}, wanted a token id")
        if token in pieces:
            got = f"id {token} for {brief(pieces[token])} and {brief(piece)}"
            raise TokenizerError(f"{where}: got {got}, wanted one piece for each id")
        pieces[token] = piece
    missing = next((token for token in range(len(pieces)) if token not in pieces), None)
    if missing is not None or not pieces:
        raise TokenizerError(f"{where}: got no piece for id {missing or 0}, wanted ids without gaps from 0 on")
    ordered = tuple(pieces[token] for token in range(len(pieces)))
    check_text(ordered, where=where)
    return ordered


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_object(path) if path.exists() else {}


def _content(value: object, directory: Path, name: str) -> str:
    """The text of a token, which is saved as it is or with its settings."""
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise TokenizerError(f"{directory}: {name}: got {brief(value)}, wanted a token")
    return text


def _listed(source: Mapping[str, Any], name: str, directory: Path) -> list[str]:
    tokens = source.get(name)
    if isinstance(tokens, dict):  # names of further roles
        tokens = list(tokens.values())
    if tokens is not None and not isinstance(tokens, list):
        raise TokenizerError(f"{directory}: {name}: got {brief(tokens)}, wanted a list of tokens")
    return [_content(token, directory, name) for token in tokens or ()]


def _added_tokens(directory: Path, settings: Mapping[str, Any]) -> Iterable[tuple[str, int, bool]]:
    """Every added token with its id, and whether it is marked as special."""
    decoder = settings.get("added_tokens_decoder") or {}
    path = directory / _CONFIG
    if not isinstance(decoder, dict):
        raise TokenizerError(f"{path}: added_tokens_decoder: got {brief(decoder)}, wanted an object")
    for key, token in decoder.items():
        if not (key.isascii() and key.isdecimal() and len(key) < 10 and isinstance(token, dict)):
            raise TokenizerError(f"{path}: added_tokens_decoder: got {brief({key: token})}, wanted tokens by id")
        yield _content(token, directory, "added_tokens_decoder"), int(key), bool(token.get("special"))
    for token, token_id in _read_if_there(directory / _ADDED_TOKENS).items():
        if not is_id(token_id):
            raise TokenizerError(f"{directory / _ADDED_TOKENS}: {brief(token)}: got {brief(token_id)}, wanted an id")
        yield token, token_id, False
    path = directory / TOKENIZER_JSON
    added = _read_if_there(path).get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(token, dict) and is_id(token.get("id")) for token in added):
        raise TokenizerError(f"{path}: added_tokens: got {brief(added)}, wanted a list of tokens with ids")
    for token in added:
        yield _content(token, directory, "added_tokens"), token["id"], bool(token.get("special"))
