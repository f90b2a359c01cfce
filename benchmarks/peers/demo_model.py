"""The bundled demo model with its own weights in two other forms: our checkpoint, and a MarianMT directory.

The weights are read back from the bundle's graphs. The Marian is the same function of them, by three turns: its
position tables are ours; what the start token adds to the first position of every output stands in the decoder's table,
for a Marian starts with a zero embedding; and the tokens that our search never selects are barred by the logits' bias.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import sentencepiece
import torch
import transformers
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.peers.base_model import write_tokenizer
from export.bundle import Bundle
from export.graphs.flavour import memory_caches
from export.quantisation.ranges import MEMORY
from model.checkpoint import Checkpoint, save_checkpoint
from model.config import TransformerConfig
from model.importers.huggingface import layer_origins
from model.tokenizer import Tokenizer
from model.training.recipe import read_recipe
from model.transformer import Transformer
from model.weights import copy_weights

_NEVER = -1e4
_TOKEN_TABLES = {"source.token": "source_embedding.token.weight", "target.token": "target_embedding.token.weight"}
_DERIVED = ("constant_", "source.position", "target.position")


def rebuild_checkpoint(bundle: Bundle, *, recipe: Path, out: Path) -> None:
    """Write the checkpoint that ``bundle``, in fp32, was exported from.

    Raises:
        CheckpointError: the bundle's graphs do not hold the weights of a model of this recipe.
    """
    read = read_recipe(recipe)
    tokenizer = Tokenizer.load(bundle.tokenizer_path)
    config = TransformerConfig.from_dict(
        {**read.transformer, "source_vocab_size": read.vocab_size, "target_vocab_size": read.vocab_size}
    )
    stored = {
        ours: torch.from_numpy(part.astype(np.float32))
        for name, values in _initializers(bundle)
        for ours, part in _our_tensors(name, values, decoder_layers=bundle.manifest.dims.decoder_layers)
    }
    model = Transformer(config)
    copy_weights(model, stored, where=str(bundle.path), copies=dict.fromkeys(_TOKEN_TABLES.values(), "output.weight"))
    save_checkpoint(out, Checkpoint(model.eval(), tokenizer, read.card))


def _initializers(bundle: Bundle) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """Every weight of the encoder's and the decoder's graph, by its name there."""
    for graph in ("encoder", "step"):
        path = bundle.graph_path("cpu", graph)
        for tensor in onnx.load(str(path), load_external_data=False).graph.initializer:
            if not tensor.name.startswith(_DERIVED):
                yield tensor.name, numpy_helper.to_array(tensor, str(path.parent))


def _our_tensors(
    name: str, values: NDArray[np.generic], *, decoder_layers: int
) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """Our names of what the graphs call ``name``: packed projections apart, norms with their residual sums."""
    module, _, kind = name.rpartition(".")
    place, _, part = module.rpartition(".")
    kind = "weight" if kind == "gain" else kind
    if name in _TOKEN_TABLES:
        yield _TOKEN_TABLES[name], values
    elif module == MEMORY:
        places = memory_caches(decoder_layers)
        for place, piece in zip(places, np.split(values, len(places)), strict=True):
            yield f"{place}.{kind}", piece
    elif part == "query_key_value":
        projections = part.split("_")
        for projection, piece in zip(projections, np.split(values, len(projections)), strict=True):
            yield f"{place}.{projection}.{kind}", piece
    elif part == "norm":
        yield f"{place}_residual.norm.{kind}", values
    else:
        yield name, values


def write_marian(checkpoint: Checkpoint, *, spm: bytes, out: Path) -> None:
    """Write a checkpoint with sinusoids and tied embeddings, and its SentencePiece model, as a MarianMT directory."""
    ours = checkpoint.model.config
    tokens = ours.target_vocab_size
    config = transformers.MarianConfig(
        vocab_size=tokens + 1,
        d_model=ours.d_model,
        encoder_layers=ours.encoder_layers,
        decoder_layers=ours.decoder_layers,
        encoder_attention_heads=ours.heads,
        decoder_attention_heads=ours.heads,
        encoder_ffn_dim=ours.ffn_dim,
        decoder_ffn_dim=ours.ffn_dim,
        max_position_embeddings=ours.max_positions,
        activation_function=ours.activation.value,
        scale_embedding=ours.scale_embeddings,
        # One token more than ours: Marian's padding, which also starts every output.
        pad_token_id=tokens,
        decoder_start_token_id=tokens,
        eos_token_id=ours.eos_id,
        forced_eos_token_id=None,
    )
    transformers.MarianMTModel(config).save_pretrained(out)
    # Anew, with our weights and with position tables, which save_pretrained leaves out: Marian's own are computed.
    save_file(_marian_tensors(checkpoint.model), out / "model.safetensors", metadata={"format": "pt"})
    processor = sentencepiece.SentencePieceProcessor(model_proto=spm)
    names = [processor.id_to_piece(token) for token in range(tokens)]
    names[ours.pad_id] = "<unused>"
    write_tokenizer(out, names=[*names, "<pad>"], spm=spm)


def _marian_tensors(model: Transformer) -> dict[str, Tensor]:
    config, state = model.config, model.state_dict()
    tensors = {place.key: state[name].clone() for name, place in layer_origins(config).items()}
    table = state["target_embedding.token.weight"]
    start = table[config.start_id] * model.target_embedding.scale
    decoder_positions = model.target_embedding.position.clone()
    decoder_positions[0] += start
    bias = torch.zeros(1, len(table) + 1)
    bias[0, [*config.suppressed_ids, len(table)]] = _NEVER
    return tensors | {
        "model.shared.weight": torch.cat((table, torch.zeros(1, config.d_model))),
        "model.encoder.embed_positions.weight": model.source_embedding.position.clone(),
        "model.decoder.embed_positions.weight": decoder_positions,
        "final_logits_bias": bias,
    }
