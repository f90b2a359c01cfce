"""Fixtures of the tests of what runs on GPUs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from export.runners.gpu import buckets


@pytest.fixture(scope="module")
def small_buckets() -> Iterator[None]:
    """So that little models go through many of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buckets, "ROW_BUCKETS", (1, 3, 8))
        patch.setattr(buckets, "CACHE_CAPACITIES", (5, 12, 40))
        patch.setattr(buckets, "SOURCE_CAPACITIES", (4, 16, 40))
        patch.setattr("export.runners.gpu.rows._FEW_MOVES", 1)
        yield
