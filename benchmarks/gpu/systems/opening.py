"""From a setting to the system that it names."""

from __future__ import annotations

from benchmarks.gpu.systems.protocol import SYSTEMS, Setting, System


def open_system(setting: Setting) -> System:
    """Load a system; the libraries of the others are not imported."""
    match setting.system:
        case "tensorrt" | "cuda" | "cpu":
            from benchmarks.gpu.systems.ours import Ours  # noqa: PLC0415 - each process holds one system alone

            return Ours(setting)
        case "torch" | "torch-compiled":
            from benchmarks.gpu.systems.torch_graphs import TorchSystem  # noqa: PLC0415

            return TorchSystem(setting)
        case "hf" | "hf-static":
            from benchmarks.gpu.systems.transformers_generate import TransformersSystem  # noqa: PLC0415

            return TransformersSystem(setting)
    raise ValueError(f"system: got {setting.system!r}, wanted one of {', '.join(SYSTEMS)}")
