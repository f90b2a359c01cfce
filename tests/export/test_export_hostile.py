"""A bundle whose graphs reach for files outside it is refused, even where its manifest was sealed anew."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import onnx
import pytest

from export.bundle import MANIFEST_FILE, Bundle
from server.cli import main
from tests.export.tiny import export_model, random_model


def redirect(bundle: Bundle, location: str) -> None:
    """Let the step graph read its weights from ``location``; the manifest then says that all is well."""
    graph = bundle.graph_path("cpu", "step")
    model = onnx.load(str(graph), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    graph.write_bytes(model.SerializeToString())
    files = {name: hashlib.sha256((bundle.path / name).read_bytes()).hexdigest() for name in bundle.manifest.files}
    (bundle.path / MANIFEST_FILE).write_text(dataclasses.replace(bundle.manifest, files=files).to_json())


@pytest.mark.parametrize("escape", ["../../../outside.bin", "{outside}"])
def test_external_data_outside_the_bundle_is_not_read(
    escape: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle = export_model(random_model(), tmp_path / "bundle")
    outside = tmp_path / "outside.bin"
    outside.write_bytes(bundle.graph_path("cpu", "step").with_name("weights.bin").read_bytes())
    redirect(bundle, escape.format(outside=outside))
    assert main(["verify", str(bundle.path)]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("dragoman verify: ")
    assert "step.onnx" in line
    assert "External data path" in line
