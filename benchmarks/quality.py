"""Translation quality of a running server, held against the PyTorch reference sentence by sentence.

    python benchmarks/quality.py --server 127.0.0.1:50051 --checkpoint checkpoints/multi30k-en-de \
        --source test.en --references test.de --beam-size 5 --out benchmarks/results/quality.json

Sends every line to the server, and decodes it with the slow cache-free reference as well; prints BLEU (cased and
lower-cased) and chrF of both with their signatures, and every sentence on which the two differ.
Token ids are not on the wire: equal text, equal token count and a score within 1e-3 stand for them here;
``dragoman verify --golden`` compares the ids themselves.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
from pathlib import Path

import grpc
import sacrebleu
import torch
from tqdm import tqdm

from dragoman.v1 import translation_pb2, translation_pb2_grpc
from model.checkpoint import Checkpoint, load_checkpoint
from model.data import read_lines
from model.reference import ReferenceHypothesis, ReferenceOptions, beam_search, greedy_search

BATCH = 100
SCORE_TOLERANCE = 1e-3


def translate(
    server: str, texts: list[str], options: translation_pb2.DecodingConfig
) -> list[translation_pb2.Translation]:
    """Translations of ``texts`` by the server, in order."""
    translations: list[translation_pb2.Translation] = []
    with grpc.insecure_channel(server) as channel:
        stub = translation_pb2_grpc.TranslationServiceStub(channel)
        for start in tqdm(range(0, len(texts), BATCH), desc="server", unit="batch"):
            request = translation_pb2.TranslateTextRequest(
                contents=texts[start : start + BATCH], decoding_config=options
            )
            translations += stub.TranslateText(request, timeout=600).translations
    return translations


def decode(checkpoint: Checkpoint, text: str, *, beam_size: int, max_output_tokens: int) -> ReferenceHypothesis:
    """The reference's best hypothesis for one text."""
    source = checkpoint.tokenizer.encode(text)
    options = ReferenceOptions(beam_size=beam_size, max_output_tokens=max_output_tokens)
    if beam_size == 1:
        return greedy_search(checkpoint.model, source, options)
    return beam_search(checkpoint.model, source, options)[0]


def measures(outputs: list[str], references: list[str]) -> dict[str, dict[str, float | str]]:
    """BLEU cased and lower-cased, and chrF, each with its signature."""
    result: dict[str, dict[str, float | str]] = {}
    for name, metric in (
        ("BLEU", sacrebleu.BLEU()),
        ("BLEU-lc", sacrebleu.BLEU(lowercase=True)),
        ("chrF", sacrebleu.CHRF()),
    ):
        score = metric.corpus_score(outputs, [references])
        result[name] = {"score": round(score.score, 2), "signature": str(metric.get_signature())}
    return result


def main() -> int:
    """Measure, print, and write the JSON; 1 where server and reference differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="127.0.0.1:50051")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--references", type=Path, required=True)
    parser.add_argument("--beam-size", type=int, default=5)
    parser.add_argument("--max-output-tokens", type=int, default=200)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    texts, references = read_lines(arguments.source), read_lines(arguments.references)
    checkpoint = load_checkpoint(arguments.checkpoint)
    options = translation_pb2.DecodingConfig(
        beam_size=arguments.beam_size,
        length_penalty=1.0,
        length_penalty_type=translation_pb2.LENGTH_PENALTY_TYPE_GNMT,
        max_output_tokens=arguments.max_output_tokens,
        return_scores=True,
    )
    served = translate(arguments.server, texts, options)
    reference = [
        decode(checkpoint, text, beam_size=arguments.beam_size, max_output_tokens=arguments.max_output_tokens)
        for text in tqdm(texts, desc="reference", unit="sentence")
    ]
    reference_texts = [checkpoint.tokenizer.decode(hypothesis.tokens) for hypothesis in reference]
    differing = [
        index
        for index, (ours, theirs, text) in enumerate(zip(served, reference, reference_texts, strict=True))
        if ours.text != text
        or ours.output_token_count != len(theirs.tokens)
        or abs(ours.score - theirs.score) > SCORE_TOLERANCE
    ]
    for index in differing:
        print(f"line {index + 1}: server {served[index].text!r}, reference {reference_texts[index]!r}")
    report = {
        "sentences": len(texts),
        "differing": len(differing),
        "largest_score_difference": max(abs(a.score - b.score) for a, b in zip(served, reference, strict=True)),
        "beam_size": arguments.beam_size,
        "server": measures([translation.text for translation in served], references),
        "reference": measures(reference_texts, references),
        "source_sha256": hashlib.sha256(arguments.source.read_bytes()).hexdigest(),
        "references_sha256": hashlib.sha256(arguments.references.read_bytes()).hexdigest(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    print(json.dumps(report, indent=2))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
