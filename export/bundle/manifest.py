"""``manifest.json``: what a bundle holds and how its model is to be run."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from export.bundle.fields import BundleError, Fields, to_json
from export.contract import GRAPH_NAMES, ModelDimensions

FORMAT_VERSION = 6
LENGTH_PENALTIES = ("GNMT", "POWER")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class DecodingDefaults:
    """What an unset field of a request's DecodingConfig stands for.

    Attributes:
        beam_size: hypotheses kept; 1 is greedy search.
        num_hypotheses: hypotheses returned.
        length_penalty: exponent of the length penalty.
        length_penalty_type: ``GNMT`` or ``POWER``.
        max_output_tokens: most output tokens, end token not counted.
        min_output_tokens: fewest output tokens, end token not counted.
        return_scores: whether greedy search gives a score too.
        early_stopping: whether a beam search ends as soon as ``beam_size`` hypotheses have finished; no request
            changes it.
        forced_end: whether the token at place ``max_output_tokens`` is always the end token; no request changes it.
    """

    beam_size: int = 1
    num_hypotheses: int = 1
    length_penalty: float = 1.0
    length_penalty_type: str = "GNMT"
    max_output_tokens: int = 256
    min_output_tokens: int = 0
    return_scores: bool = False
    early_stopping: bool = False
    forced_end: bool = False

    @classmethod
    def read(cls, fields: Fields) -> DecodingDefaults:
        """Read and check the manifest's ``decoding`` record."""
        defaults = cls(
            beam_size=fields.integer("beam_size", minimum=1),
            num_hypotheses=fields.integer("num_hypotheses", minimum=1),
            length_penalty=fields.number("length_penalty"),
            length_penalty_type=fields.choice("length_penalty_type", LENGTH_PENALTIES),
            max_output_tokens=fields.integer("max_output_tokens", minimum=1),
            min_output_tokens=fields.integer("min_output_tokens"),
            return_scores=fields.flag("return_scores"),
            early_stopping=fields.flag("early_stopping"),
            forced_end=fields.flag("forced_end"),
        )
        if not 0.0 <= defaults.length_penalty <= 10.0:
            raise fields.fault("length_penalty", "a number from 0 to 10")
        if defaults.num_hypotheses > defaults.beam_size:
            raise fields.fault("num_hypotheses", f"at most beam_size = {defaults.beam_size}")
        if defaults.min_output_tokens > defaults.max_output_tokens:
            raise fields.fault("min_output_tokens", f"at most max_output_tokens = {defaults.max_output_tokens}")
        return defaults


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything a bundle says of itself.

    Attributes:
        name: model name, ``[a-z0-9][a-z0-9._-]*``.
        source_languages: BCP-47 codes.
        target_languages: BCP-47 codes.
        architecture: short name such as ``transformer-6x512``.
        dims: sizes that decide every tensor's shape.
        pad_id: fills sources on the right.
        unk_id: what the tokenizer gives for a character it never saw.
        start_id: first input token of the decoder.
        eos_id: end token, of sources and of outputs.
        suppressed_ids: tokens that no search selects.
        decoding: defaults of the search.
        max_source_tokens: most tokens of one source, end token counted.
        max_output_tokens: most tokens of one output, end token not counted.
        parameter_count: weights, shared ones counted once.
        graphs: for each target the folder below ``graphs/`` that it runs, ``<flavour>-<precision>``.
        files: sha256 (lower-case hex) of every file by its path below the bundle.
        tool_versions: what made the bundle.
        language_aliases: the model's own language codes, each with the one of ``source_languages`` or
            ``target_languages`` that it stands for.
        license_note: licence of the model and of the data it was trained on.
        format_version: version of this record.
    """

    name: str
    source_languages: tuple[str, ...]
    target_languages: tuple[str, ...]
    architecture: str
    dims: ModelDimensions
    pad_id: int
    unk_id: int
    start_id: int
    eos_id: int
    suppressed_ids: tuple[int, ...]
    decoding: DecodingDefaults
    max_source_tokens: int
    max_output_tokens: int
    parameter_count: int
    graphs: dict[str, str]
    files: dict[str, str]
    tool_versions: dict[str, str]
    language_aliases: dict[str, str] = dataclasses.field(default_factory=dict)
    license_note: str = ""
    format_version: int = FORMAT_VERSION

    @property
    def selectable_tokens(self) -> int:
        """Tokens of the target vocabulary that a search may select."""
        return self.dims.target_vocab - len(set(self.suppressed_ids))

    def precision(self, target: str) -> str:
        """Precision of the matrix products of the graphs that ``target`` runs."""
        return self.graphs[target].rsplit("-", 1)[-1]

    def to_json(self) -> str:
        """The text of ``manifest.json``, with a checksum of all that it says."""
        values = dataclasses.asdict(self)
        checksum = hashlib.sha256(to_json(values).encode()).hexdigest()
        return to_json({**values, "checksum": checksum}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: bytes, *, where: str) -> Manifest:
        """Read and check ``manifest.json``; ``where`` names it in messages.

        Raises:
            BundleError: unknown format version, a missing or wrong field, a path that leaves the bundle, or a text
                that is not byte for byte what was written.
        """
        fields = Fields.parse(text, where=where)
        version = fields.integer("format_version")
        if version != FORMAT_VERSION:
            raise fields.fault("format_version", f"{FORMAT_VERSION}; this release reads no other")
        manifest = cls(
            name=fields.text("name"),
            source_languages=fields.texts("source_languages"),
            target_languages=fields.texts("target_languages"),
            architecture=fields.text("architecture"),
            dims=_read_dimensions(fields.record("dims")),
            pad_id=fields.integer("pad_id"),
            unk_id=fields.integer("unk_id"),
            start_id=fields.integer("start_id"),
            eos_id=fields.integer("eos_id"),
            suppressed_ids=fields.integers("suppressed_ids"),
            decoding=DecodingDefaults.read(fields.record("decoding")),
            max_source_tokens=fields.integer("max_source_tokens", minimum=1),
            max_output_tokens=fields.integer("max_output_tokens", minimum=1),
            parameter_count=fields.integer("parameter_count", minimum=1),
            graphs=fields.text_map("graphs"),
            files=fields.text_map("files"),
            tool_versions=fields.text_map("tool_versions"),
            language_aliases=fields.text_map("language_aliases"),
            license_note=fields.text("license_note"),
            format_version=version,
        )
        _check_limits(manifest, fields)
        _check_files(manifest, fields)
        if manifest.to_json().encode() != text:
            raise BundleError(f"{where}: altered: its checksum {fields.text('checksum')} is not that of its contents")
        return manifest


def _read_dimensions(fields: Fields) -> ModelDimensions:
    names: dict[str, Any] = {field.name: None for field in dataclasses.fields(ModelDimensions)}
    return ModelDimensions(**{name: fields.integer(name, minimum=1) for name in names})


def _check_limits(manifest: Manifest, fields: Fields) -> None:
    """Hold ids and limits against the model's sizes."""
    dims = manifest.dims
    if not _NAME.fullmatch(manifest.name):
        raise fields.fault("name", f"a name like {_NAME.pattern}")
    for name in ("source_languages", "target_languages"):
        if not all(getattr(manifest, name)) or not getattr(manifest, name):
            raise fields.fault(name, "at least one code, none empty")
    smallest_vocab = min(dims.source_vocab, dims.target_vocab)
    for name, vocab in (
        ("pad_id", dims.source_vocab),
        ("unk_id", dims.source_vocab),
        ("start_id", dims.target_vocab),
        ("eos_id", smallest_vocab),
    ):
        if getattr(manifest, name) >= vocab:
            raise fields.fault(name, f"an id below {vocab}")
    if any(token >= dims.target_vocab or token == manifest.eos_id for token in manifest.suppressed_ids):
        raise fields.fault("suppressed_ids", f"ids below {dims.target_vocab}, not the end token {manifest.eos_id}")
    for name in ("max_source_tokens", "max_output_tokens"):
        if getattr(manifest, name) > dims.max_positions:
            raise fields.fault(name, f"at most max_positions = {dims.max_positions}")
    if manifest.decoding.max_output_tokens > manifest.max_output_tokens:
        raise BundleError(
            f"{fields.where}: decoding: max_output_tokens: got {manifest.decoding.max_output_tokens}, "
            f"wanted at most the model's {manifest.max_output_tokens}"
        )


def _check_files(manifest: Manifest, fields: Fields) -> None:
    """Hold that every listed path stays in the bundle and that every target has its graphs."""
    for path, digest in manifest.files.items():
        pure = PurePosixPath(path)
        if (
            not path
            or pure.is_absolute()
            or ".." in pure.parts
            or pure.as_posix() != path
            or "\\" in path
            or "\0" in path
        ):
            raise BundleError(f"{fields.where}: files: got {path!r}, wanted a plain path below the bundle")
        if not _SHA256.fullmatch(digest):
            raise BundleError(f"{fields.where}: files: {path}: got {digest[:80]!r}, wanted 64 lower-case hex digits")
    for target, folder in manifest.graphs.items():
        flavour = folder.partition("-")[0]
        if flavour not in GRAPH_NAMES:
            raise BundleError(f"{fields.where}: graphs: {target}: got {folder!r}, wanted ort-* or standard-*")
        for graph in GRAPH_NAMES[flavour]:
            if f"graphs/{folder}/{graph}.onnx" not in manifest.files:
                raise BundleError(
                    f"{fields.where}: files: graphs/{folder}/{graph}.onnx: missing, target {target} needs it"
                )
