"""Copies of the bundled demo, sound or spoilt in one way."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from pathlib import Path
from typing import Any

from export.bundle import CERTIFICATE_FILE, MANIFEST_FILE, Manifest, read_certificate, write_certificate
from tests.served import DEMO

WEIGHTS = Path("graphs", "ort-fp32", "weights.bin")


def copy_demo(models: Path, name: str, **fields: Any) -> Path:
    """A sound and certified bundle in ``models``, called ``name``; ``fields`` of its manifest are changed."""
    path = Path(shutil.copytree(DEMO, models / name))
    sign(path, name=name, **fields)
    return path


def sign(path: Path, **fields: Any) -> None:
    """Make the manifest and the certificate of a bundle fit its files as they are now."""
    file = path / MANIFEST_FILE
    manifest = Manifest.from_json(file.read_bytes(), where=str(file))
    files = {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in manifest.files}
    text = dataclasses.replace(manifest, **{"files": files, **fields}).to_json().encode()
    file.write_bytes(text)
    digest = hashlib.sha256(text).hexdigest()
    exams = read_certificate(path / CERTIFICATE_FILE)
    write_certificate(path / CERTIFICATE_FILE, [dataclasses.replace(exam, manifest_sha256=digest) for exam in exams])


def truncate(file: Path) -> None:
    """Leave the first half."""
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])


def spoil_graph(path: Path) -> None:
    truncate(path / WEIGHTS)


def spoil_tokenizer(path: Path) -> None:
    (path / "tokenizer" / "source.model").write_bytes(b"garbage" * 100)
    sign(path)


def withdraw_the_certificate(path: Path) -> None:
    (path / CERTIFICATE_FILE).unlink()


def spoil_the_certificate(path: Path) -> None:
    truncate(path / CERTIFICATE_FILE)


def answer_otherwise(path: Path) -> None:
    """The weights of another model: the short exam finds out."""
    data = bytearray((path / WEIGHTS).read_bytes())
    half = len(data) // 2
    data[half : half + 400_000] = bytes(400_000)
    (path / WEIGHTS).write_bytes(bytes(data))
    sign(path)
