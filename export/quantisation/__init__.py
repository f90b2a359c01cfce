"""Quantisation to 8 bits: ranges of activations from calibration sentences, and weights per output channel."""
