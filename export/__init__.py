"""Checkpoint to bundle: graph contract, ONNX graphs, bundle format and the runners that execute it."""
