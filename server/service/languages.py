"""Which languages a request means, and which models serve them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple, Protocol, TypeVar

from server.models import KnownModel
from server.service.errors import Violation, quote

Side = Literal["source", "target"]
SIDES: tuple[Side, Side] = ("source", "target")

# A model may serve hundreds of languages, and the metadata of a failed call has room for 8 KiB.
_MOST_LISTED = 48

# No language has a code so long, and trying every shorter one of a megabyte would take hours.
_LONGEST_CODE = 255

# Two codes of one language: by Chinese, BCP-47 means Mandarin unless it says otherwise.
_TWINS = {"zh": "cmn", "cmn": "zh"}
# Where Chinese is written in the traditional script.
_HANT_REGIONS = ("tw", "hk", "mo")

_Known = TypeVar("_Known", bound=KnownModel)


class Languages(NamedTuple):
    """What one model is asked for, in the codes that it serves."""

    source: str
    target: str


class LanguageRequest(Protocol):
    """A request as far as it speaks of languages; unset codes are empty."""

    @property
    def source_language_code(self) -> str:
        """BCP-47 code, or the model's own."""

    @property
    def target_language_code(self) -> str:
        """BCP-47 code, or the model's own."""


def match_language(wanted: str, served: Iterable[str], aliases: Mapping[str, str] | None = None) -> str | None:
    """The served code that a language code asks for, by lookup as in RFC 4647, section 3.4; None: none does.

    Case does not matter, and subtags that no served code has are dropped from the end: ``en-US`` finds ``en``. Of codes
    that differ in case, hyphen and underscore alone the one that is spelt like ``wanted`` is found, else the first.

    A script is not dropped where another served code of the language tells its script: ``sr-Latn`` finds no ``sr``
    beside ``sr-Cyrl``, but ``en-Latn`` finds ``en``. ``zh-TW`` asks for ``zh-Hant`` too. With a script, ``zh`` and
    ``cmn`` find each other.

    Args:
        wanted: a BCP-47 code, or one of the model's own.
        served: what the model serves.
        aliases: the model's own codes and what they stand for; a served code comes before an alias that is spelt alike.
    """
    exact = {code: code for code in served}
    if wanted in exact:
        return wanted
    if len(wanted) > _LONGEST_CODE:
        return None
    codes = tuple(exact)
    exact |= {own: code for own, code in (aliases or {}).items() if code in exact and own not in exact}
    alike: dict[str, str] = {}
    for spelling, code in exact.items():
        alike.setdefault(_key(spelling), code)

    def first(spellings: Iterable[str]) -> str | None:
        found = (exact.get(spelling) or alike.get(_key(spelling)) for spelling in spellings)
        return next(filter(None, found), None)

    ranges = [*_shortened(wanted)]
    script, place = _script(wanted)
    if not script:
        return first(ranges)
    language = _language(wanted)
    languages = (language, _TWINS.get(language, language))
    in_script = first([*ranges[: len(ranges) - place], *(f"{one}-{script}" for one in languages)])
    if in_script or any(_language(code) in languages and _script(code)[0] for code in codes):
        return in_script
    return first(ranges)


def _shortened(code: str) -> Iterator[str]:
    """``code`` as it is, without its last subtag, and so on down to its language."""
    while code:
        yield code
        code = code[: max(code.rfind("-"), code.rfind("_"), 0)]


def _language(code: str) -> str:
    return _key(code).partition("-")[0]


def _script(code: str) -> tuple[str, int]:
    """The script that a code names, or its region implies, and which subtag says so; empty: neither does."""
    language, *subtags = _key(code).split("-")
    # A single letter begins an extension, or what is private.
    subtags = [*itertools.takewhile(lambda subtag: len(subtag) > 1, subtags)]
    for place, subtag in enumerate(subtags, start=1):
        if len(subtag) == 4 and subtag.isalpha():
            return subtag, place
    regions = (place for place, subtag in enumerate(subtags, start=1) if subtag in _HANT_REGIONS)
    place = next(regions, 0) if language in _TWINS else 0
    return ("hant", place) if place else ("", 0)


def _key(code: str) -> str:
    return code.lower().replace("_", "-")


def match_languages(
    request: LanguageRequest, models: Iterable[_Known], violations: list[Violation]
) -> dict[_Known, Languages]:
    """Those of ``models`` that serve the request's languages; appends why a language leaves none."""
    models = list(models)
    sources = _match_side(request, "source", models, violations)
    # After a wrong source language the target is looked at all the same, to report both.
    targets = _match_side(request, "target", [*sources] or models, violations)
    return {model: Languages(sources[model], target) for model, target in targets.items() if model in sources}


def _match_side(
    request: LanguageRequest, side: Side, models: list[_Known], violations: list[Violation]
) -> dict[_Known, str]:
    wanted = code_of(request, side)
    found = {model: code for model in models if (code := _match_model(wanted, model, side))}
    if not found:
        got = quote(wanted) if wanted else "none"
        offered = listed({code for model in models for code in _served(model, side)})
        violations.append(Violation(field_of(side), f"got {got}, wanted one of {offered}"))
    return found


def _match_model(wanted: str, model: KnownModel, side: Side) -> str | None:
    served = _served(model, side)
    if not wanted:
        # Unset stands for a model's only language.
        return served[0] if len(served) == 1 else None
    return match_language(wanted, served, model.manifest.language_aliases)


def _served(model: KnownModel, side: Side) -> tuple[str, ...]:
    manifest = model.manifest
    return manifest.source_languages if side == "source" else manifest.target_languages


def code_of(request: LanguageRequest, side: Side) -> str:
    """The request's code of one side; empty where it is unset."""
    return request.source_language_code if side == "source" else request.target_language_code


def field_of(side: Side) -> str:
    """The field that holds the code of one side."""
    return f"{side}_language_code"


def listed(names: Iterable[str]) -> str:
    """Names in order, the first few of very many."""
    names = sorted(names)
    shown = ", ".join(names[:_MOST_LISTED])
    return shown if len(names) <= _MOST_LISTED else f"{shown} and {len(names) - _MOST_LISTED} more"
