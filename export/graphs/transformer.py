"""Encoder and step graphs, from one description of the model and one flavour.

Source: Vaswani et al. 2017, "Attention Is All You Need"; pre-norm after Xiong et al. 2020.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from export.contract import SHORTLISTED_STEP, ModelDimensions, cache_names, encoder_contract, ort_step_contract
from export.graphs.attention import EncoderAttention
from export.graphs.builder import GraphBuilder
from export.graphs.description import Attention, EmbeddingTables, Layer, Linear, ModelDescription, Norm
from export.graphs.flavour import Flavour, memory_caches
from export.graphs.numbers.float32 import Float32
from export.graphs.ort import OrtFlavour
from export.graphs.standard import StandardFlavour
from export.graphs.weight_file import WeightFile
from export.quantisation.ranges import MEMORY
from model.config import Activation


def build_encoder(model: ModelDescription, weights: WeightFile, flavour: Flavour) -> GraphBuilder:
    """The encoder, ending in every decoder layer's cross-attention keys and values."""
    dims = model.dims
    contract = encoder_contract(dims, flavour.numbers.cache_dtype)
    graph = GraphBuilder("encoder", contract=contract, opsets=flavour.opsets, weights=weights)
    emit = _Emitter(graph, model, flavour)
    attention = EncoderAttention(graph, model, flat=flavour.numbers.flat)
    src_len = graph.op("Shape", "tokens", start=1, end=2)
    places = graph.op("Range", graph.constant(0), graph.op("Squeeze", src_len), graph.constant(1))
    x = emit.embed("source", model.source, tokens="tokens", positions=places)
    if flavour.numbers.flat:
        x = graph.op("Reshape", x, graph.constant([-1, dims.d_model]))
    for number, layer in enumerate(model.encoder):
        name = f"encoder.{number}"
        x = emit.self_attention(f"{name}.self_attention", x, layer, attend=attention.attend)
        x = emit.feed_forward(f"{name}.feed_forward", x, layer)
    x = emit.final_norm("encoder.norm", x, model.encoder_norm)
    caches = memory_caches(dims.decoder_layers)
    x = flavour.numbers.narrow(graph, x)
    memory = flavour.numbers.cached_linear(graph, MEMORY, x, model.memory, caches=caches)
    apart = graph.constant([len(caches), dims.heads, dims.head_dim])
    split = graph.op("Concat", graph.op("Shape", "tokens"), apart, axis=0)
    graph.op("Transpose", graph.op("Reshape", memory, split), perm=[2, 0, 3, 1, 4], output="cross")
    return graph


def build_step(model: ModelDescription, weights: WeightFile, flavour: Flavour) -> GraphBuilder:
    """One decoder step of every row, ending at the logits."""
    contract = flavour.step_contract(model.dims)
    graph = GraphBuilder("step", contract=contract, opsets=flavour.opsets, weights=weights)
    x = flavour.numbers.narrow(graph, _decode(graph, model, flavour))
    flavour.numbers.linear(graph, "output", x, model.output, result="logits")
    return graph


def build_shortlisted_step(model: ModelDescription, weights: WeightFile, flavour: OrtFlavour) -> GraphBuilder:
    """One decoder step of every row, ending at the logits of the candidates whose weights it is given."""
    contract = ort_step_contract(model.dims, flavour.numbers.cache_dtype, shortlisted=True)
    graph = GraphBuilder(SHORTLISTED_STEP, contract=contract, opsets=flavour.opsets, weights=weights)
    x = _decode(graph, model, flavour)
    flavour.numbers.linear_of_candidates(graph, "output", x, width=model.dims.d_model, result="logits")
    return graph


def build_reorder(dims: ModelDimensions, flavour: StandardFlavour) -> GraphBuilder:
    """Every layer's own caches by parents: row i becomes what row ``parents[i]`` was."""
    graph = GraphBuilder("reorder", contract=flavour.reorder_contract(dims), opsets=flavour.opsets)
    names = (cache_names(kind, dims.decoder_layers) for kind in ("past", "present"))
    for past, present in zip(*names, strict=True):
        graph.op("Gather", past, "parents", axis=0, output=present)
    return graph


