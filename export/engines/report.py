"""What was built, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from export.runners.gpu.engine_files import EngineFile, EngineSet

_PRECISIONS = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16"}
_MOVERS = ("CAST", "CONSTANT", "IDENTITY", "SHUFFLE", "SLICE", "CONCATENATION", "SQUEEZE", "UNSQUEEZE")
"""Layers that compute nothing; the table leaves them out, ``engines.json`` has them all."""


def report(engines: EngineSet) -> str:
    """Layers, profiles, size and seconds of every engine; then how many layers of each type compute in what."""
    kinds = sorted({kind for engine in engines.engines for kind in _computing(engine)})
    header = ["engine", "layers", "profiles", "MiB", "seconds"]
    sizes = [
        [
            Path(engine.file).stem,
            str(engine.layers),
            str(len(engine.profiles)),
            f"{engine.bytes / 2**20:.1f}",
            f"{engine.seconds:.1f}",
        ]
        for engine in engines.engines
    ]
    total = sum(engine.bytes for engine in engines.engines) / 2**20
    seconds = sum(engine.seconds for engine in engines.engines)
    sizes.append(["all", "", "", f"{total:.1f}", f"{seconds:.1f}"])
    names = [Path(engine.file).stem for engine in engines.engines]
    precisions = [[kind, *(_computing(engine).get(kind, "") for engine in engines.engines)] for kind in kinds]
    return "\n\n".join((_table([header, *sizes]), _table([["layer type", *names], *precisions])))


def _computing(engine: EngineFile) -> dict[str, str]:
    """Of each type of layer that computes with floats: how many, in which precision."""
    found = {}
    for kind, types in engine.types.items():
        counts = [f"{count} {_PRECISIONS[name]}" for name, count in types.items() if name in _PRECISIONS]
        if counts and kind not in _MOVERS:
            found[kind] = " + ".join(counts)
    return found


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
