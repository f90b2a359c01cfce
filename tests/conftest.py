"""Settings of the whole test run."""

from __future__ import annotations

import os

# Before torch is imported: the models of the tests are tiny, and a second thread would only wait for the first.
os.environ.setdefault("OMP_NUM_THREADS", "1")