def _decode(graph: GraphBuilder, model: ModelDescription, flavour: Flavour) -> str:
    """All of a step but its last product: [rows, d_model]."""
    emit = _Emitter(graph, model, flavour)
    attention = flavour.step_attention(graph, model)
    x = emit.embed("target", model.target, tokens="tokens", positions="positions")
    if not flavour.numbers.flat:
        x = graph.op("Unsqueeze", x, graph.constant([1]))
    for number, layer in enumerate(model.decoder):
        name = f"decoder.{number}"
        x = emit.self_attention(f"{name}.self_attention", x, layer, attend=partial(attention.attend_self, number))
        x = emit.cross_attention(
            f"{name}.cross_attention",
            x,
            layer,
            attend=partial(attention.attend_cross, number),
        )
        x = emit.feed_forward(f"{name}.feed_forward", x, layer)
    x = emit.final_norm("decoder.norm", x, model.decoder_norm)
    return x if flavour.numbers.flat else graph.op("Squeeze", x, graph.constant([1]))


class _Emitter:
    """Writes the parts that encoder and decoder have in common.

    Values are [positions, d_model] or [batch, positions, d_model], as ``NumberFormat.flat`` wants them.
    """

    def __init__(self, graph: GraphBuilder, model: ModelDescription, flavour: Flavour) -> None:
        self._graph = graph
        self._flavour = flavour
        self._numbers = flavour.numbers
        self._pre_norm = model.pre_norm
        self._activation = model.activation

    def embed(self, name: str, tables: EmbeddingTables, *, tokens: str, positions: str) -> str:
        """Token embedding times its scale, plus position embedding, normalised where the model does that."""
        graph = self._graph
        token = self._numbers.rows(graph, f"{name}.token", tables.token, tokens, scale=tables.scale)
        position = Float32().rows(
            graph, f"{name}.position", tables.position, positions
        )  # small: exact in any precision
        embedded = graph.op("Add", token, position)
        return embedded if tables.norm is None else self._normalise(f"{name}.norm", embedded, tables.norm)

    def linear(self, name: str, x: str, linear: Linear) -> str:
        """Matrix product and bias."""
        return self._numbers.linear(self._graph, name, x, linear)

    def self_attention(self, name: str, x: str, layer: Layer, *, attend: Callable[[str], str]) -> str:
        """The self-attention sub-layer with its residual."""
        projection = layer.self_attention.query_key_value

        def sublayer(y: str) -> str:
            mixed = attend(self.linear(f"{name}.query_key_value", y, projection))
            return self.linear(f"{name}.output", mixed, layer.self_attention.output)

        return self._residual(name, x, layer.self_attention_norm, sublayer)

    def cross_attention(self, name: str, x: str, layer: Layer, *, attend: Callable[[str], str]) -> str:
        """The cross-attention sub-layer with its residual."""
        assert layer.cross_attention is not None
        assert layer.cross_attention_norm is not None
        cross: Attention = layer.cross_attention

        def sublayer(y: str) -> str:
            return self.linear(f"{name}.output", attend(self.linear(f"{name}.query", y, cross.query)), cross.output)

        return self._residual(name, x, layer.cross_attention_norm, sublayer)

    def feed_forward(self, name: str, x: str, layer: Layer) -> str:
        """The feed-forward sub-layer with its residual."""

        def sublayer(y: str) -> str:
            inner = self._activate(self.linear(f"{name}.inner", y, layer.inner), read_by=f"{name}.outer")
            return self.linear(f"{name}.outer", inner, layer.outer)

        return self._residual(name, x, layer.feed_forward_norm, sublayer)

    def final_norm(self, name: str, x: str, norm: Norm | None) -> str:
        """The norm after a stack that ends in one."""
        return x if norm is None else self._normalise(name, x, norm)

    def _residual(self, name: str, x: str, norm: Norm, sublayer: Callable[[str], str]) -> str:
        if self._pre_norm:
            return self._graph.op("Add", x, self._within(sublayer, self._normalise(f"{name}.norm", x, norm)))
        return self._normalise(f"{name}.norm", self._graph.op("Add", x, self._within(sublayer, x)), norm)

    def _within(self, sublayer: Callable[[str], str], x: str) -> str:
        """A sub-layer in the precision of its products."""
        return self._numbers.widen(self._graph, sublayer(self._numbers.narrow(self._graph, x)))

    def _normalise(self, name: str, x: str, norm: Norm) -> str:
        gain = self._graph.weight(f"{name}.gain", norm.gain)
        bias = self._graph.weight(f"{name}.bias", norm.bias)
        return self._graph.op("LayerNormalization", x, gain, bias, axis=-1, epsilon=norm.epsilon)

    def _activate(self, x: str, *, read_by: str) -> str:
        match self._activation:
            case Activation.RELU:
                return x if self._numbers.cuts_negatives(read_by) else self._graph.op("Relu", x)
            case Activation.GELU:
                return self._graph.op("Gelu", x)
            case Activation.SWISH:
                return self._flavour.swish(self._graph, x)
