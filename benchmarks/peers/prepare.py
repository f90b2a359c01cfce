"""The two models in every form that a system reads, made once below a directory and reused from then on.

After a change of importer or exporter, begin with a new directory.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import ctranslate2
import transformers

from benchmarks.peers.base_model import make_marian
from benchmarks.peers.demo_model import rebuild_checkpoint, write_marian
from benchmarks.peers.machine import ROOT
from benchmarks.peers.ours import FAIR
from benchmarks.peers.process import Process
from benchmarks.peers.works import LONGEST_DEMO_OUTPUT, Outputs, Work
from export.bundle import Bundle
from model.checkpoint import load_checkpoint

Name = Literal["base", "demo"]
Precision = Literal["int8", "fp32"]

DEMO_BUNDLE = ROOT / "server" / "assets" / "multi30k-en-de"
_DEMO_RECIPE = ROOT / "configs" / "multi30k-en-de.yaml"
_DEMO_SENTENCES = ROOT / "configs" / "multi30k-en-de.golden.tsv"
_QUANTIZATION = {"int8": "int8", "fp32": None}


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """One model in one precision.

    Attributes:
        name: which model.
        precision: of our graphs and of CTranslate2's; transformers always computes in fp32.
        bundle: for this project.
        converted: for CTranslate2.
        marian: for transformers.
    """

    name: Name
    precision: Precision
    bundle: Path
    converted: Path
    marian: Path


def prepare(workdir: Path, name: Name, precision: Precision) -> Prepared:
    """Make what is not there yet."""
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    folder = workdir.resolve() / name
    folder.mkdir(parents=True, exist_ok=True)
    return (_prepare_base if name == "base" else _prepare_demo)(folder, precision)


def _prepare_base(folder: Path, precision: Precision) -> Prepared:
    marian, checkpoint, golden = folder / "marian", folder / "checkpoint", folder / "golden.tsv"
    bundle = folder / f"bundle-{precision}"
    _once(marian, _made_marian)
    _once(checkpoint, lambda out: _dragoman("import", "marian", marian, "--out", out, "--name", "base"))
    draw = random.Random(2)
    golden.write_text("".join("".join(draw.choices("abcdefgh ", k=30)) + "\n" for _ in range(8)))
    limits = ("--max-source-tokens", "256", "--max-output-tokens", "256")
    _once(bundle, lambda out: _export(checkpoint, out, precision, "--golden", golden, *limits))
    converted = _converted(folder, marian, precision)
    return Prepared(name="base", precision=precision, bundle=bundle, converted=converted, marian=marian)


def _made_marian(out: Path) -> None:
    out.mkdir()
    make_marian(out)


def _prepare_demo(folder: Path, precision: Precision) -> Prepared:
    checkpoint, marian, bundle = folder / "checkpoint", folder / "marian", DEMO_BUNDLE
    demo = Bundle.open(DEMO_BUNDLE)
    _once(checkpoint, lambda out: rebuild_checkpoint(demo, recipe=_DEMO_RECIPE, out=out))
    spm = (demo.tokenizer_path / "source.model").read_bytes()
    _once(marian, lambda out: write_marian(load_checkpoint(checkpoint), spm=spm, out=out))
    _once(folder / "same-outputs.json", lambda out: _check_same_outputs(demo, folder, marian, report=out))
    if precision != "fp32":
        bundle = folder / f"bundle-{precision}"
        _once(bundle, lambda out: _export(checkpoint, out, precision, "--golden", _DEMO_SENTENCES))
    converted = _converted(folder, marian, precision)
    return Prepared(name="demo", precision=precision, bundle=bundle, converted=converted, marian=marian)


def demo_sources() -> list[tuple[int, ...]]:
    """The demo's golden sentences as token ids."""
    return [sentence.source_ids for sentence in Bundle.open(DEMO_BUNDLE).golden()]


def _check_same_outputs(demo: Bundle, folder: Path, marian: Path, *, report: Path) -> None:
    """Hold that the demo's weights are the same everywhere: in fp32 all systems give the bundle's greedy tokens."""
    sources = tuple(demo_sources())
    work = Work(name="golden sentences", sources=sources, outputs=(LONGEST_DEMO_OUTPUT,) * len(sources))
    golden = Outputs(tuple(sentence.greedy.ids for sentence in demo.golden()))
    converted = _converted(folder, marian, "fp32")
    specs = (
        {"system": "ours", "path": demo.path, "cores": 1, "max_rows": 64, "admission": FAIR},
        {"system": "ctranslate2", "path": converted, "precision": "fp32", "workers": 1, "threads": 1},
        {"system": "transformers", "path": marian, "threads": 1},
    )
    for spec in specs:
        with Process(spec) as process:
            got = Outputs(tuple(map(tuple, process.run(work)["outputs"])))
        same = got.equal_to(golden)
        if same < len(sources):
            raise RuntimeError(f"{spec['system']}: got {same} of the bundle's greedy outputs, wanted {len(sources)}")
    report.write_text(json.dumps({"sentences": len(sources), "systems": [spec["system"] for spec in specs]}) + "\n")


def _converted(folder: Path, marian: Path, precision: Precision) -> Path:
    converted = folder / f"ctranslate2-{precision}"
    converter = ctranslate2.converters.TransformersConverter(str(marian))
    _once(converted, lambda out: converter.convert(str(out), quantization=_QUANTIZATION[precision]))
    return converted


def _export(checkpoint: Path, out: Path, precision: Precision, *flags: str | Path) -> None:
    _dragoman("export", checkpoint, "--out", out, "--target", "cpu", "--precision", precision, *flags)


def _dragoman(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "server.cli", *map(str, arguments)], cwd=ROOT, check=True)


def _once(path: Path, make: Callable[[Path], object]) -> None:
    """Let ``make`` write a file or directory, unless it is there; a half one, of a run that was cut off, never is."""
    if path.exists():
        return
    part = path.with_name(f"{path.name}.part")
    if part.is_dir():
        shutil.rmtree(part)
    print(f"making {path.parent.name}/{path.name}", file=sys.stderr, flush=True)
    make(part)
    part.rename(path)
