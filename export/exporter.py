"""Checkpoint to bundle."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from export.bundle import (
    GOLDEN_FILE,
    GRAPHS_FOLDER,
    SHORTLIST_FILE,
    TOKENIZER_FOLDER,
    Bundle,
    DecodingDefaults,
    GoldenSentence,
    Manifest,
    Shortlist,
    write_bundle,
    write_golden,
)
from export.bundle.fields import Fields
from export.errors import ExportError
from export.graphs.description import describe, dimensions_of
from export.graphs.flavour import Flavour
from export.graphs.folder import write_graphs
from export.graphs.numbers.float32 import Float32
from export.graphs.numbers.half import Half
from export.graphs.numbers.int8 import Int8
from export.graphs.ort import OrtFlavour
from export.graphs.standard import StandardFlavour
from export.quantisation.ranges import Calibration
from export.targets import PRECISIONS, Precision, Target, graph_folders
from model.checkpoint import Checkpoint
from model.weights import unique_parameters

LARGEST_DEFAULT_LIMIT = 512


def plan_manifest(
    checkpoint: Checkpoint,
    *,
    target: Target = "cpu",
    precision: Precision = "fp32",
    max_source_tokens: int | None = None,
    max_output_tokens: int | None = None,
) -> Manifest:
    """What the bundle of a checkpoint will say of itself, its files still unknown.

    Args:
        checkpoint: the model to export.
        target: where it is to run; what is for a GPU runs where there is none too, in float32.
        precision: of the matrix products, one that ``export.targets.PRECISIONS`` has for this target.
        max_source_tokens: most tokens of one source, end token counted; None: as many as the model has positions,
            512 at most.
        max_output_tokens: most tokens of one output, end token not counted; None: likewise.

    Raises:
        ExportError: a limit is out of range, or there are no graphs of this precision for this target.
        BundleError: a decoding default is out of range.
    """
    if precision not in PRECISIONS[target]:
        raise ExportError(f"precision: got {precision} for target {target}, wanted {' or '.join(PRECISIONS[target])}")
    model, card = checkpoint.model, checkpoint.card
    config = model.config
    source_limit = _limit("max_source_tokens", max_source_tokens, max_positions=config.max_positions)
    output_limit = _limit("max_output_tokens", max_output_tokens, max_positions=config.max_positions)
    return Manifest(
        name=card.name,
        source_languages=card.source_languages,
        target_languages=card.target_languages,
        architecture=config.architecture,
        dims=dimensions_of(model),
        pad_id=config.pad_id,
        unk_id=config.unk_id,
        start_id=config.start_id,
        eos_id=config.eos_id,
        suppressed_ids=config.suppressed_ids,
        decoding=_decoding_defaults(card.decoding, max_output_tokens=output_limit),
        max_source_tokens=source_limit,
        max_output_tokens=output_limit,
        parameter_count=sum(tensor.numel() for tensor in unique_parameters(model).values()),
        graphs=graph_folders(target, precision),
        files={},
        tool_versions=_tool_versions(),
        language_aliases={
            own: code
            for own, code in checkpoint.tokenizer.language_aliases.items()
            if code in (*card.source_languages, *card.target_languages)
        },
        license_note=card.license_note,
    )


def export_bundle(
    checkpoint: Checkpoint,
    out: Path,
    *,
    manifest: Manifest,
    golden: Iterable[GoldenSentence],
    calibration: Calibration | None = None,
    shortlist: Shortlist | None = None,
) -> Bundle:
    """Write a checkpoint as a bundle, in one move.

    Args:
        checkpoint: the model to export.
        out: directory to write; a bundle that is there is replaced.
        manifest: as ``plan_manifest`` made it.
        golden: the exam that the bundle carries.
        calibration: what ``calibrate`` found, for graphs in int8.
        shortlist: what ``learn_shortlist`` found, for a bundle of the target ``cpu``; None: it is to have none.

    Raises:
        BundleError: ``out`` holds something that is no bundle.
        ExportError: a part of int8 graphs was never calibrated, or has weights that no scale fits.
    """
    positions = max(manifest.max_source_tokens, manifest.max_output_tokens)

    def fill(folder: Path) -> None:
        write_golden(folder / GOLDEN_FILE, golden)
        checkpoint.tokenizer.save(folder / TOKENIZER_FOLDER)
        if shortlist is not None:
            shortlist.save(folder / SHORTLIST_FILE)
        description = describe(checkpoint.model, positions=positions)
        for name in dict.fromkeys(manifest.graphs.values()):
            flavour = _flavour(name, calibration)
            write_graphs(description, folder / GRAPHS_FOLDER / name, flavour=flavour, shortlisted=shortlist is not None)

    return write_bundle(out, manifest=manifest, fill=fill)


def _flavour(name: str, calibration: Calibration | None) -> Flavour:
    """What writes the graphs of a folder of this name."""
    match name.split("-"):
        case ["standard", "fp32"]:
            return StandardFlavour(Float32())
        case ["standard", "fp16" | "bf16" as precision]:
            return StandardFlavour(Half(precision))
        case ["ort", "int8"]:
            return OrtFlavour(Int8(calibration or Calibration({}, {})))
    return OrtFlavour(Float32())


def _limit(name: str, wanted: int | None, *, max_positions: int) -> int:
    limit = min(LARGEST_DEFAULT_LIMIT, max_positions) if wanted is None else wanted
    if not 1 <= limit <= max_positions:
        raise ExportError(f"{name}: got {limit}, wanted 1 to max_positions = {max_positions}")
    return limit


def _decoding_defaults(card: dict[str, Any], *, max_output_tokens: int) -> DecodingDefaults:
    merged = dataclasses.asdict(DecodingDefaults()) | card
    unknown = sorted(set(card) - {field.name for field in dataclasses.fields(DecodingDefaults)})
    if unknown:
        raise ExportError(f"checkpoint: decoding: unknown field {', '.join(unknown)}")
    defaults = DecodingDefaults.read(Fields(merged, where="checkpoint: decoding"))
    return dataclasses.replace(defaults, max_output_tokens=min(defaults.max_output_tokens, max_output_tokens))


def _tool_versions() -> dict[str, str]:
    versions = {"numpy": np.__version__, "onnx": onnx.__version__, "torch": str(torch.__version__)}
    with contextlib.suppress(metadata.PackageNotFoundError):  # run from a checkout that is not installed
        versions["dragoman"] = metadata.version("dragoman")
    return versions
