"""What an imported model is called and which languages it serves."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from model.checkpoint import ModelCard
from model.config import ConfigError
from model.weight_files import CheckpointError


@dataclass(frozen=True, kw_only=True)
class Naming:
    """What the command line says of a model; empty: what its files say.

    Attributes:
        name: model name.
        source_languages: BCP-47 codes.
        target_languages: BCP-47 codes.
        license_note: licence of the weights and of the data they were trained on.
    """

    name: str = ""
    source_languages: tuple[str, ...] = ()
    target_languages: tuple[str, ...] = ()
    license_note: str = ""


@dataclass(frozen=True, kw_only=True)
class Languages:
    """What a model's files say of the languages of one side.

    Attributes:
        named: BCP-47 codes; empty: the files name none.
        closed: whether each has a token of its own, so that no other can be asked for.
        aliases: the model's own codes, each with the BCP-47 code that it stands for.
    """

    named: tuple[str, ...]
    closed: bool = False
    aliases: Mapping[str, str] = field(default_factory=dict)

    def choose(self, wanted: tuple[str, ...], *, side: str) -> tuple[str, ...]:
        """Those that the user wants; all where he names none.

        Raises:
            CheckpointError: nobody names any, or one is not the model's.
        """
        flag = f"--{side}-languages"
        if not wanted and not self.named:
            raise CheckpointError(f"{side} languages: got none in the model's files, wanted {flag} CODE[,CODE...]")
        chosen = tuple(dict.fromkeys(self.aliases.get(code, code) for code in wanted)) or self.named
        for code in chosen:
            if self.closed and code not in self.named:
                raise CheckpointError(f"{flag}: got {code!r}, wanted some of {', '.join(self.named)}")
        return chosen


def make_card(
    naming: Naming, *, fallback_name: str, sources: Languages, targets: Languages, decoding: dict[str, Any]
) -> ModelCard:
    """The card of a model.

    Args:
        naming: what the user says.
        fallback_name: a path or name in any spelling; its last part is taken where the user gives none.
        sources: languages that the files name.
        targets: likewise.
        decoding: defaults of the search.

    Raises:
        CheckpointError: nobody says which languages it serves, or a code is not among the model's.
    """
    name = naming.name or re.sub(r"[^a-z0-9._-]+", "-", fallback_name.rstrip("/").split("/")[-1].lower()).strip("-._")
    source_languages = sources.choose(naming.source_languages, side="source")
    target_languages = targets.choose(naming.target_languages, side="target")
    try:
        return ModelCard(
            name=name,
            source_languages=source_languages,
            target_languages=target_languages,
            license_note=naming.license_note,
            decoding=decoding,
        )
    except ConfigError as error:
        raise CheckpointError(f"{error}; give --name NAME") from error
