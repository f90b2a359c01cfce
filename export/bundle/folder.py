"""A bundle on disk: open it with every byte checked, or write it in one move."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from export.bundle.certificate import CERTIFICATE_FILE, Exam, read_certificate
from export.bundle.fields import BundleError, read_bytes
from export.bundle.golden import GOLDEN_FILE, GoldenSentence, read_golden
from export.bundle.manifest import Manifest
from export.bundle.shortlist import SHORTLIST_FILE, Shortlist

MANIFEST_FILE = "manifest.json"
TOKENIZER_FOLDER = "tokenizer"
GRAPHS_FOLDER = "graphs"
ENGINES_FOLDER = "engines"


@dataclass(frozen=True)
class Bundle:
    """A deployable model directory whose files have all been checked.

    Attributes:
        path: the directory.
        manifest: what it holds.
        digest: sha256 of ``manifest.json``, lower-case hex; it names the bundle.
    """

    path: Path
    manifest: Manifest
    digest: str

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Read a bundle and check every file against its manifest.

        Raises:
            BundleError: unknown format version; a file is missing, altered, not listed or no plain file; or a path
                leaves the directory. The message names the file.
        """
        if not path.is_dir():
            raise BundleError(f"{path}: got no directory, wanted a bundle")
        text = read_bytes(path / MANIFEST_FILE)
        manifest = Manifest.from_json(text, where=str(path / MANIFEST_FILE))
        found = set(_hashed_files(path))
        for name in sorted(found - set(manifest.files)):
            raise BundleError(f"{path / name}: not listed in {MANIFEST_FILE}")
        for name, wanted in sorted(manifest.files.items()):
            if name not in found:
                raise BundleError(f"{path / name}: missing, {MANIFEST_FILE} lists it")
            got = _sha256(path / name)
            if got != wanted:
                raise BundleError(f"{path / name}: got sha256 {got}, wanted {wanted}")
        return cls(path, manifest, hashlib.sha256(text).hexdigest())

    def graph_path(self, target: str, name: str) -> Path:
        """The ONNX file of graph ``name`` (encoder, step, step_shortlist, argmax, top_k) that ``target`` runs.

        Raises:
            BundleError: the bundle was not exported for this target.
        """
        if target not in self.manifest.graphs:
            exported = ", ".join(sorted(self.manifest.graphs)) or "none"
            raise BundleError(f"{self.path}: got a bundle for {exported}, wanted one for {target}")
        return self.path / GRAPHS_FOLDER / self.manifest.graphs[target] / f"{name}.onnx"

    @property
    def tokenizer_path(self) -> Path:
        """The directory that ``model.tokenizer.Tokenizer.load`` reads."""
        return self.path / TOKENIZER_FOLDER

    def golden(self) -> list[GoldenSentence]:
        """The exam's questions and answers."""
        return read_golden(self.path / GOLDEN_FILE)

    def shortlist(self) -> Shortlist | None:
        """The target tokens that each source may be translated with; None: the bundle was exported without.

        Raises:
            BundleError: the file does not fit the model.
        """
        manifest = self.manifest
        if SHORTLIST_FILE not in manifest.files:
            return None
        return Shortlist.load(
            self.path / SHORTLIST_FILE,
            source_vocab=manifest.dims.source_vocab,
            target_vocab=manifest.dims.target_vocab,
            eos_id=manifest.eos_id,
            suppressed_ids=manifest.suppressed_ids,
        )

    def certificate(self) -> list[Exam]:
        """The exams this bundle has sat, stale ones included; none where there is no ``certificate.json``."""
        return read_certificate(self.path / CERTIFICATE_FILE)


def check_destination(out: Path) -> None:
    """Hold that a bundle may be written to ``out``: nothing there, an empty directory, or a bundle to replace.

    Raises:
        BundleError: something else is there.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise BundleError(f"{out}: got something that is no directory, wanted a new directory or a bundle to replace")
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST_FILE).is_file():
        raise BundleError(f"{out}: got a directory with other files, wanted a new one or a bundle to replace")


def write_bundle(out: Path, *, manifest: Manifest, fill: Callable[[Path], None]) -> Bundle:
    """Write a bundle in one move: a reader sees the old one or the new one, never half of one.

    Args:
        out: directory to write; a bundle that is there is replaced.
        manifest: its ``files`` are taken anew from what was written.
        fill: writes every file but the manifest into the directory it is given.

    Raises:
        BundleError: ``out`` holds something else, or what was written is no sound bundle.
    """
    out = Path(os.path.abspath(out))
    check_destination(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    staging.mkdir()
    try:
        fill(staging)
        files = {name: _sha256(staging / name) for name in sorted(_hashed_files(staging))}
        text = dataclasses.replace(manifest, files=files).to_json()
        (staging / MANIFEST_FILE).write_text(text, encoding="utf-8")
        Bundle.open(staging)
        replace_directory(out, staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Bundle.open(out)


def replace_directory(out: Path, staging: Path) -> None:
    """Let ``staging`` be ``out``, in place of what is there; both lie in one directory."""
    old = staging.with_name(staging.name + ".old")
    if out.exists():
        out.rename(old)
    try:
        staging.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _hashed_files(root: Path) -> Iterator[str]:
    """Every file that the manifest must list, by its path below ``root``.

    Raises:
        BundleError: an entry is neither a plain file nor a directory.
    """
    unhashed = {root / MANIFEST_FILE, root / CERTIFICATE_FILE}
    for folder, folders, names in os.walk(root, onerror=_raise_unreadable):
        here = Path(folder)
        for name in sorted([*folders, *names]):
            mode = (here / name).lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise BundleError(f"{here / name}: got a link or special file, wanted a plain file")
        engines = root / ENGINES_FOLDER
        if here != engines and engines not in here.parents:
            yield from ((here / name).relative_to(root).as_posix() for name in names if here / name not in unhashed)


def _raise_unreadable(error: OSError) -> None:
    raise BundleError(f"{error.filename}: {error.strerror}") from error


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from error
