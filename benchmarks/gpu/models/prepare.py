"""Write the bundles of one model, on the machine that measures.

    python -m benchmarks.gpu.models.prepare MODEL FOLDER --precision fp16 fp32 [--target tensorrt]

Each lies in FOLDER/MODEL-PRECISION. The bundled model's weights are read back from its own graphs; all others are drawn
from a seed.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.gpu.machine import ROOT
from benchmarks.gpu.models.golden import random_golden
from benchmarks.gpu.models.graph_weights import read_description
from benchmarks.gpu.models.random_model import random_model
from benchmarks.gpu.specs import END, MAX_OUTPUT_TOKENS, MAX_SOURCE_TOKENS, MODELS, PAD, START, UNK, ModelSpec
from export.bundle import (
    GOLDEN_FILE,
    GRAPHS_FOLDER,
    Bundle,
    DecodingDefaults,
    GoldenSentence,
    Manifest,
    write_bundle,
    write_golden,
)
from export.graphs.description import ModelDescription, describe
from export.graphs.folder import write_graphs
from export.graphs.numbers.float32 import Float32
from export.graphs.numbers.half import Half
from export.graphs.ort import OrtFlavour
from export.graphs.standard import StandardFlavour
from export.targets import Target

DEMO_BUNDLE = ROOT / "server" / "assets" / "multi30k-en-de"

_GOLDEN_SENTENCES, _GOLDEN_SOURCE_TOKENS, _GOLDEN_OUTPUT_TOKENS = 4, 10, 12

_WRITERS: dict[str, Callable[[ModelDescription, Path], None]] = {
    "ort-fp32": lambda model, folder: write_graphs(model, folder, flavour=OrtFlavour(Float32())),
    "standard-fp32": lambda model, folder: write_graphs(model, folder, flavour=StandardFlavour(Float32())),
    "standard-fp16": lambda model, folder: write_graphs(model, folder, flavour=StandardFlavour(Half("fp16"))),
}


def prepare(spec: ModelSpec, folder: Path, *, precisions: list[str], target: Target) -> list[Bundle]:
    """Write a bundle for each precision below ``folder``, and say what that took."""
    began = time.perf_counter()
    description, manifest, golden = _demo() if not spec.random else _random(spec)
    print(f"{spec.name}: weights and golden sentences, {time.perf_counter() - began:.1f} s", flush=True)
    bundles = []
    for precision in precisions:
        began = time.perf_counter()
        graphs = bundle_graphs(target, precision)
        bundle = _write(folder / f"{spec.name}-{precision}", description, manifest, golden, graphs=graphs)
        print(f"{bundle.path.name}: {time.perf_counter() - began:.1f} s", flush=True)
        bundles.append(bundle)
    return bundles


def bundle_graphs(target: Target, precision: str) -> dict[str, str]:
    """The folder of graphs of each target; those for a GPU leave the CPU's out, which nothing here runs there."""
    if target == "cpu":
        return {"cpu": "ort-fp32"}
    return {"cuda": f"standard-{precision}", "tensorrt": f"standard-{precision}"}


def _write(
    out: Path,
    description: ModelDescription,
    manifest: Manifest,
    golden: list[GoldenSentence],
    *,
    graphs: dict[str, str],
) -> Bundle:
    def fill(folder: Path) -> None:
        write_golden(folder / GOLDEN_FILE, golden)
        for name in set(graphs.values()):
            _WRITERS[name](description, folder / GRAPHS_FOLDER / name)

    return write_bundle(out, manifest=dataclasses.replace(manifest, graphs=graphs), fill=fill)


def _demo() -> tuple[ModelDescription, Manifest, list[GoldenSentence]]:
    """The bundled model with its own golden sentences, all of which fit the limits of the bundles here."""
    bundle = Bundle.open(DEMO_BUNDLE)
    manifest = bundle.manifest
    folder = bundle.path / GRAPHS_FOLDER / manifest.graphs["cpu"]
    description = read_description(folder, manifest.dims, suppressed_ids=manifest.suppressed_ids)
    decoding = dataclasses.replace(manifest.decoding, max_output_tokens=MAX_OUTPUT_TOKENS)
    limited = dataclasses.replace(
        manifest, decoding=decoding, max_source_tokens=MAX_SOURCE_TOKENS, max_output_tokens=MAX_OUTPUT_TOKENS
    )
    return description, limited, bundle.golden()


def _random(spec: ModelSpec) -> tuple[ModelDescription, Manifest, list[GoldenSentence]]:
    model = random_model(spec)
    golden = random_golden(
        model,
        sentences=_GOLDEN_SENTENCES,
        source_tokens=_GOLDEN_SOURCE_TOKENS,
        output_tokens=_GOLDEN_OUTPUT_TOKENS,
    )
    description = describe(model, positions=MAX_OUTPUT_TOKENS)
    manifest = Manifest(
        name=spec.name,
        source_languages=("en",),
        target_languages=("de",),
        architecture=model.config.architecture,
        dims=description.dims,
        pad_id=PAD,
        unk_id=UNK,
        start_id=START,
        eos_id=END,
        suppressed_ids=model.config.suppressed_ids,
        decoding=DecodingDefaults(max_output_tokens=MAX_OUTPUT_TOKENS),
        max_source_tokens=MAX_SOURCE_TOKENS,
        max_output_tokens=MAX_OUTPUT_TOKENS,
        parameter_count=sum(parameter.numel() for parameter in model.parameters()),
        graphs={},
        files={},
        tool_versions={"numpy": np.__version__},
    )
    return description, manifest, golden


def main() -> int:
    """Write what the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.models.prepare", description="write one model's bundles"
    )
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--precision", nargs="+", choices=("fp16", "fp32"), required=True)
    parser.add_argument("--target", choices=("cpu", "tensorrt"), default="tensorrt")
    arguments = parser.parse_args()
    prepare(MODELS[arguments.model], arguments.folder, precisions=arguments.precision, target=arguments.target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
