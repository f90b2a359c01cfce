"""Write the graphs of the ``ort`` flavour: contrib operators of ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

from export.graphs.description import ModelDescription
from export.graphs.heads import build_argmax, build_top_k
from export.graphs.number_format import NumberFormat
from export.graphs.transformer import build_encoder, build_step
from export.graphs.weight_file import WeightFile

FLAVOUR = "ort"


def write_graphs(model: ModelDescription, folder: Path, *, numbers: NumberFormat) -> None:
    """Write ``encoder.onnx``, ``step.onnx``, ``argmax.onnx``, ``top_k.onnx`` and their ``weights.bin``."""
    folder.mkdir(parents=True, exist_ok=True)
    with WeightFile(folder) as weights:
        build_encoder(model, weights, numbers).save(folder / "encoder.onnx")
        build_step(model, weights, numbers).save(folder / "step.onnx")
    build_argmax(model.dims, suppressed_ids=model.suppressed_ids).save(folder / "argmax.onnx")
    build_top_k(model.dims, suppressed_ids=model.suppressed_ids).save(folder / "top_k.onnx")
