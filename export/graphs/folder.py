"""Write all graphs of one flavour and precision into their folder."""

from __future__ import annotations

from pathlib import Path

from export.bundle.arrays import write_arrays
from export.contract import GRAPH_NAMES, OUTPUT_FILE, SHORTLISTED_STEP, output_arrays
from export.graphs.description import ModelDescription
from export.graphs.flavour import Flavour
from export.graphs.heads import build_argmax, build_greedy, build_top_k
from export.graphs.ort import OrtFlavour
from export.graphs.standard import StandardFlavour
from export.graphs.transformer import build_encoder, build_reorder, build_shortlisted_step, build_step
from export.graphs.weight_file import WeightFile


def write_graphs(model: ModelDescription, folder: Path, *, flavour: Flavour, shortlisted: bool = False) -> None:
    """Write the graphs that ``contract.GRAPH_NAMES`` has for this flavour, and their ``weights.bin``.

    Args:
        model: to be written.
        folder: where to; made if it is not there.
        flavour: whose operators, in which precision.
        shortlisted: whether to write ``step_shortlist.onnx`` and ``output.npz`` too, which only ``ort`` has.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with WeightFile(folder) as weights:
        build_encoder(model, weights, flavour).save(folder / "encoder.onnx")
        build_step(model, weights, flavour).save(folder / "step.onnx")
        if shortlisted:
            assert isinstance(flavour, OrtFlavour), "only this flavour has a shortlisted step"
            build_shortlisted_step(model, weights, flavour).save(folder / f"{SHORTLISTED_STEP}.onnx")
            _write_output(model, folder, flavour=flavour)
    heads = {"argmax": build_argmax, "greedy": build_greedy, "top_k": build_top_k}
    for name in GRAPH_NAMES[flavour.name]:
        if name in heads:
            head = heads[name](model.dims, suppressed_ids=model.suppressed_ids, opsets=flavour.opsets)
            head.save(folder / f"{name}.onnx")
    if isinstance(flavour, StandardFlavour):
        build_reorder(model.dims, flavour).save(folder / "reorder.onnx")


def _write_output(model: ModelDescription, folder: Path, *, flavour: OrtFlavour) -> None:
    """Write the last projection without the padding of its outputs."""
    arrays = flavour.numbers.output_arrays(model.output)
    specs = output_arrays(model.dims, flavour.numbers.cache_dtype)
    write_arrays(folder / OUTPUT_FILE, {spec.name: arrays[spec.name][: model.dims.target_vocab] for spec in specs})
