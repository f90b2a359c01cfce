"""Edge of a runner: arguments of ``Runner.encode`` and ``Runner.step``."""

from __future__ import annotations

import numpy as np

from export.contract.tensors import spec

SOURCES = spec("sources", np.int64, "batch", "src_len")
LENGTHS = spec("lengths", np.int64, "batch")
ROWS = spec("rows", np.int64, "batch")
TOKENS = spec("tokens", np.int64, "rows")
POSITIONS = spec("positions", np.int64, "rows")
PARENTS = spec("parents", np.int64, "rows")
