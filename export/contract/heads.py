"""Head graphs: they read the logits where a step left them."""

from __future__ import annotations

import numpy as np

from export.contract.tensors import GraphContract, ModelDimensions, spec


def argmax_contract(dimensions: ModelDimensions) -> GraphContract:
    """Logits to the best selectable token of each row."""
    return GraphContract(
        inputs=(spec("logits", np.float32, "rows", dimensions.padded_target_vocab),),
        outputs=(spec("ids", np.int64, "rows"),),
    )


def greedy_contract(dimensions: ModelDimensions) -> GraphContract:
    """What ``argmax`` gives, and where each row's next step stands: all that a device needs to go on by itself."""
    argmax = argmax_contract(dimensions)
    return GraphContract(
        inputs=(*argmax.inputs, spec("positions", np.int64, "rows")),
        outputs=(*argmax.outputs, spec("next_positions", np.int64, "rows")),
    )


def top_k_contract(dimensions: ModelDimensions) -> GraphContract:
    """Logits to the ``k`` best selectable tokens of each row, with log-probs."""
    return GraphContract(
        inputs=(
            spec("logits", np.float32, "rows", dimensions.padded_target_vocab),
            spec("k", np.int64, 1),
        ),
        outputs=(spec("ids", np.int64, "rows", "k"), spec("log_probs", np.float32, "rows", "k")),
    )
