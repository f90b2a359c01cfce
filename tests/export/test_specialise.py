"""The rewrite for TensorRT, by ONNX's own reference: the same numbers, from masks, and from float32 in between."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from export.engines.specialise import specialise

HEADS, WIDTH, KEYS = 2, 4, 5
LENGTHS = np.array([5, 1, 3])


def attention(*, apart: bool, element_type: int) -> onnx.ModelProto:
    """One Attention that is told of padding by lengths; its heads apart, or side by side."""
    sizes = ("b", HEADS, "{}", WIDTH) if apart else ("b", "{}", HEADS * WIDTH)

    def value(name: str, length: str) -> onnx.ValueInfoProto:
        shape = [length if size == "{}" else size for size in sizes]
        return helper.make_tensor_value_info(name, element_type, shape)

    attributes: dict[str, Any] = {} if apart else {"q_num_heads": HEADS, "kv_num_heads": HEADS}
    inputs = ["query", "key", "value", "", "", "", "lengths"]
    node = helper.make_node("Attention", inputs, ["attended"], name="attention", **attributes)
    lengths = helper.make_tensor_value_info("lengths", TensorProto.INT64, ["b"])
    graph = helper.make_graph(
        [node],
        "attention",
        [value("query", "q"), value("key", "k"), value("value", "k"), lengths],
        [value("attended", "q")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=12)


def values(*, apart: bool, dtype: Any) -> dict[str, NDArray[Any]]:
    draw = np.random.default_rng(3)

    def random(length: int) -> NDArray[Any]:
        shape = (3, HEADS, length, WIDTH) if apart else (3, length, HEADS * WIDTH)
        return draw.normal(size=shape).astype(dtype)

    return {"query": random(1 if apart else KEYS), "key": random(KEYS), "value": random(KEYS), "lengths": LENGTHS}


def run(model: onnx.ModelProto, given: dict[str, NDArray[Any]]) -> NDArray[Any]:
    onnx.checker.check_model(model, full_check=True)
    results = ReferenceEvaluator(model).run(None, given)
    assert isinstance(results, list)
    found: NDArray[Any] = results[0]
    return found


@pytest.mark.parametrize("apart", [True, False])
def test_masks_say_what_lengths_say(apart: bool) -> None:
    model, given = attention(apart=apart, element_type=TensorProto.FLOAT), values(apart=apart, dtype=np.float32)
    rewritten = specialise(model)
    assert np.array_equal(run(rewritten, given), run(model, given))
    padded = given | {"key": given["key"].copy()}
    place = (2, slice(None), slice(3, None)) if apart else (2, slice(3, None))
    padded["key"][place] = 50.0
    assert np.array_equal(run(rewritten, padded), run(rewritten, given)), "padding was attended to"
    assert "Cast" not in {node.op_type for node in rewritten.graph.node}


@pytest.mark.parametrize("apart", [True, False])
def test_attention_in_16_bits_is_computed_in_float32(apart: bool) -> None:
    half = attention(apart=apart, element_type=TensorProto.FLOAT16)
    given = values(apart=apart, dtype=np.float16)
    wide = attention(apart=apart, element_type=TensorProto.FLOAT)
    wanted = run(
        wide,
        {name: array.astype(np.float32) for name, array in given.items() if name != "lengths"} | {"lengths": LENGTHS},
    )
    got = run(specialise(half), given)
    assert got.dtype == np.float16
    assert np.array_equal(got, wanted.astype(np.float16)), "rounded once, at the end"
    assert not np.array_equal(run(half, given), wanted.astype(np.float16)), "as it was, it rounds on the way"


def test_the_graph_that_came_in_stays_as_it_is() -> None:
    model = attention(apart=True, element_type=TensorProto.FLOAT16)
    before = model.SerializeToString()
    specialised = specialise(model, sizes={"k": 128})
    assert model.SerializeToString() == before
    assert specialised.graph.input[1].type.tensor_type.shape.dim[2].dim_value == 128
    assert specialised.graph.input[0].type.tensor_type.shape.dim[2].dim_param == "q"
