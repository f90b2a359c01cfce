"""Lines of text, made up from a seed, that tokenizers are known to disagree about."""

# ruff: noqa: RUF001 - characters that look alike are what this is about

from __future__ import annotations

import random
from functools import cache


def _split(words: str) -> tuple[str, ...]:
    return tuple(words.split())


WORDS = _split(
    "the a house street quickly naïve café cooperate isn't state-of-the-art e.g. U.S.A. der Straßenbahnhaltestelle "
    "Fußgänger Übermut ça œuvre l'été garçon año niño coração Łódź żółć čeština şehir İstanbul ığdır "
    "Москва человек бежит ёлка щука Ελλάδα άνθρωπος γειά שלום עולם رجل يركب دراجة हिन्दी नमस्ते दुनिया বাংলা தமிழ் ไทย "
    "北京 大学 你好 世界 東京 走る カタカナ ひらがな 한국어 안녕하세요 ქართული հայերեն አማርኛ"
)
# What normalisers, splitters of punctuation and byte fallbacks treat in ways of their own.
ODDITIES = (
    *(
        "“quoted”",
        "‘single’",
        "«guillemets»",
        "„unten“",
        "´",
        "``tex''",
        "'",
        '"',
        "…",
        "...",
        "--",
        "–",
        "—",
        "―",
        "‐",
    ),
    *("1", "23", "1,234.56", "1 000", "½", "⅓", "²", "№5", "50%", "€9.99", "$1", "§3", "10°C", "3×4", "2026-11-21"),
    *(
        "(a)",
        "[b]",
        "{c}",
        "<d>",
        "a/b",
        "a&b",
        "&amp;",
        "@you",
        "#tag",
        "www.example.org",
        "x@y.z",
        "\\n",
        "~",
        "^",
        "|",
    ),
    # decomposed, stacked and lone combining marks; jamo; kana with voiced marks
    *("e\u0301", "a\u0308", "o\u0302\u0301", "u\u0308\u0304\u0301\u0323", "\u0301", "क\u093c", "\u1112\u1161\u11ab"),
    *("\uff76\uff9e", "か\u3099", "\ufb01n", "Ｆｕｌｌ", "①", "㎏", "ﷺ", "Å", "Ω", "ſ"),
    *("😀", "👍🏽", "👩‍👩‍👧", "🇫🇷", "❤️", "🚲🚲", "1️⃣"),
    # characters that no training text of the tests holds
    *("𐍈", "ꙮ", "☃", "\u2603\ufe0e", "𠜎", "ᚠᚢ", "￼", "\ue000", "▁", "Ġ"),
    *("\u200b", "\u200d", "\u00ad", "\ufeff", "\u200f", "\u0000", "\u0007", "\u007f", "\u0085"),
)
BLANKS = (" ", " ", " ", " ", "  ", "   ", "\u00a0", "\u3000", "\u2009", "\t", "\r", "", "-", ", ", ". ")


@cache
def odd_lines(count: int, *, seed: int) -> tuple[str, ...]:
    """Lines of 0 to 24 words and oddities between blanks of all kinds; some begin or end with blanks."""
    draw = random.Random(seed)
    lines = []
    for number in range(count):
        kind = number % 10
        if kind == 9:
            # one very long word
            lines.append("".join(draw.choices("abcdefghijklmnoprstuvwzäöéжひ", k=draw.randint(40, 300))))
            continue
        pool = WORDS if kind < 3 else (*WORDS, *ODDITIES)
        parts = [draw.choice(("", "", "", " ", "  ", "\u00a0", "\t"))]
        for _ in range(draw.randint(0, 24)):
            parts += [draw.choice(pool), draw.choice(BLANKS)]
        lines.append("".join(parts).removesuffix(" ") if number % 2 else "".join(parts))
    return tuple(lines)


@cache
def plain_lines(count: int, *, seed: int) -> tuple[str, ...]:
    """Lines to train a tokenizer on: words, made-up words and some punctuation."""
    draw = random.Random(seed)
    syllables = _split("ba ne ti lo ru sch ei an ung té ção жи на ко ма το να دي ما शा ने の か 北 한")
    made_up = ["".join(draw.choices(syllables, k=draw.randint(2, 5))) for _ in range(1200)]
    extra = ("“", "”", "–", "«", "»", ".", ",", "!", "'", "1", "2", "%", "(", ")", "-", "é", "ü", "👍")
    pools = ((*WORDS, *WORDS), made_up, extra)
    return tuple(
        " ".join(draw.choice(draw.choices(pools, weights=(5, 4, 2))[0]) for _ in range(draw.randint(3, 14)))
        for _ in range(count)
    )
