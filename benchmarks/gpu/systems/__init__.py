"""What is compared: this project's runners, PyTorch with CUDA graphs, and transformers."""
