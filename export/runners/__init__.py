"""What executes a bundle's graphs: the protocol and its implementations."""

import os

# ONNX Runtime reports its use to its maker unless told otherwise before it is imported. A translation server does not.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
