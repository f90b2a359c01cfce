"""Models of several languages: which codes find them, and what their tokens do to requests and replies."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import grpc
import pytest

from dragoman.v1 import translation_pb2 as pb
from export.bundle import DecodingDefaults
from model.tokenizer import Tokenizer
from server.decoding.sequence import SearchOptions
from server.models import ServedModel
from server.service.languages import match_language
from tests.decoding.fake_runner import random_rule
from tests.server.running import PATIENCE_S, TEXTS, RunningServer, code_of, fields_of, status_of

SERVED = ("de", "en", "fr", "zh-Hans", "zh-Hant")
ALIASES = {
    "deu_Latn": "de",
    "eng_Latn": "en",
    "fra_Latn": "fr",
    "zho_Hans": "zh-Hans",
    "zho_Hant": "zh-Hant",
    ">>fra<<": "fr",
}


@pytest.mark.parametrize(
    ("wanted", "served", "found"),
    [
        ("en", ("en",), "en"),
        ("en-US", ("en",), "en"),
        ("zh-Hant-TW", ("zh", "zh-Hant"), "zh-Hant"),
        ("ZH_hant", ("zh", "zh-Hant"), "zh-Hant"),
        ("en", ("en-GB",), None),
        ("e", ("en",), None),
        ("-en", ("en",), None),
        ("fra_Latn", SERVED, "fr"),
        ("FRA-latn", SERVED, "fr"),
        (">>fra<<", SERVED, "fr"),
        ("zho_Hant", SERVED, "zh-Hant"),
        ("zh", SERVED, None),
        ("fra_Latn", ("de", "en"), None),  # an alias of the other side's language
    ],
)
def test_language_lookup(wanted: str, served: tuple[str, ...], found: str | None) -> None:
    assert match_language(wanted, served, ALIASES) == found


def test_a_served_code_comes_before_an_alias_that_is_spelt_alike() -> None:
    assert match_language("zh", ("zh", "zh-Hant"), {"ZH": "zh-Hant"}) == "zh"


ALIKE = ("pt", "pt_br", "pt_BR", "pt-PT")
ALIKE_ALIASES = {"POR_br": "pt_br", "por_BR": "pt_BR", "pt-pt": "pt"}


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("pt_BR", "pt_BR"),
        ("pt_BR-x-fiction", "pt_BR"),
        ("pt_br", "pt_br"),
        ("pt-BR", "pt_br"),  # the first that differs in case and hyphen alone
        ("por_BR", "pt_BR"),
        ("por-BR", "pt_br"),
        ("pt-pt", "pt"),
        ("PT-PT", "pt-PT"),
    ],
)
def test_an_exact_spelling_comes_first_then_the_manifests_order(wanted: str, found: str) -> None:
    assert match_language(wanted, ALIKE, ALIKE_ALIASES) == found


def test_the_order_of_the_codes_decides_among_those_spelt_alike() -> None:
    orders = list(itertools.permutations(ALIKE[1:3]))
    assert [match_language("pt-BR", ("pt", *codes)) for codes in orders] == [codes[0] for codes in orders]


BOTH_SCRIPTS = ("cmn-Hans", "cmn-Hant", "zh")


@pytest.mark.parametrize(
    ("wanted", "served", "found"),
    [
        ("zh-Hant", BOTH_SCRIPTS, "cmn-Hant"),
        ("zh_hans", BOTH_SCRIPTS, "cmn-Hans"),
        ("zh-Hant-HK", BOTH_SCRIPTS, "cmn-Hant"),
        ("zh-cmn-Hant-HK", BOTH_SCRIPTS, "cmn-Hant"),
        ("cmn-Hant", ("zh-Hans", "zh-Hant"), "zh-Hant"),
        ("zh", BOTH_SCRIPTS, "zh"),
        ("zh-CN", BOTH_SCRIPTS, "zh"),
        ("zh-TW", BOTH_SCRIPTS, "cmn-Hant"),
        ("zh-HK-x-fiction", BOTH_SCRIPTS, "cmn-Hant"),
        ("zh-TW", (*BOTH_SCRIPTS, "zh-TW"), "zh-TW"),
        ("zh-Hans-TW", BOTH_SCRIPTS, "cmn-Hans"),
        ("zh-TW", ("zh", "zh-Hans"), None),
        ("zh-Hant", ("zh", "cmn-Hans"), None),
        ("zh-Hant", ("zh", "zh-TW"), None),
        ("zh-Latn", BOTH_SCRIPTS, None),
        ("cmn-Latn", ("cmn", "zh-Hans"), None),
        ("sr-Latn-RS", ("sr", "sr-Cyrl"), None),
        ("sr-Latn-RS", ("sr", "sr-Latn"), "sr-Latn"),
        # Where no script of the language is served by name, nobody can tell which one the bare code means.
        ("zh-Hant", ("zh", "en"), "zh"),
        ("zh-TW", ("zh", "en"), "zh"),
        ("en-Latn", ("en", "zh-Hans", "zh-Hant"), "en"),
        ("en-Latn-US", ("en", "zh-Hans", "zh-Hant"), "en"),
        # No scripts: a region, a variant, a private subtag.
        ("sr-ME", ("sr", "sr-Cyrl"), "sr"),
        ("sl-1994", ("sl", "sl-Latn"), "sl"),
        ("sr-x-abcd", ("sr", "sr-Cyrl"), "sr"),
        ("us-TW", ("us", "us-Latn"), "us"),
    ],
)
def test_a_script_is_not_dropped_where_the_model_tells_scripts_apart(
    wanted: str, served: tuple[str, ...], found: str | None
) -> None:
    assert match_language(wanted, served) == found


def test_an_own_code_keeps_its_script() -> None:
    assert match_language("zh-Hant", ("chi", "zh"), {"cmn_Hant": "chi"}) == "chi"


def test_a_code_of_a_megabyte_is_no_work(server: RunningServer, multi: ServedModel) -> None:
    error = failure(server, request("a man", source="en" + "-x" * 500_000))
    assert fields_of(error) == ["source_language_code"]


def tokenizer_of(plain: Tokenizer, folder: Path, **changes: Any) -> Tokenizer:
    """``plain`` with languages: their tokens stand before each source and before each output."""
    plain.save(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    ids = {code: plain.vocab_size + number for number, code in enumerate(SERVED)}
    config |= {
        "language_ids": ids,
        "language_aliases": ALIASES,
        "special_ids": [*config["special_ids"], *ids.values()],
        "source_template": ["source_language", "text", "eos"],
        "forced_template": ["target_language"],
        **changes,
    }
    path.write_text(json.dumps(config))
    return Tokenizer.load(folder)


@pytest.fixture
def speaking(tokenizer: Tokenizer, tmp_path: Path) -> Tokenizer:
    return tokenizer_of(tokenizer, tmp_path / "tokenizer")


@pytest.fixture
def multi(server: RunningServer, speaking: Tokenizer) -> ServedModel:
    """Every language to every other; its translation is the source."""
    return server.add_model(
        tokenizer=speaking,
        name="multi",
        source_languages=SERVED,
        target_languages=SERVED,
        language_aliases=ALIASES,
    )


def request(*texts: str, source: str = "en", target: str = "de", **options: Any) -> pb.TranslateTextRequest:
    return pb.TranslateTextRequest(
        contents=texts,
        source_language_code=source,
        target_language_code=target,
        decoding_config=pb.DecodingConfig(**options),
    )


def translate(server: RunningServer, *texts: str, **options: Any) -> list[pb.Translation]:
    return list(server.stub.TranslateText(request(*texts, **options), timeout=PATIENCE_S).translations)


def failure(server: RunningServer, wrong: pb.TranslateTextRequest) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as raised:
        server.stub.TranslateText(wrong, timeout=PATIENCE_S)
    assert code_of(raised.value) is grpc.StatusCode.INVALID_ARGUMENT
    return raised.value


@pytest.fixture
def submitted(multi: ServedModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], SearchOptions]]:
    """What the decode loop was asked, in order."""
    asked: list[tuple[list[int], SearchOptions]] = []
    submit = multi.decode_loop.submit

    def listen(sequences: Any) -> None:
        asked.extend((list(sequence.source), sequence.options) for sequence in sequences)
        submit(sequences)

    monkeypatch.setattr(multi.decode_loop, "submit", listen)
    return asked


@pytest.mark.parametrize(
    ("source", "target", "codes"),
    [
        ("en", "de", ("en", "de")),
        ("EN_gb", "fra_Latn", ("en", "fr")),
        ("zho_Hant", "zh-Hans-CN", ("zh-Hant", "zh-Hans")),
        ("deu_Latn", ">>fra<<", ("de", "fr")),
    ],
)
@pytest.mark.parametrize("beam_size", [1, 3])
def test_languages_choose_the_tokens(
    server: RunningServer,
    multi: ServedModel,
    submitted: list[tuple[list[int], SearchOptions]],
    source: str,
    target: str,
    codes: tuple[str, str],
    beam_size: int,
) -> None:
    (got,) = translate(server, TEXTS[0], source=source, target=target, beam_size=beam_size)
    ids = multi.tokenizer.language_ids
    ((tokens, options),) = submitted
    assert tokens[0] == ids[codes[0]]
    assert options.forced_tokens == (ids[codes[1]],)
    assert got.text == TEXTS[0]
    assert got.source_token_count == len(tokens)
    assert got.output_token_count == len(tokens) - 2  # neither language token nor end token is of the text


def test_hypotheses_leave_forced_tokens_out_too(server: RunningServer, multi: ServedModel) -> None:
    (got,) = translate(server, TEXTS[0], beam_size=3, num_hypotheses=2)
    assert got.hypotheses[0].output_token_count == got.output_token_count == got.source_token_count - 2


@pytest.mark.parametrize("beam_size", [1, 3])
def test_pieces_of_a_stream_join_to_the_whole(server: RunningServer, speaking: Tokenizer, beam_size: int) -> None:
    rule = random_rule(5, vocab=speaking.vocab_size)
    server.add_model(tokenizer=speaking, rule=rule, source_languages=SERVED, target_languages=SERVED)
    whole = translate(server, *TEXTS, beam_size=beam_size)
    streamed = pb.StreamTranslateTextRequest()
    streamed.ParseFromString(request(*TEXTS, beam_size=beam_size).SerializeToString())
    messages = list(server.stub.StreamTranslateText(streamed, timeout=PATIENCE_S))
    for index, translation in enumerate(whole):
        mine = [message for message in messages if message.content_index == index]
        assert "".join(message.text for message in mine) == translation.text
        assert all(message.text for message in mine[:-1]), "a forced token gives no message"
        assert mine[-1].translation == translation


@pytest.mark.parametrize("blank", ["", " ", "\u200b\u200b"])
def test_a_text_without_pieces_is_blank_whatever_stands_around_it(
    server: RunningServer, multi: ServedModel, blank: str
) -> None:
    assert translate(server, blank) == [pb.Translation(finish_reason=pb.FINISH_REASON_EMPTY_SOURCE)]


def test_one_piece_is_not_blank_where_nothing_stands_around_it(
    server: RunningServer, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    bare = tokenizer_of(tokenizer, tmp_path / "bare", source_template=["text"], forced_template=[])
    model = server.add_model(tokenizer=bare, rule=random_rule(3, vocab=bare.vocab_size), max_source_tokens=10)
    piece = bare.decode([max(range(4, tokenizer.vocab_size), key=lambda token: len(bare.decode([token])))])
    assert len(bare.encode(piece)) == 1
    with pytest.raises(grpc.RpcError) as raised:  # the fake runner wants an end token: it was asked
        translate(server, piece)
    assert code_of(raised.value) is grpc.StatusCode.INTERNAL
    assert model.decode_loop.active_sequences == 0


def test_languages_left_open_are_refused_with_what_is_served(server: RunningServer, multi: ServedModel) -> None:
    error = failure(server, request("a man", source="", target=""))
    assert fields_of(error) == ["source_language_code", "target_language_code"]
    assert status_of(error).message.count("got none, wanted one of de, en, fr, zh-Hans, zh-Hant") == 2


def test_a_language_token_needs_room(server: RunningServer, multi: ServedModel) -> None:
    error = failure(server, request("a man", max_output_tokens=1))
    assert fields_of(error) == ["decoding_config.max_output_tokens"]
    assert "got 1, wanted 2 to 60: 1 before the first of the text" in status_of(error).message
    (cut,) = translate(server, TEXTS[1], max_output_tokens=2)
    assert (cut.output_token_count, cut.finish_reason) == (1, pb.FINISH_REASON_MAX_TOKENS)


def test_rules_of_the_model_reach_the_search(
    server: RunningServer, multi: ServedModel, submitted: list[tuple[list[int], SearchOptions]]
) -> None:
    translate(server, "a man", beam_size=2)
    assert not submitted[0][1].early_stopping
    assert not submitted[0][1].forced_end
    rules = DecodingDefaults(max_output_tokens=50, beam_size=3, early_stopping=True, forced_end=True)
    strict = server.add_model(name="strict", decoding=rules)
    assert (strict.defaults.early_stopping, strict.defaults.forced_end) == (True, True)
    wrong = pb.TranslateTextRequest(
        model="strict",
        contents=["a man"],
        decoding_config=pb.DecodingConfig(max_output_tokens=5, min_output_tokens=5),
    )
    error = failure(server, wrong)
    assert "got 5, wanted 0 to 4, what max_output_tokens leaves room for" in status_of(error).message
    right = pb.TranslateTextRequest(
        model="strict", contents=[TEXTS[1]], decoding_config=pb.DecodingConfig(beam_size=1, max_output_tokens=4)
    )
    (cut,) = server.stub.TranslateText(right, timeout=PATIENCE_S).translations
    assert (cut.output_token_count, cut.finish_reason) == (3, pb.FINISH_REASON_MAX_TOKENS)
    assert list(cut.warnings) == [pb.TRANSLATION_WARNING_OUTPUT_TRUNCATED]


def test_hundreds_of_languages_fit_into_a_refusal(server: RunningServer) -> None:
    codes = tuple(f"{letter}{other}x-Latn" for letter in "abcdefghij" for other in "abcdefghijklmnopqrst")
    server.add_model(name="many", source_languages=codes, target_languages=codes)
    error = failure(server, request("a man", source="", target="nope"))
    assert fields_of(error) == ["source_language_code", "target_language_code"]
    assert "aax-Latn" in status_of(error).message
    assert "and 152 more" in status_of(error).message
