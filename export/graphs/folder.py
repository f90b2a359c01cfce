"""Write all graphs of one flavour and precision into their folder."""

from __future__ import annotations

from pathlib import Path

from export.graphs.description import ModelDescription
from export.graphs.flavour import Flavour
from export.graphs.heads import build_argmax, build_top_k
from export.graphs.transformer import build_encoder, build_step
from export.graphs.weight_file import WeightFile


def write_graphs(model: ModelDescription, folder: Path, *, flavour: Flavour) -> None:
    """Write ``encoder.onnx``, ``step.onnx``, ``argmax.onnx``, ``top_k.onnx`` and their ``weights.bin``."""
    folder.mkdir(parents=True, exist_ok=True)
    with WeightFile(folder) as weights:
        build_encoder(model, weights, flavour).save(folder / "encoder.onnx")
        build_step(model, weights, flavour).save(folder / "step.onnx")
    for name, build in (("argmax", build_argmax), ("top_k", build_top_k)):
        head = build(model.dims, suppressed_ids=model.suppressed_ids, opsets=flavour.opsets)
        head.save(folder / f"{name}.onnx")
