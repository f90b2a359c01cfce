"""The bundle that a process measures, opened once: its every byte is hashed."""

from __future__ import annotations

import functools
from pathlib import Path

from export.bundle import GRAPHS_FOLDER, Bundle


@functools.cache
def bundle_at(path: Path) -> Bundle:
    """Open a bundle; the same one from then on.

    Raises:
        BundleError: it is not sound.
    """
    return Bundle.open(path)


def graphs_of(bundle: Bundle) -> Path:
    """The folder of its graphs; bundles here have only one."""
    (folder,) = set(bundle.manifest.graphs.values())
    return bundle.path / GRAPHS_FOLDER / folder
