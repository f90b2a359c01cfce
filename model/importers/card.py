"""What an imported model is called and which languages it serves."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from model.checkpoint import ModelCard
from model.config import ConfigError
from model.weights import CheckpointError


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


def make_card(
    naming: Naming, *, fallback_name: str, sources: tuple[str, ...], targets: tuple[str, ...], decoding: dict[str, Any]
) -> ModelCard:
    """The card of a model.

    Args:
        naming: what the user says.
        fallback_name: a path or name in any spelling; its last part is taken where the user gives none.
        sources: languages that the files name; empty: they name none.
        targets: likewise.
        decoding: defaults of the search.

    Raises:
        CheckpointError: nobody says which languages it serves, or a code is not among the model's.
    """
    chosen = {}
    for side, wanted, known in (
        ("source", naming.source_languages, sources),
        ("target", naming.target_languages, targets),
    ):
        languages = wanted or known
        if not languages:
            flag = f"--{side}-languages"
            raise CheckpointError(f"{side} languages: got none in the model's files, wanted {flag} CODE[,CODE...]")
        chosen[side] = languages
    name = naming.name or re.sub(r"[^a-z0-9._-]+", "-", fallback_name.rstrip("/").split("/")[-1].lower()).strip("-._")
    try:
        return ModelCard(
            name=name,
            source_languages=chosen["source"],
            target_languages=chosen["target"],
            license_note=naming.license_note,
            decoding=decoding,
        )
    except ConfigError as error:
        raise CheckpointError(f"{error}; give --name NAME") from error
