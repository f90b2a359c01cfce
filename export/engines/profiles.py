"""The ranges of sizes that engines are built and tuned for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import onnx

from export.runners.gpu.engine_keys import EngineSizes

_FEW_SOURCES = 8  # a request's own; more come from several
_COMMON_SOURCE = 64


class Range(NamedTuple):
    """Sizes from ``low`` to ``high``; ``best`` is what an engine is tuned for."""

    low: int
    best: int
    high: int


Profile = dict[str, Range]
"""Ranges by the names of the contract's sizes, or of an input whose value is a size."""


def profiles_of(graph: str, sizes: EngineSizes) -> list[Profile]:
    """The profiles of a graph's engine: for the encoder by batch and source length, for all others by rows."""
    if graph == "encoder":
        return _encoder_profiles(sizes)
    sources, caches = sizes.source_capacities, sizes.cache_capacities
    common = min(sources[-1], _COMMON_SOURCE)
    beside: dict[str, Profile] = {
        "step": {"src_capacity": Range(1, common, sources[-1])},
        "greedy": {},
        "top_k": {"k": Range(1, sizes.max_candidates, sizes.max_candidates)},
        "reorder": {"capacity": Range(1, caches[0], caches[-1])},
    }
    # Whoever runs them fills a bucket up: nothing in between is ever asked for.
    return [{"rows": Range(rows, rows, rows), **beside[graph]} for rows in sizes.row_buckets]


def _encoder_profiles(sizes: EngineSizes) -> list[Profile]:
    """Few sources and many, of every length; together no more than the runner gives the encoder in one call."""
    profiles = []
    for length in _ranges(sizes.source_capacities):
        most = max(1, min(sizes.row_buckets[-1], sizes.encoder_tokens // length.low))
        few = min(most, _FEW_SOURCES)
        batches = [Range(1, 1, few)]
        if most > few:
            batches.append(Range(few + 1, max(few + 1, min(most, sizes.encoder_tokens // length.high)), most))
        profiles += [{"batch": batch, "src_len": length} for batch in batches]
    return profiles


def _ranges(buckets: Iterable[int]) -> list[Range]:
    """From after one bucket to the next, tuned for the bucket itself."""
    ranges, low = [], 1
    for bucket in buckets:
        ranges.append(Range(low, bucket, bucket))
        low = bucket + 1
    return ranges


def add_profiles(builder: Any, config: Any, definition: Any, model: onnx.ModelProto, profiles: list[Profile]) -> None:
    """Add profiles to a builder's configuration; ``model`` says which size of which input is meant by a name."""
    shapes = {value.name: value.type.tensor_type.shape.dim for value in model.graph.input}
    for ranges in profiles:
        profile = builder.create_optimization_profile()
        for place in range(definition.num_inputs):
            tensor = definition.get_input(place)
            if tensor.is_shape_tensor:
                profile.set_shape_input(tensor.name, *([size] for size in ranges[tensor.name]))
                continue
            sizes = shapes[tensor.name]
            if any(size.dim_param for size in sizes):
                profile.set_shape(tensor.name, *(_shape(sizes, ranges, which) for which in range(3)))
        config.add_optimization_profile(profile)


def _shape(sizes: Any, ranges: Profile, which: int) -> tuple[int, ...]:
    return tuple(ranges[size.dim_param][which] if size.dim_param else size.dim_value for size in sizes)
