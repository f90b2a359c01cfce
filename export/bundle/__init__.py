"""The bundle: a self-contained model directory, checked byte by byte when it is opened."""

from export.bundle.certificate import CERTIFICATE_FILE, Exam, read_certificate, write_certificate
from export.bundle.fields import BundleError
from export.bundle.folder import (
    GRAPHS_FOLDER,
    MANIFEST_FILE,
    TOKENIZER_FOLDER,
    Bundle,
    check_destination,
    write_bundle,
)
from export.bundle.golden import (
    GOLDEN_FILE,
    BeamOptions,
    GoldenHypothesis,
    GoldenSentence,
    read_golden,
    write_golden,
)
from export.bundle.manifest import FORMAT_VERSION, DecodingDefaults, Manifest
from export.bundle.shortlist import SHORTLIST_FILE, Shortlist

__all__ = [
    "CERTIFICATE_FILE",
    "FORMAT_VERSION",
    "GOLDEN_FILE",
    "GRAPHS_FOLDER",
    "MANIFEST_FILE",
    "SHORTLIST_FILE",
    "TOKENIZER_FOLDER",
    "BeamOptions",
    "Bundle",
    "BundleError",
    "DecodingDefaults",
    "Exam",
    "GoldenHypothesis",
    "GoldenSentence",
    "Manifest",
    "Shortlist",
    "check_destination",
    "read_certificate",
    "read_golden",
    "write_bundle",
    "write_certificate",
    "write_golden",
]
