"""The Transformer in PyTorch: architecture, tokenizer, data, training, checkpoints and the reference decoder."""
