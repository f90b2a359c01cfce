"""A model's own language codes as the shortest BCP-47 codes that tell its languages apart."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from langcodes import Language

# Codes that models use and no registry knows, or that the library replaces by another language's.
_LANGUAGES = {"ns": "nso", "tgl": "tl"}
_OWN_CODE = re.compile(r"(?:__|>>)?([A-Za-z]{2,3})(?:[_-]([A-Za-z]{4}))?(?:[_-]([A-Za-z]{2}))?(?:__|<<)?")
_NO_REGION = "XX"


class _Code(NamedTuple):
    """An own code, taken apart; script and region may be empty."""

    own: str
    language: str
    script: str
    region: str


def bare(own_code: str) -> str:
    """An own code without the marks around it: ``fr`` of ``__fr__``, ``fra`` of ``>>fra<<``."""
    return re.sub(r"^(?:__(.+)__|>>(.+)<<)$", r"\1\2", own_code)


def served_code(own_code: str) -> str:
    """The served code of a model's only language."""
    return next(iter(served_codes([own_code])))


def served_codes(own_codes: Iterable[str]) -> dict[str, str]:
    """Served code -> own code, in the order of the own codes.

    A script or a region is left out where the language alone is unique (``fra_Latn``, ``fr_XX``, ``__fr__`` and
    ``>>fra<<`` are ``fr``), and kept where it is not (``zh-Hans``, ``ace-Arab``). A language that stands for its
    macrolanguage is called so (``arb_Arab`` is ``ar``, as in CLDR) unless two would be. What is no code of this kind is
    served as it is.

    Args:
        own_codes: all codes of one model, for example ``fra_Latn``, ``fr_XX``, ``__fr__`` or ``>>fra<<``.
    """
    own_codes = list(dict.fromkeys(own_codes))
    codes = [code for own in own_codes if (code := _parse(own))]
    languages = {code.language for code in codes}
    wide = {language: _macrolanguage(language) for language in languages}
    claims = Counter(wide.values())
    names = {
        language: macro if claims[macro] == 1 and (macro == language or macro not in languages) else language
        for language, macro in wide.items()
    }
    served = {code.own: names[code.language] + _suffix(code, codes) for code in codes}
    taken = Counter(served.values())
    return {served[own] if own in served and taken[served[own]] == 1 else bare(own): own for own in own_codes}


def _parse(own: str) -> _Code | None:
    match = _OWN_CODE.fullmatch(own)
    if not match:
        return None
    language, script, region = (part or "" for part in match.groups())
    region = "" if region.upper() == _NO_REGION else region.upper()
    return _Code(own, _normal(language.lower()), script.title(), region)


def _normal(language: str) -> str:
    """The shortest code of a language: ``fr`` of ``fra``."""
    # The library also replaces a code by another language's (prs: fa-AF); only a spelling of two letters is wanted.
    return _LANGUAGES.get(language) or _two_letters(Language.get(language)) or language


def _macrolanguage(language: str) -> str:
    """The macrolanguage that a language is the standard of, else the language."""
    if language in _LANGUAGES.values():
        return language
    return _two_letters(Language.get(language, normalize=False).prefer_macrolanguage()) or language


def _two_letters(language: Language) -> str:
    tag = language.to_tag()
    return tag if len(tag) == 2 else ""


def _suffix(code: _Code, codes: list[_Code]) -> str:
    """What tells a code from the others of its language: nothing, its script, its region, or both."""
    others = [other for other in codes if other.language == code.language and other.own != code.own]
    if not others or not (code.script or code.region):
        return ""
    if code.script and all(other.script != code.script for other in others):
        return f"-{code.script}"
    if code.region and all(other.region != code.region for other in others):
        return f"-{code.region}"
    return "".join(f"-{part}" for part in (code.script, code.region) if part)
