"""Settings of the whole test run."""

from __future__ import annotations

import os
import signal

# Before torch is imported: the models of the tests are tiny, and a second thread would only wait for the first.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What a shell starts in the background ignores Ctrl-C; tests of interruptions, and the processes they start, must not.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
