"""A runner for GPUs: one that every runtime shares, and the runtimes that execute its graphs."""
