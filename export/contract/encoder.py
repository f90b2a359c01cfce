"""The encoder's graph, which is the same in every flavour."""

from __future__ import annotations

from typing import Any

import numpy as np

from export.contract.tensors import GraphContract, ModelDimensions, TensorSpec, spec


def encoder_contract(dimensions: ModelDimensions, cached: np.dtype[Any]) -> GraphContract:
    """Sources to every decoder layer's cross-attention keys and values, of dtype ``cached``, in buffer order."""
    memory = (2 * dimensions.decoder_layers, "batch", dimensions.heads, "src_len", dimensions.head_dim)
    return GraphContract(
        inputs=(spec("tokens", np.int64, "batch", "src_len"), spec("lengths", np.int64, "batch")),
        outputs=(TensorSpec("cross", cached, memory),),
    )
