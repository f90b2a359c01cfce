"""Head graphs against numpy, over vocabularies of every awkward size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export.contract import ModelDimensions, argmax_contract, top_k_contract
from export.graphs.heads import build_argmax, build_top_k
from export.runners.ort_session import open_session, run_graph


def dimensions(vocab: int) -> ModelDimensions:
    return ModelDimensions(
        encoder_layers=1,
        decoder_layers=1,
        heads=1,
        head_dim=8,
        d_model=8,
        source_vocab=vocab,
        target_vocab=vocab,
        max_positions=4,
    )


def logits_of(rows: int, dims: ModelDimensions, *, ties: bool) -> np.ndarray:
    draw = np.random.default_rng(rows)
    shape = (rows, dims.padded_target_vocab)
    logits = (draw.integers(-2, 3, shape) if ties else draw.standard_normal(shape) * 4).astype(np.float32)
    logits[:, dims.target_vocab :] = -np.inf
    return logits


def best_first(logits: np.ndarray, suppressed: tuple[int, ...]) -> np.ndarray:
    selectable = logits.copy()
    selectable[:, list(suppressed)] = -np.inf
    return np.argsort(-selectable, axis=1, kind="stable")


@pytest.mark.parametrize("ties", [False, True], ids=["apart", "ties"])
@pytest.mark.parametrize(
    ("vocab", "suppressed"),
    [(5, (0, 1, 2)), (40, (0,)), (128, (0, 1, 2)), (129, (128, 0)), (301, (300, 1, 130)), (4096, ()), (1000, (0, 999))],
)
def test_heads_select_what_numpy_selects(vocab: int, suppressed: tuple[int, ...], ties: bool, tmp_path: Path) -> None:
    dims = dimensions(vocab)
    build_argmax(dims, suppressed_ids=suppressed).save(tmp_path / "argmax.onnx")
    build_top_k(dims, suppressed_ids=suppressed).save(tmp_path / "top_k.onnx")
    argmax = open_session(tmp_path / "argmax.onnx", contract=argmax_contract(dims), threads=1)
    top_k = open_session(tmp_path / "top_k.onnx", contract=top_k_contract(dims), threads=1)
    for rows in (1, 6, 33):
        logits = logits_of(rows, dims, ties=ties)
        order = best_first(logits, suppressed)
        ids = run_graph(argmax, {"logits": logits})[0]
        assert ids.tolist() == order[:, 0].tolist()
        exact = logits.astype(np.float64)
        log_probs = exact - np.log(np.exp(exact).sum(1, keepdims=True))
        for k in (1, 2, 8, 31, 32):
            if k <= vocab - len(suppressed):
                best, scores = run_graph(top_k, {"logits": logits, "k": np.array([k])})
                assert best.tolist() == order[:, :k].tolist()
                assert np.abs(scores - np.take_along_axis(log_probs, order[:, :k], 1)).max() < 1e-5


def test_selection_survives_tokens_that_dwarf_all_others(tmp_path: Path) -> None:
    dims = dimensions(300)
    build_top_k(dims, suppressed_ids=(0,)).save(tmp_path / "top_k.onnx")
    top_k = open_session(tmp_path / "top_k.onnx", contract=top_k_contract(dims), threads=1)
    logits = np.full((1, dims.padded_target_vocab), -1e4, np.float32)
    logits[0, [0, 7]] = 1e4, 50.0
    logits[0, 300:] = -np.inf
    ids, log_probs = run_graph(top_k, {"logits": logits, "k": np.array([3])})
    assert ids.tolist() == [[7, 1, 2]]
    assert log_probs[0, 0] == pytest.approx(50.0 - 1e4)
