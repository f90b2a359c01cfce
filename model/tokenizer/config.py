"""What a tokenizer does, as data: ``config.json``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from model.tokenizer.errors import TokenizerError
from model.tokenizer.reading import brief, flag_of, id_of, ids_of, is_id, read_object, texts_of

CONFIG_FILE = "config.json"
_Enum = TypeVar("_Enum", bound=StrEnum)


class Kind(StrEnum):
    """What cuts text into pieces."""

    SENTENCEPIECE = "sentencepiece"
    TOKENIZERS = "tokenizers"


class Part(StrEnum):
    """One place of a template."""

    TEXT = "text"
    BOS = "bos"
    EOS = "eos"
    SOURCE_LANGUAGE = "source_language"
    TARGET_LANGUAGE = "target_language"


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Everything a tokenizer knows beside its pieces.

    Attributes:
        kind: what cuts text into pieces.
        pad_id: fills sources on the right.
        unk_id: stands for what no piece covers.
        eos_id: end token.
        bos_id: begin token; None where the model has none.
        source_template: what a source is made of; the text stands in it once.
        forced_template: what every output begins with; no text in it.
        special_ids: source tokens that no text gives.
        silent_ids: target tokens that decode shows nothing for.
        clean_up_spaces: whether decode closes up the blanks that some tokenizers leave before punctuation.
        language_ids: served BCP-47 code -> language token.
        language_aliases: the model's own code -> served code, where the two differ.
    """

    kind: Kind
    pad_id: int
    unk_id: int
    eos_id: int
    bos_id: int | None = None
    source_template: tuple[Part, ...] = (Part.TEXT, Part.EOS)
    forced_template: tuple[Part, ...] = ()
    special_ids: tuple[int, ...] = ()
    silent_ids: tuple[int, ...] = ()
    clean_up_spaces: bool = False
    language_ids: Mapping[str, int] = field(default_factory=dict)
    language_aliases: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Hold what the rest relies on.

        Raises:
            TokenizerError: a template or an alias refers to what is not there.
        """
        if self.source_template.count(Part.TEXT) != 1:
            raise TokenizerError(f"source_template: got {_listed(self.source_template)}, wanted the text in it once")
        if Part.TEXT in self.forced_template or Part.SOURCE_LANGUAGE in self.forced_template:
            wanted = "only bos, eos and target_language"
            raise TokenizerError(f"forced_template: got {_listed(self.forced_template)}, wanted {wanted}")
        if Part.BOS in (*self.source_template, *self.forced_template) and self.bos_id is None:
            raise TokenizerError("bos_id: got none, wanted the begin token that the templates name")
        for alias, code in self.language_aliases.items():
            if code not in self.language_ids:
                raise TokenizerError(f"language_aliases: {alias}: got {brief(code)}, wanted a code of language_ids")

    def largest_id(self) -> int:
        """The largest token id that is named here."""
        named = (self.pad_id, self.unk_id, self.eos_id, self.bos_id or 0, *self.language_ids.values())
        return max(*named, *self.special_ids)

    def save(self, directory: Path) -> None:
        """Write ``directory/config.json``."""
        text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False)
        (directory / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> TokenizerConfig:
        """Read and check ``directory/config.json``.

        Raises:
            TokenizerError: it is missing, or a field is missing, unknown or wrong.
        """
        path = directory / CONFIG_FILE
        where = str(path)
        values = read_object(path)
        known = {item.name for item in dataclasses.fields(cls)}
        if set(values) != known:
            got, wanted = sorted(set(values) - known), sorted(known - set(values))
            raise TokenizerError(f"{where}: got the unknown fields {got}, missed the fields {wanted}")
        try:
            return cls(
                kind=_member(Kind, values, "kind"),
                pad_id=id_of(values, "pad_id", where=where),
                unk_id=id_of(values, "unk_id", where=where),
                eos_id=id_of(values, "eos_id", where=where),
                bos_id=None if values["bos_id"] is None else id_of(values, "bos_id", where=where),
                source_template=_template(values, "source_template"),
                forced_template=_template(values, "forced_template"),
                special_ids=_ids(values, "special_ids"),
                silent_ids=_ids(values, "silent_ids"),
                clean_up_spaces=flag_of(values, "clean_up_spaces", where=where),
                language_ids=ids_of(values, "language_ids", where=where),
                language_aliases=texts_of(values, "language_aliases", where=where),
            )
        except TokenizerError as error:
            raise TokenizerError(str(error) if str(error).startswith(where) else f"{where}: {error}") from error


def _member(enum: type[_Enum], values: Mapping[str, Any], name: str) -> _Enum:
    try:
        return enum(values[name])
    except ValueError as error:
        raise TokenizerError(f"{name}: got {brief(values[name])}, wanted one of {_listed(tuple(enum))}") from error


def _template(values: Mapping[str, Any], name: str) -> tuple[Part, ...]:
    parts = values[name]
    if not isinstance(parts, list):
        raise TokenizerError(f"{name}: got {brief(parts)}, wanted a list")
    return tuple(_member(Part, {name: part}, name) for part in parts)


def _ids(values: Mapping[str, Any], name: str) -> tuple[int, ...]:
    ids = values[name]
    if not isinstance(ids, list) or not all(is_id(token) for token in ids):
        raise TokenizerError(f"{name}: got {brief(ids)}, wanted a list of token ids")
    return tuple(ids)


def _listed(parts: tuple[StrEnum, ...]) -> str:
    return ", ".join(parts) or "nothing"
