"""What an imported model is called and which languages it serves."""

from __future__ import annotations

import pytest

from model.importers.card import Languages, Naming, make_card
from model.weight_files import CheckpointError

TOKENS = Languages(named=("de", "fr"), closed=True, aliases={"fra_Latn": "fr"})


def test_the_user_chooses_among_languages_that_have_tokens() -> None:
    assert TOKENS.choose((), side="target") == ("de", "fr")
    assert TOKENS.choose(("fra_Latn", "fr"), side="target") == ("fr",)
    with pytest.raises(CheckpointError, match="--target-languages: got 'xx', wanted some of de, fr"):
        TOKENS.choose(("de", "xx"), side="target")


def test_where_no_token_tells_languages_apart_the_user_names_them() -> None:
    assert Languages(named=("en",)).choose(("en-GB",), side="source") == ("en-GB",)
    with pytest.raises(CheckpointError, match="source languages: got none in the model's files"):
        Languages(named=()).choose((), side="source")


@pytest.mark.parametrize(
    ("path", "name"),
    [("Helsinki-NLP/opus-mt-en-de", "opus-mt-en-de"), ("/models/My Model (v2)/", "my-model-v2"), ("x", "x")],
)
def test_a_name_is_made_of_the_path(path: str, name: str) -> None:
    english = Languages(named=("en",))
    card = make_card(Naming(), fallback_name=path, sources=english, targets=english, decoding={})
    assert card.name == name


def test_a_path_that_gives_no_name_asks_for_one() -> None:
    english = Languages(named=("en",))
    with pytest.raises(CheckpointError, match=r"name: got '', wanted lower-case letters.*give --name NAME"):
        make_card(Naming(), fallback_name="/日本/", sources=english, targets=english, decoding={})
