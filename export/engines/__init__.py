"""TensorRT engines from the graphs of the ``standard`` flavour: ``python -m export.engines BUNDLE --out FOLDER``.

Needs onnx, numpy and TensorRT (``export.runners.tensorrt_library``), neither torch nor a GPU of its own.
"""
