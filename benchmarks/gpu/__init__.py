"""Measures the runners for GPUs against PyTorch, on one machine with a GPU and no network: see README.md."""
