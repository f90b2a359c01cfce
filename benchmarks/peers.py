"""The same weights, the same work: this project's decode loop against CTranslate2, in one interleaved run.

    python benchmarks/peers.py WORKDIR [--precision int8 fp32] [--rounds 5] [--only "one request"] [--out FILE.json]

The model is a Marian of Transformer-base size with seeded random weights and 32,000 tokens, made once below WORKDIR and
imported, exported and converted from there. Its end token is barred by its own bias, so that every output has the
length that is asked for and nobody wins by stopping early. Work is taken in turn round by round, so that other load on
the machine meets all systems alike; medians, minima and maxima are printed, in seconds, and the ratio of the medians.

CTranslate2 runs as it is fastest here: one translator with all cores inside for a single request, else one worker per
core, its sources sorted by length in batches of 32.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ctranslate2
import sentencepiece
import torch
import transformers

from export.bundle import Bundle
from export.cli import run_export
from export.runners.ort_cpu import OrtCpuRunner
from model.importers import Naming, import_checkpoint
from server.decoding.loop import DecodeLoop
from server.decoding.sequence import Result, SearchOptions
from server.decoding.sequence import Sequence as Job
from server.resources import cpu_count

VOCAB, PIECES, PAD, END = 32_000, 400, 31_999, 0
BATCH = 32
_NEVER = -1e4
_REST_S = 0.5


class Work:
    """Sources as token ids, each with the output length that is asked for."""

    def __init__(self, name: str, lengths: Sequence[int], *, beam_size: int = 1, output: int | None = None) -> None:
        draw = random.Random(len(lengths))
        self.name = name
        self.beam_size = beam_size
        self.sources = [[*draw.choices(range(2, PAD), k=length - 1), END] for length in lengths]
        self.outputs = [output or length for length in lengths]


def works() -> list[Work]:
    """What is measured."""
    draw = random.Random(512)
    mixed = [draw.randint(5, 60) for _ in range(512)]
    return [
        Work("one request, greedy", [20], output=25),
        Work("one request, beam 4", [20], output=25, beam_size=4),
        *(Work(f"batch of {rows}, greedy", [20] * rows, output=25) for rows in (8, 32, 64, 128)),
        Work("512 mixed requests, greedy", mixed),
        Work("32 sources, beam 4", [20] * 32, output=25, beam_size=4),
    ]


def make_marian(directory: Path) -> None:
    """A MarianMT directory of base size, seeded."""
    torch.manual_seed(1)
    config = transformers.MarianConfig(
        vocab_size=VOCAB,
        d_model=512,
        encoder_layers=6,
        decoder_layers=6,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=2048,
        decoder_ffn_dim=2048,
        max_position_embeddings=512,
        activation_function="swish",
        scale_embedding=True,
        pad_token_id=PAD,
        decoder_start_token_id=PAD,
        eos_token_id=END,
        forced_eos_token_id=None,
    )
    model = transformers.MarianMTModel(config)
    model.final_logits_bias[0, END] = _NEVER
    model.generation_config.bad_words_ids = [[PAD]]
    model.save_pretrained(directory)
    draw = random.Random(1)
    lines = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz ", k=80)) for _ in range(2000)]
    spm = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=spm, vocab_size=PIECES, minloglevel=2
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=spm.getvalue())
    pieces = [processor.id_to_piece(token) for token in range(3, PIECES)]
    names = ["</s>", "<unk>", *pieces, *(f"filler{number}" for number in range(PAD - len(pieces) - 2)), "<pad>"]
    (directory / "vocab.json").write_text(json.dumps({name: token for token, name in enumerate(names)}))
    for side in ("source", "target"):
        (directory / f"{side}.spm").write_bytes(spm.getvalue())
    settings = {"source_lang": "eng", "target_lang": "fra", "tokenizer_class": "MarianTokenizer"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def prepare(workdir: Path, precision: str) -> tuple[Bundle, Path]:
    """The model as a bundle of ours and as one of CTranslate2's; made where it is not there yet."""
    marian, checkpoint, bundle = workdir / "marian", workdir / "checkpoint", workdir / f"bundle-{precision}"
    if not marian.exists():
        make_marian(marian)
    if not checkpoint.exists():
        import_checkpoint("marian", marian, out=checkpoint, naming=Naming(name="base"))
    if not bundle.exists():
        golden = workdir / "golden.tsv"
        draw = random.Random(2)
        golden.write_text("".join("".join(draw.choices("abcdefgh ", k=30)) + "\n" for _ in range(8)))
        arguments = argparse.Namespace(
            checkpoint=checkpoint,
            out=bundle,
            target="cpu",
            precision=precision,
            golden=golden,
            calibration=None,
            max_source_tokens=256,
            max_output_tokens=256,
        )
        assert run_export(arguments) == 0
    converted = workdir / f"ctranslate2-{precision}"
    if not converted.exists():
        quantization = {"int8": "int8", "fp32": None}[precision]
        ctranslate2.converters.TransformersConverter(str(marian)).convert(str(converted), quantization=quantization)
    return Bundle.open(bundle), converted


