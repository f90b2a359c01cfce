"""Graph contract: name, dtype and shape of every tensor that crosses a graph's or a runner's edge.

A shape is written in words (``rows``, ``src_len``) where it is known only at run time, in numbers where the model
decides it. The graphs are built from these specs and the runners check against them, so that the words cannot rot.
"""

from __future__ import annotations

from typing import Literal

from export.contract.encoder import encoder_contract
from export.contract.heads import argmax_contract, greedy_contract, top_k_contract
from export.contract.ort import (
    OUTPUT_FILE,
    SHORTLISTED_STEP,
    ort_step_contract,
    output_arrays,
    output_inputs,
)
from export.contract.runner import LENGTHS, PARENTS, POSITIONS, ROWS, SOURCES, TOKENS
from export.contract.standard import reorder_contract, standard_step_contract
from export.contract.tensors import (
    HEAD_DIM_MULTIPLE,
    VOCAB_BLOCK,
    GraphContract,
    ModelDimensions,
    TensorSpec,
    cache_dtype,
    cache_names,
)

__all__ = [
    "GRAPH_NAMES",
    "HEAD_DIM_MULTIPLE",
    "LENGTHS",
    "OUTPUT_FILE",
    "PARENTS",
    "POSITIONS",
    "ROWS",
    "SHORTLISTED_STEP",
    "SOURCES",
    "TOKENS",
    "VOCAB_BLOCK",
    "FlavourName",
    "GraphContract",
    "ModelDimensions",
    "TensorSpec",
    "argmax_contract",
    "cache_dtype",
    "cache_names",
    "encoder_contract",
    "graph_contracts",
    "greedy_contract",
    "ort_step_contract",
    "output_arrays",
    "output_inputs",
    "reorder_contract",
    "standard_step_contract",
    "top_k_contract",
]

FlavourName = Literal["ort", "standard"]
"""Whose operators the encoder and the step are made of: ONNX Runtime's own among them, or none but those of ONNX."""

GRAPH_NAMES: dict[FlavourName, tuple[str, ...]] = {
    "ort": ("encoder", "step", "argmax", "top_k"),
    "standard": ("encoder", "step", "greedy", "top_k", "reorder"),
}
"""The graphs of each flavour; with a shortlist ``ort`` has one more."""


def graph_contracts(
    dimensions: ModelDimensions, *, precision: str, flavour: FlavourName = "ort"
) -> dict[str, GraphContract]:
    """The contract of every graph of one flavour and precision, by graph name."""
    cached = cache_dtype(precision)
    if flavour == "standard":
        return {
            "encoder": encoder_contract(dimensions, cached),
            "step": standard_step_contract(dimensions, cached),
            "greedy": greedy_contract(dimensions),
            "top_k": top_k_contract(dimensions),
            "reorder": reorder_contract(dimensions, cached),
        }
    return {
        "encoder": encoder_contract(dimensions, cached),
        "step": ort_step_contract(dimensions, cached),
        "argmax": argmax_contract(dimensions),
        "top_k": top_k_contract(dimensions),
        SHORTLISTED_STEP: ort_step_contract(dimensions, cached, shortlisted=True),
    }
