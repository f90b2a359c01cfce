"""From a Hugging Face directory to a served translation, by the commands of the README: the text is generate()'s."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.models.m2m_100.tokenization_m2m_100 as m2m100
import transformers.models.nllb.tokenization_nllb as nllb

from dragoman.v1 import translation_pb2 as pb
from server.cli import main
from tests.importers.hf_tokenizers import load_hf
from tests.importers.hugging import build
from tests.importers.test_generate_parity import DRAWINGS
from tests.served import Served

LINES = [
    "sale rosa",
    "Un ano, mada si lo resa.",
    "ma de ri ko pi tu san dola",
    "  kira   nodu ",
    "sedomira tanelo",
    "a e i o u",
]
# Short outputs: random models seldom end by themselves.
SHORT = {"max_length": 28, "num_beams": 4}


@dataclass(frozen=True)
class Family:
    """A drawing, the class of its tokenizer, and source and target language: own codes, served codes."""

    drawing: str
    tokenizer: str
    own: tuple[str, str] = ("", "")
    codes: tuple[str, str] = ("", "")
    flags: tuple[str, ...] = ()


FAMILIES = [
    Family("marian-swish", "MarianTokenizer"),
    Family("nllb-16-heads", "NllbTokenizer", ("deu_Latn", "zho_Hant"), ("de", "zh-Hant")),
    Family("m2m100-relu", "M2M100Tokenizer", ("cs", "fr"), ("cs", "fr")),
    Family("mbart-gelu", "MBart50Tokenizer", ("en_XX", "ro_RO"), ("en", "ro")),
    Family("bart-gelu", "BartTokenizer", flags=("--source-languages", "en", "--target-languages", "en")),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """transformers' models, their directories beside the bundles that were made of them."""
    root = tmp_path_factory.mktemp("families")
    built = {}
    for family in FAMILIES:
        drawing = DRAWINGS[family.drawing]
        source, checkpoint = root / "hf" / family.drawing, root / "checkpoints" / family.drawing
        built[family.drawing] = build(replace(drawing, generation={**drawing.generation, **SHORT}), source)
        bundle = root / "bundles" / family.drawing
        golden = root / "golden.jsonl"
        _name_languages(family, source)
        question = {"source": LINES[0], "source_language": family.own[0], "target_language": family.codes[1]}
        golden.write_text(json.dumps(question) + "\n")
        assert main(["import", drawing.toolkit, str(source), "--out", str(checkpoint), *family.flags]) == 0
        assert main(["export", str(checkpoint), "--out", str(bundle), "--golden", str(golden)]) == 0
        assert main(["verify", str(bundle)]) == 0
    return {"root": root, **built}


def _name_languages(family: Family, directory: Path) -> None:
    """Let the directory name its language tokens, as the published ones do."""
    tokens = {
        "NllbTokenizer": nllb.FAIRSEQ_LANGUAGE_CODES,
        "M2M100Tokenizer": [f"__{code}__" for code in m2m100.FAIRSEQ_LANGUAGE_CODES["m2m100"]],
    }.get(family.tokenizer)
    if tokens:
        tokenizer = load_hf(family.tokenizer, directory, extra_special_tokens=tokens)
        tokenizer.save_pretrained(directory)


@pytest.fixture(scope="module")
def server(models: dict[str, Any]) -> Iterator[Served]:
    served = Served("--models", str(models["root"] / "bundles"), "--threads", "1", "--lame-duck", "0")
    yield served
    assert served.stop() == 0


def theirs(model: Any, directory: Path, family: Family) -> list[str]:
    """What transformers makes of the lines, with nothing set that the model's own files do not set."""
    tokenizer = load_hf(family.tokenizer, directory)
    forced = {}
    if all(family.own):
        tokenizer.src_lang = family.own[0]
        target = f"__{family.own[1]}__" if family.tokenizer == "M2M100Tokenizer" else family.own[1]
        forced = {"forced_bos_token_id": tokenizer.convert_tokens_to_ids(target)}
    inputs = tokenizer(LINES, padding=True, return_tensors="pt")
    with torch.no_grad():
        outputs = model.generate(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, **forced)
    texts: list[str] = tokenizer.batch_decode(outputs, skip_special_tokens=True)
    # Ids beyond the tokenizer's vocabulary, which no trained model gives, are text to one of its classes.
    return [text.replace("<unk>", "") for text in texts]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.drawing)
def test_the_served_text_is_that_of_generate(family: Family, models: dict[str, Any], server: Served) -> None:
    request = pb.TranslateTextRequest(
        model=family.drawing,
        contents=LINES,
        # The model's own code on one side, the served one on the other.
        source_language_code=family.own[0],
        target_language_code=family.codes[1],
    )
    got = [translation.text for translation in server.stub.TranslateText(request, timeout=120).translations]
    wanted = theirs(models[family.drawing], models["root"] / "hf" / family.drawing, family)
    assert got == wanted
    assert len(set(got)) > len(LINES) // 2
