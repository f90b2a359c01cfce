"""How graphs of one precision multiply matrices, look up embeddings and keep caches: a class for each."""
