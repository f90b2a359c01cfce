"""Head graphs: they read the logits where the step left them and select tokens.

Selection works in two stages over blocks of the vocabulary, which is exact and far cheaper than one pass of ArgMax or
TopK: a row's best tokens all lie in the blocks whose own best is best. Equal logits go to the lower token id.
"""

from __future__ import annotations

import numpy as np

from export.contract import VOCAB_BLOCK, ModelDimensions, argmax_contract, greedy_contract, top_k_contract
from export.graphs.builder import ORT_OPSETS, GraphBuilder, Opsets


def build_argmax(
    dims: ModelDimensions, *, suppressed_ids: tuple[int, ...], opsets: Opsets = ORT_OPSETS
) -> GraphBuilder:
    """The best selectable token of each row."""
    graph = GraphBuilder("argmax", contract=argmax_contract(dims), opsets=opsets)
    _select_best(graph, dims, suppressed_ids=suppressed_ids)
    return graph


def build_greedy(
    dims: ModelDimensions, *, suppressed_ids: tuple[int, ...], opsets: Opsets = ORT_OPSETS
) -> GraphBuilder:
    """The best selectable token of each row, and its next position."""
    graph = GraphBuilder("greedy", contract=greedy_contract(dims), opsets=opsets)
    _select_best(graph, dims, suppressed_ids=suppressed_ids)
    graph.op("Add", "positions", graph.constant(1), output="next_positions")
    return graph


def _select_best(graph: GraphBuilder, dims: ModelDimensions, *, suppressed_ids: tuple[int, ...]) -> None:
    """Write ``ids``."""
    blocks = _Blocks(graph, dims, suppressed_ids=suppressed_ids)
    best_block = graph.op("ArgMax", blocks.best, axis=-1, keepdims=1)
    within = graph.op("ArgMax", blocks.selectable(best_block), axis=-1, keepdims=0)
    first_id = graph.op("Mul", best_block, graph.constant(VOCAB_BLOCK))
    graph.op("Squeeze", graph.op("Add", first_id, within), graph.constant([-1]), output="ids")


def build_top_k(dims: ModelDimensions, *, suppressed_ids: tuple[int, ...], opsets: Opsets = ORT_OPSETS) -> GraphBuilder:
    """The ``k`` best selectable tokens of each row; their log-probs are over the whole vocabulary."""
    graph = GraphBuilder("top_k", contract=top_k_contract(dims), opsets=opsets)
    blocks = _Blocks(graph, dims, suppressed_ids=suppressed_ids)
    block_count = graph.op("Min", "k", graph.constant([dims.padded_target_vocab // VOCAB_BLOCK]))
    _, best_blocks = graph.ops("TopK", (blocks.best, block_count), outputs=(None, None), axis=-1)
    # In the order of the vocabulary, so that among equal logits the lower token id comes first.
    chosen, _ = graph.ops("TopK", (best_blocks, block_count), outputs=(None, None), axis=-1, largest=0)
    flat = graph.op("Reshape", blocks.selectable(chosen), graph.op("Concat", blocks.rows, graph.constant([-1]), axis=0))
    _, places = graph.ops("TopK", (flat, "k"), outputs=(None, None), axis=-1)
    width = graph.constant(VOCAB_BLOCK)
    block = graph.op("GatherElements", chosen, graph.op("Div", places, width), axis=-1)
    ids = graph.op("Add", graph.op("Mul", block, width), graph.op("Mod", places, width), output="ids")
    graph.op("GatherElements", graph.op("LogSoftmax", "logits", axis=-1), ids, axis=-1, output="log_probs")
    return graph


class _Blocks:
    """The logits as [rows, blocks, VOCAB_BLOCK]; suppressed tokens count as -inf."""

    def __init__(self, graph: GraphBuilder, dims: ModelDimensions, *, suppressed_ids: tuple[int, ...]) -> None:
        count = dims.padded_target_vocab // VOCAB_BLOCK
        mask = np.zeros((count, VOCAB_BLOCK), np.float32)
        mask.reshape(-1)[list(suppressed_ids)] = -np.inf
        self._graph = graph
        self._mask = graph.table("suppressed", mask)
        self._logits = graph.op("Reshape", "logits", graph.constant([-1, count, VOCAB_BLOCK]))
        self.rows = graph.op("Shape", "logits", start=0, end=1)
        self.best = self._best_of_each(np.flatnonzero(mask.any(axis=1)))

    def selectable(self, blocks: str) -> str:
        """Logits of some blocks of each row: int64 [rows, n] -> float [rows, n, VOCAB_BLOCK]."""
        index = self._graph.op("Unsqueeze", blocks, self._graph.constant([-1]))
        logits = self._graph.op("GatherND", self._logits, index, batch_dims=1)
        return self._graph.op("Add", logits, self._graph.op("Gather", self._mask, blocks, axis=0))

    def _best_of_each(self, affected: np.ndarray[tuple[int], np.dtype[np.int64]]) -> str:
        """Best selectable logit of every block [rows, blocks]; only the few affected blocks are masked."""
        graph = self._graph
        best = graph.op("ReduceMax", self._logits, graph.constant([-1]), keepdims=0)
        if not len(affected):
            return best
        places = graph.constant(affected)
        masked = graph.op(
            "Add", graph.op("Gather", self._logits, places, axis=1), graph.op("Gather", self._mask, places)
        )
        repaired = graph.op("ReduceMax", masked, graph.constant([-1]), keepdims=0)
        columns = graph.op("Expand", places, graph.op("Shape", repaired))
        return graph.op("ScatterElements", best, columns, repaired, axis=-1)