class Ours:
    """The decode loop that serves, driven from here."""

    def __init__(self, bundle: Bundle, *, threads: int, rows: int) -> None:
        self._manifest = bundle.manifest
        self._runner = OrtCpuRunner.open(bundle, threads=threads, max_rows=rows)

    def run(self, work: Work) -> int:
        """Do the work; returns the output tokens."""
        tokens = 0
        left = len(work.sources)

        def finished(result: Result) -> None:
            nonlocal tokens, left
            tokens += len(result.hypotheses[0].tokens)
            left -= 1

        manifest = self._manifest
        loop = DecodeLoop(
            self._runner,
            start_id=manifest.start_id,
            eos_id=manifest.eos_id,
            pad_id=manifest.pad_id,
            max_queue=len(work.sources),
        )
        jobs = [
            Job(source, SearchOptions(beam_size=work.beam_size, max_output_tokens=output), on_finished=finished)
            for source, output in zip(work.sources, work.outputs, strict=True)
        ]
        loop.submit(jobs)
        while left:
            loop.run_round()
        return tokens


class CTranslate2:
    """Its translator at its best settings for the work."""

    def __init__(self, directory: Path, *, precision: str, names: list[str]) -> None:
        cores = cpu_count()
        compute_type = {"int8": "int8", "fp32": "float32"}[precision]

        def open_translator(inter: int, intra: int) -> Any:
            return ctranslate2.Translator(
                str(directory), device="cpu", compute_type=compute_type, inter_threads=inter, intra_threads=intra
            )

        self._single, self._many = open_translator(1, cores), open_translator(cores, 1)
        self._names = names

    def run(self, work: Work) -> int:
        """Do the work; returns the output tokens that were asked for."""
        order = sorted(range(len(work.sources)), key=lambda index: len(work.sources[index]))
        translator = self._single if len(order) == 1 else self._many
        # One worker per core needs a batch for each.
        size = min(BATCH, -(-len(order) // translator.num_translators))
        pending = []
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            pending += translator.translate_batch(
                [[self._names[token] for token in work.sources[index]] for index in batch],
                beam_size=work.beam_size,
                max_decoding_length=max(work.outputs[index] for index in batch),
                max_batch_size=0,
                asynchronous=True,
            )
        for result in pending:
            result.result()
        return sum(work.outputs)


def measure(runs: Mapping[str, Callable[[], int]], *, rounds: int) -> dict[str, list[float]]:
    """Seconds of each, taken in turn; the first round warms up.

    Before each there is a rest, for the threads of a pool go on spinning for a while after their last work.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            time.sleep(_REST_S)
            began = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def main() -> None:
    """Prepare, measure, print."""
    parser = argparse.ArgumentParser(description="this project against CTranslate2, same weights, same work")
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--precision", nargs="+", choices=("int8", "fp32"), default=["int8", "fp32"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="part of the names of the works to measure")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    lines = []
    print(f"{'work':>28} {'':>5} {'ours, s':>24} {'CTranslate2, s':>24} {'ratio':>6}")
    for precision in arguments.precision:
        bundle, converted = prepare(arguments.workdir, precision)
        names = list(json.loads((arguments.workdir / "marian" / "vocab.json").read_text()))
        ours = Ours(bundle, threads=cpu_count(), rows=128)
        peer = CTranslate2(converted, precision=precision, names=names)
        for work in works():
            if arguments.only not in work.name:
                continue
            runs = {"ours": partial(ours.run, work), "ctranslate2": partial(peer.run, work)}
            seconds = measure(runs, rounds=arguments.rounds)
            medians = {name: statistics.median(times) for name, times in seconds.items()}
            ratio = medians["ctranslate2"] / medians["ours"]
            cells = [f"{medians[name]:.3f} ({min(times):.3f}-{max(times):.3f})" for name, times in seconds.items()]
            print(f"{work.name:>28} {precision:>5} {cells[0]:>24} {cells[1]:>24} {ratio:6.2f}", flush=True)
            lines.append({"work": work.name, "precision": precision, "seconds": seconds, "ratio": ratio})
    if arguments.out:
        arguments.out.write_text(json.dumps(lines, indent=2) + "\n")


if __name__ == "__main__":
    main()
