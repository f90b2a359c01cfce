"""Where bundles run, in which precision; free of torch, for the command line."""

from __future__ import annotations

from typing import Literal

Target = Literal["cpu", "cuda", "tensorrt"]
Precision = Literal["fp32", "int8", "fp16", "bf16"]

PRECISIONS: dict[Target, tuple[Precision, ...]] = {
    "cpu": ("fp32", "int8"),
    "cuda": ("fp32", "fp16", "bf16"),
    "tensorrt": ("fp32", "fp16", "bf16"),
}
"""The precisions of matrix products that each target has graphs of."""


def graph_folders(target: Target, precision: Precision) -> dict[str, str]:
    """For each target that a bundle made for ``target`` can serve, the folder of graphs that it runs."""
    if target == "cpu":
        return {"cpu": f"ort-{precision}"}
    on_gpu = f"standard-{precision}"
    return {"cpu": "ort-fp32", "cuda": on_gpu} | ({"tensorrt": on_gpu} if target == "tensorrt" else {})
