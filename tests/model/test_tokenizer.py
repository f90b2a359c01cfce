"""The tokenizer: round trips, special tokens, languages, text it has never seen, and what lies in its directory."""

from __future__ import annotations

import dataclasses
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from model.tokenizer import Kind, Part, Tokenizer, TokenizerConfig, TokenizerError, train_tokenizer
from model.tokenizer.pieces import PieceSegmenter
from model.tokenizer.spaces import clean_up, settled

ENGLISH = "man woman dog child runs sits sleeps red small the a on street bench"
GERMAN = "Mann Frau Hund Kind rennt sitzt schläft rot klein der ein auf Straße Bank"


def test_text_survives_a_round_trip(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("der Hund schläft auf der Bank")
    assert ids[-1] == tokenizer.eos_id
    assert tokenizer.decode(ids) == "der Hund schläft auf der Bank"
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2, 3)
    assert tokenizer.vocab_size == tokenizer.target_vocab_size == 48
    assert tokenizer.forced_tokens() == ()
    assert not tokenizer.language_ids
    assert not tokenizer.language_aliases


@pytest.mark.parametrize("text", ["", " ", " " * 10_000, "\t\n"])
def test_blank_text_is_the_end_token_alone(text: str, tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(text) == [tokenizer.eos_id]


@pytest.mark.parametrize("text", ["🚲🚲", "رجل يركب دراجة", "男 \ud800"])
def test_unseen_characters_become_unknown_tokens(text: str, tokenizer: Tokenizer) -> None:
    assert tokenizer.unk_id in tokenizer.encode(text)


def test_ids_beyond_the_vocabulary_give_nothing(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("man runs")
    assert tokenizer.decode([10_000, *ids, 48]) == "man runs"


def test_save_and_load_give_the_same_bytes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "a")
    Tokenizer.load(tmp_path / "a").save(tmp_path / "b")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert set(files_of(tmp_path / "a")) == {"config.json", "source.model"}


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


# A tokenizer with everything: two models, two vocabularies, languages around the text.
LANGUAGES = {"fr": 4, "zh-Hans": 5}
CONFIG = TokenizerConfig(
    kind=Kind.SENTENCEPIECE,
    pad_id=0,
    unk_id=1,
    eos_id=2,
    bos_id=3,
    source_template=(Part.SOURCE_LANGUAGE, Part.TEXT, Part.EOS),
    forced_template=(Part.BOS, Part.TARGET_LANGUAGE),
    special_ids=(0, 1, 2, 3, 4, 5),
    silent_ids=(0, 1, 2, 3, 4, 5),
    language_ids=LANGUAGES,
    language_aliases={"fra_Latn": "fr", "zho_Hans": "zh-Hans"},
)
SPECIAL_PIECES = ("<pad>", "<unk>", "</s>", "<s>", ">>fra<<", ">>zho<<")


def trained(words: str) -> bytes:
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([words] * 20),
        model_writer=buffer,
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return buffer.getvalue()


def pieces_of(model: bytes) -> tuple[str, ...]:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [processor.id_to_piece(token) for token in range(3, processor.vocab_size())]
    return (*SPECIAL_PIECES, *reversed(pieces))


@pytest.fixture(scope="module")
def models() -> tuple[bytes, bytes]:
    return trained(ENGLISH), trained(GERMAN)


@pytest.fixture
def rich(models: tuple[bytes, bytes]) -> Callable[..., Tokenizer]:
    def make(**changes: Any) -> Tokenizer:
        source, target = models
        config = dataclasses.replace(CONFIG, **changes)
        segmenter = PieceSegmenter(
            source,
            unk_id=config.unk_id,
            target_model=target,
            source_vocab=pieces_of(source),
            target_vocab=pieces_of(target),
            special_ids=config.special_ids,
        )
        return Tokenizer(config, segmenter)

    return make


def test_two_vocabularies_are_kept_apart(rich: Callable[..., Tokenizer], models: tuple[bytes, bytes]) -> None:
    tokenizer = rich()
    source, target = (pieces_of(model) for model in models)
    assert tokenizer.vocab_size == len(source)
    assert tokenizer.target_vocab_size == len(target)
    code, *ids, end = tokenizer.encode("man runs", source_language="fr")
    assert (code, end) == (LANGUAGES["fr"], CONFIG.eos_id)
    assert "".join(source[token] for token in ids) == "▁man▁runs"
    spelled = [target.index(piece) for piece in pieces_in(models[1], "Mann rennt")]
    assert tokenizer.decode([CONFIG.eos_id, LANGUAGES["fr"], *spelled, CONFIG.unk_id]) == "Mann rennt"


def test_translations_are_cut_by_the_targets_model_into_the_targets_ids(
    rich: Callable[..., Tokenizer], models: tuple[bytes, bytes], tokenizer: Tokenizer
) -> None:
    spelled = [pieces_of(models[1]).index(piece) for piece in pieces_in(models[1], "Mann rennt")]
    assert rich().encode_target("Mann rennt") == spelled
    assert rich().encode_target("Mann rennt男") == spelled, "what it never saw is left out"
    assert tokenizer.encode_target("der Hund \ud800") == tokenizer.encode("der Hund \ud800")[:-1]


def pieces_in(model: bytes, text: str) -> list[str]:
    pieces: list[str] = sentencepiece.SentencePieceProcessor(model_proto=model).encode(text, out_type=str)
    return pieces


def test_every_part_survives_the_directory(rich: Callable[..., Tokenizer], tmp_path: Path) -> None:
    tokenizer = rich()
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert set(files_of(tmp_path)) == {
        "config.json",
        "source.model",
        "source_vocab.json",
        "target.model",
        "target_vocab.json",
    }
    for text in ("man runs", "a 🚲", ""):
        assert loaded.encode(text, source_language="fr") == tokenizer.encode(text, source_language="fr")
    ids = range(loaded.target_vocab_size)
    assert loaded.decode(ids) == tokenizer.decode(ids) != ""
    assert loaded.forced_tokens("fr") == (3, 4)
    assert dict(loaded.language_ids) == LANGUAGES
    assert dict(loaded.language_aliases) == CONFIG.language_aliases


@pytest.mark.parametrize(
    ("template", "ids"),
    [
        ((Part.TEXT, Part.EOS), (2,)),
        ((Part.BOS, Part.TEXT, Part.EOS), (3, 2)),
        ((Part.SOURCE_LANGUAGE, Part.TEXT, Part.EOS), (4, 2)),
        ((Part.TARGET_LANGUAGE, Part.TEXT, Part.EOS), (5, 2)),
        ((Part.TEXT, Part.EOS, Part.SOURCE_LANGUAGE), (2, 4)),
    ],
)
def test_templates_say_what_goes_around_the_text(
    template: tuple[Part, ...], ids: tuple[int, ...], rich: Callable[..., Tokenizer]
) -> None:
    tokenizer = rich(source_template=template)
    assert tuple(tokenizer.encode("", source_language="fr", target_language="zh-Hans")) == ids


@pytest.mark.parametrize(
    ("template", "ids"),
    [((), ()), ((Part.BOS,), (3,)), ((Part.TARGET_LANGUAGE,), (4,)), ((Part.EOS, Part.TARGET_LANGUAGE), (2, 4))],
)
def test_outputs_begin_with_what_the_template_says(
    template: tuple[Part, ...], ids: tuple[int, ...], rich: Callable[..., Tokenizer]
) -> None:
    assert rich(forced_template=template).forced_tokens("fr") == ids


@pytest.mark.parametrize(("code", "got"), [("", "none"), ("de", "'de'"), ("fra_Latn", "'fra_Latn'")])
def test_a_missing_or_unknown_language_is_named(code: str, got: str, rich: Callable[..., Tokenizer]) -> None:
    tokenizer = rich()
    with pytest.raises(TokenizerError, match=f"^source language: got {got}, wanted one of fr, zh-Hans$"):
        tokenizer.encode("man", source_language=code)
    with pytest.raises(TokenizerError, match=f"^target language: got {got}, wanted one of fr, zh-Hans$"):
        tokenizer.forced_tokens(code)


@pytest.mark.parametrize("text", ["</s>", "<s> man", "fra_Latn", ">>fra<< man", "<pad><unk>", "a</s>>>fra<<"])
def test_text_is_never_read_as_special_tokens(text: str, rich: Callable[..., Tokenizer]) -> None:
    _, *ids, _ = rich().encode(text, source_language="fr")
    assert ids != []
    assert set(ids).isdisjoint(set(CONFIG.special_ids) - {CONFIG.unk_id})


def test_unknown_text_that_spells_a_special_piece_stays_unknown() -> None:
    # No character of "</s>" is in the model: SentencePiece hands it out whole, as it stands in the vocabulary.
    model = trained("mn")
    segmenter = PieceSegmenter(model, unk_id=1, source_vocab=SPECIAL_PIECES, special_ids=CONFIG.special_ids)
    assert "</s>" in pieces_in(model, "</s>")
    assert set(segmenter.encode("</s>")) == {1}
    assert segmenter.encode_target("</s>") == []


def test_a_text_may_choose_its_target_language_where_sources_begin_with_it(rich: Callable[..., Tokenizer]) -> None:
    tokenizer = rich(
        source_template=(Part.TARGET_LANGUAGE, Part.TEXT, Part.EOS), language_aliases={"fra": "fr", "cmn": "zh-Hans"}
    )
    plain = tokenizer.encode("man runs", target_language="fr")
    assert plain[0] == LANGUAGES["fr"]
    assert tokenizer.encode(">>fra<< man runs", target_language="zh-Hans") == plain
    assert tokenizer.encode(">>fra<<man runs") == plain
    assert tokenizer.encode(">>fr<< man runs") == plain
    # Not this model's: text.
    code, *ids, _ = tokenizer.encode(">>deu<< man", target_language="fr")
    assert code == LANGUAGES["fr"]
    assert len(ids) > len(tokenizer.encode("man", target_language="fr")) - 2


def broken_config(**changes: Any) -> str:
    values = json.loads(json.dumps(dataclasses.asdict(CONFIG)))
    return json.dumps({**values, **changes})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nonsense", "not JSON in UTF-8"),
        ("[" * 100_000, "not JSON in UTF-8"),
        ("[]", r"got \[\], wanted a JSON object"),
        ("{}", r"got the unknown fields \[\], missed the fields \['bos_id'"),
        (broken_config(path="../x"), r"got the unknown fields \['path'\], missed the fields \[\]"),
        (broken_config(kind="pickle"), "kind: got 'pickle', wanted one of sentencepiece"),
        (broken_config(kind=[]), r"kind: got \[\], wanted one of sentencepiece"),
        (broken_config(pad_id=-1), "pad_id: got -1, wanted a token id"),
        (broken_config(eos_id=True), "eos_id: got True, wanted a token id"),
        (broken_config(bos_id="2"), "bos_id: got '2', wanted a token id"),
        (broken_config(bos_id=None), "bos_id: got none, wanted the begin token that the templates name"),
        (broken_config(special_ids=[0.5]), r"special_ids: got \[0.5\], wanted a list of token ids"),
        (broken_config(silent_ids=4), "silent_ids: got 4, wanted a list of token ids"),
        (broken_config(clean_up_spaces="yes"), "clean_up_spaces: got 'yes', wanted true or false"),
        (broken_config(source_template="text"), "source_template: got 'text', wanted a list"),
        (broken_config(source_template=[]), "source_template: got nothing, wanted the text in it once"),
        (broken_config(source_template=["word"]), "source_template: got 'word', wanted one of text, bos, eos"),
        (broken_config(forced_template=["text"]), "forced_template: got text, wanted only bos, eos"),
        (broken_config(language_ids={"fr": "4"}), "language_ids: got {'fr': '4'}, wanted an object of token ids"),
        (broken_config(language_aliases={"fra": 1}), "language_aliases: got {'fra': 1}, wanted an object of texts"),
        (broken_config(language_aliases={"fra": "de"}), "language_aliases: fra: got 'de', wanted a code of"),
    ],
)
def test_a_broken_config_is_one_line(
    content: str, message: str, rich: Callable[..., Tokenizer], tmp_path: Path
) -> None:
    rich().save(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(TokenizerError, match=r"config\.json: " + message) as raised:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(raised.value)
    assert str(raised.value).count("config.json") == 1


@pytest.mark.parametrize("content", [b"nonsense", b"", b"\x0a\x05\x0a\x01a"])
@pytest.mark.parametrize("name", ["source.model", "target.model"])
def test_a_broken_model_is_one_line(
    name: str, content: bytes, rich: Callable[..., Tokenizer], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rich().save(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=rf"{name}: not a SentencePiece model$"):
        Tokenizer.load(tmp_path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("content", ["nonsense", "{}", "[1]", r'["\ud800"]', b'["\xff"]'])
@pytest.mark.parametrize("name", ["source_vocab.json", "target_vocab.json"])
def test_a_broken_vocabulary_is_one_line(
    name: str, content: str | bytes, rich: Callable[..., Tokenizer], tmp_path: Path
) -> None:
    rich().save(tmp_path)
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TokenizerError, match=rf"{name}: (not JSON|got .*, wanted (a list of texts|text without))"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "source.model"])
def test_a_missing_file_is_named(name: str, rich: Callable[..., Tokenizer], tmp_path: Path) -> None:
    rich().save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(TokenizerError, match=rf"{name}: No such file"):
        Tokenizer.load(tmp_path)


def test_a_file_outside_the_directory_is_not_read(rich: Callable[..., Tokenizer], tmp_path: Path) -> None:
    rich().save(tmp_path / "tokenizer")
    path = tmp_path / "tokenizer" / "target.model"
    path.rename(tmp_path / "elsewhere.model")
    path.symlink_to(tmp_path / "elsewhere.model")
    with pytest.raises(TokenizerError, match=r"target\.model: got a link, wanted a file of this directory"):
        Tokenizer.load(tmp_path / "tokenizer")


def test_a_model_without_special_tokens_is_no_joint_vocabulary(models: tuple[bytes, bytes]) -> None:
    with pytest.raises(TokenizerError, match="pad_id: got none, wanted a SentencePiece model that defines it"):
        Tokenizer.from_sentencepiece(models[0])
    with pytest.raises(TokenizerError, match="not a SentencePiece model"):
        Tokenizer.from_sentencepiece(b"nonsense")


def test_a_vocabulary_larger_than_the_text_is_refused() -> None:
    with pytest.raises(TokenizerError, match="cannot train a vocabulary of 9000"):
        train_tokenizer(["a b c"], vocab_size=9000)


# Texts whose blanks are closed up in several steps that depend on each other.
BLANKS = random.Random(3)
SPACED = ["".join(BLANKS.choices([" ", "'", " '", "n't", "re", " ve", ".", "m", "xyz"], k=12)) for _ in range(3000)]


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("I do n't , you 're !", "I don't, you're!"),
        ("We 've been . He 's ? I 'm", "We've been. He's? I'm"),
        ("the dogs ' bone", "the dogs'bone"),
        ("nothing to do", "nothing to do"),
    ],
)
def test_blanks_before_punctuation_are_closed_up(text: str, cleaned: str) -> None:
    assert clean_up(text) == cleaned


def test_what_is_settled_never_changes() -> None:
    for text in SPACED:
        whole = clean_up(text)
        for end in range(len(text)):
            assert whole.startswith(clean_up(settled(text[:end]))), (text, end)
    assert settled("ein langer Satz, zur ") == "ein langer Satz, zur"


def test_a_stream_of_a_text_with_closed_up_blanks_takes_nothing_back(rich: Callable[..., Tokenizer]) -> None:
    tokenizer = rich(clean_up_spaces=True)
    draw = random.Random(5)
    for _ in range(50):
        ids = [draw.randrange(tokenizer.target_vocab_size) for _ in range(12)]
        for end in range(len(ids)):
            assert tokenizer.decode(ids).startswith(tokenizer.decode_prefix(ids[:end]))
