"""Files of named arrays (.npz): written so that the same arrays give the same bytes, read so that nothing surprises."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.bundle.fields import BundleError
from export.contract import TensorSpec
from export.runners.protocol import ShapeError


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays of numbers, in their order, without compression."""
    with zipfile.ZipFile(path, "w") as file:
        for name, array in arrays.items():
            # A name alone gives the member the earliest date there is, whenever it is written.
            with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def read_arrays(path: Path, specs: Sequence[TensorSpec]) -> dict[str, NDArray[Any]]:
    """Read the arrays that ``specs`` name, by name.

    Raises:
        BundleError: the file cannot be read, or an array is missing or of another dtype or shape.
    """
    arrays: dict[str, NDArray[Any]] = {}
    try:
        with zipfile.ZipFile(path) as file:
            for spec in specs:
                with file.open(f"{spec.name}.npy") as member:
                    arrays[spec.name] = np.lib.format.read_array(member, allow_pickle=False)
        for spec in specs:
            spec.check(arrays[spec.name])
    except ShapeError as error:
        raise BundleError(f"{path}: {error}") from error
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from error
    except (EOFError, KeyError, RuntimeError, ValueError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path}: got no file of arrays ({error}), wanted one") from error
    return arrays
