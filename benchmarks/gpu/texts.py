"""BLEU of the bundled model's texts, of outputs that a machine without a tokenizer has written down.

    python -m benchmarks.gpu.texts outputs.json [--out FILE.json]

Run where sentencepiece and sacrebleu are: each exam of the model ``demo`` is held against the reference decoder, on
people's translations.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import sacrebleu

from benchmarks.gpu.models.prepare import DEMO_BUNDLE
from export.bundle import Bundle
from model.tokenizer import Tokenizer
from server.exam.thresholds import MAX_BLEU_LOSS

_EXAM = "exam demo "


def losses(outputs: dict[str, list[list[int]]]) -> dict[str, dict[str, float]]:
    """BLEU of every exam's texts, the reference decoder's, and their difference, by exam and search."""
    bundle = Bundle.open(DEMO_BUNDLE)
    tokenizer, golden = Tokenizer.load(bundle.tokenizer_path), bundle.golden()
    known = [(number, sentence.reference) for number, sentence in enumerate(golden) if sentence.reference is not None]
    people = [[reference for _, reference in known]]

    def bleu(tokens: list[list[int]]) -> float:
        return float(sacrebleu.corpus_bleu([tokenizer.decode(tokens[number]) for number, _ in known], people).score)

    found = {}
    for name, tokens in outputs.items():
        search = name.rpartition(" ")[2]
        if name.startswith(_EXAM) and search in ("greedy", "beam"):
            wanted = bleu([list(getattr(sentence, search).ids) for sentence in golden])
            got = bleu(tokens)
            found[name] = {"bleu": got, "reference_bleu": wanted, "loss": wanted - got}
    return found


def main() -> int:
    """Print a line for each exam and search; exit code 1 where one loses too much."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.texts", description="BLEU of written outputs")
    parser.add_argument("outputs", type=Path)
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    arguments = parser.parse_args()
    found = losses(json.loads(arguments.outputs.read_text(encoding="utf-8")))
    for name, figures in found.items():
        print(f"{name}: BLEU {figures['bleu']:.2f}, {figures['loss']:+.2f} below the reference")
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return int(any(figures["loss"] > MAX_BLEU_LOSS for figures in found.values()))


if __name__ == "__main__":
    sys.exit(main())
