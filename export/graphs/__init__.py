"""ONNX graphs built from a Transformer's weights: encoder, decoder step and heads."""
