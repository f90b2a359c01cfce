"""A model's own language codes, and the BCP-47 codes that it serves them as."""

from __future__ import annotations

import re

import pytest

from model.importers.tokenizers.language_lists import M2M100, MBART50, NLLB, WMT21
from model.importers.tokenizers.languages import bare, served_code, served_codes


@pytest.mark.parametrize(
    ("own", "served"),
    [
        ("fra_Latn", "fr"),
        ("fr_XX", "fr"),
        ("__fr__", "fr"),
        (">>fra<<", "fr"),
        ("deu", "de"),
        ("de_DE", "de"),
        ("zho_Hans", "zh"),
        ("pt_BR", "pt"),
        ("__ns__", "nso"),
        ("tgl_Latn", "tl"),
        ("arb_Arab", "ar"),
        ("cmn_Hans", "zh"),
        ("prs_Arab", "prs"),
        ("yue_Hant", "yue"),
        ("iw", "he"),
        ("qya_Latn", "qya"),
        (">>toki<<", "toki"),
        ("any thing", "any thing"),
    ],
)
def test_a_language_is_served_under_its_shortest_code(own: str, served: str) -> None:
    assert served_code(own) == served


@pytest.mark.parametrize(
    ("own", "served"),
    [
        # scripts and regions only where they tell apart; what has none of its own keeps the language alone
        (["zho_Hans", "zho_Hant", "fra_Latn"], ["zh-Hans", "zh-Hant", "fr"]),
        (["ace_Arab", "ace_Latn"], ["ace-Arab", "ace-Latn"]),
        (["jpn", "jpn_Hira"], ["ja", "ja-Hira"]),
        (["zh_CN", "zh_TW"], ["zh-CN", "zh-TW"]),
        (["sr_Latn_RS", "sr_Cyrl_RS", "sr_Latn_ME"], ["sr-Latn-RS", "sr-Cyrl", "sr-ME"]),
        # a macrolanguage only where it means one of them
        (["arb_Arab", "arz_Arab"], ["ar", "arz"]),
        (["arb", "ara"], ["arb", "ar"]),
        (["cmn_Hans", "zho_Hant"], ["cmn", "zh"]),
        (["twi_Latn", "aka_Latn"], ["tw", "ak"]),
        (["nno_Latn", "nob_Latn"], ["nn", "nb"]),
        # two spellings of one language keep their own
        (["fra", "fr"], ["fra", "fr"]),
        (["en_XX", "fr_XX", "en_XX"], ["en", "fr"]),
    ],
)
def test_languages_of_one_model_are_told_apart(own: list[str], served: list[str]) -> None:
    codes = served_codes(own)
    assert list(codes) == served
    assert list(codes.values()) == list(dict.fromkeys(own))


@pytest.mark.parametrize("family", [NLLB, MBART50, M2M100, WMT21])
def test_every_language_of_a_family_has_a_code_of_its_own(family: tuple[str, ...]) -> None:
    codes = served_codes(family)
    assert list(codes.values()) == list(family)
    assert all(re.fullmatch(r"[a-z]{2,3}(?:-[A-Z][a-z]{3})?", code) for code in codes)


def test_the_lists_are_those_of_the_families() -> None:
    assert [len(family) for family in (NLLB, MBART50, M2M100, WMT21)] == [202, 52, 100, 8]
    by_own = {own: code for code, own in served_codes(NLLB).items()}
    expected = {"eng_Latn": "en", "zsm_Latn": "ms", "pes_Arab": "fa", "prs_Arab": "prs", "kmr_Latn": "ku"}
    assert {own: by_own[own] for own in expected} == expected
    assert {own for own, code in by_own.items() if "-" in code} == {
        *("ace_Arab", "ace_Latn", "bjn_Arab", "bjn_Latn", "kas_Arab", "kas_Deva", "knc_Arab", "knc_Latn"),
        *("taq_Latn", "taq_Tfng", "zho_Hans", "zho_Hant"),
    }


@pytest.mark.parametrize(
    ("own", "code"), [("__fr__", "fr"), (">>fra<<", "fra"), ("fra_Latn", "fra_Latn"), ("__", "__")]
)
def test_an_own_code_without_its_marks(own: str, code: str) -> None:
    assert bare(own) == code
