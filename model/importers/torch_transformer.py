"""``dragoman import torch``: a plain state_dict of a paper Transformer, with a small config file beside it.

The directory holds ``config.json``, the weights and SentencePiece models::

    {
      "name": "en-de",
      "source_languages": ["en"], "target_languages": ["de"],
      "license_note": "...",                             (optional)
      "decoding": {"beam_size": 4},                      (optional: names as in the wire contract's DecodingConfig)
      "transformer": {"source_vocab_size": 32000, ...},  (fields of model.config.TransformerConfig)
      "weights": "model.pt",                             (.safetensors, or what torch.save wrote)
      "entry": "state_dict",                             (optional: where in that file the state_dict stands)
      "naming": "torch",                                 (torch: torch.nn.Transformer's names; dragoman: our own)
      "keys": {"transformer": "transformer."},           (optional: see ``_KEYS`` for what may be named)
      "bias": true,                                      (optional: whether layers and norms have biases)
      "ignored": ["positional_encoding.pos_embedding"],  (optional: tensors that are not needed)
      "tokenizer": {"source": "spm.model"}               (optional: "target", "source_template", "forced_template")
    }

Source: torch.nn.Transformer of PyTorch 2.13.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from model.checkpoint import Checkpoint, check_vocabulary
from model.config import ConfigError, Positions, TiedEmbeddings, TransformerConfig
from model.importers.card import Languages, Naming, make_card
from model.importers.settings import Settings
from model.tokenizer import Kind, Part, Tokenizer, TokenizerConfig
from model.tokenizer.pieces import PieceSegmenter, read_model_file
from model.transformer import Transformer
from model.weight_files import SAFETENSORS_SUFFIX, CheckpointError, is_file_name, read_saved, read_weights
from model.weights import Origin, check_size, copy_weights

# What "keys" may name, and what it is where it does not.
_KEYS = {
    "transformer": "transformer.",
    "source_embedding": "source_embedding.weight",
    "target_embedding": "target_embedding.weight",
    "source_positions": "source_positions",
    "target_positions": "target_positions",
    "source_embedding_norm": "source_embedding_norm.",
    "target_embedding_norm": "target_embedding_norm.",
    "output": "output.",
}
_PACKED = ("query", "key", "value")
_ENCODER_LAYER = {
    "self_attention": "self_attn",
    "self_attention_residual.norm": "norm1",
    "feed_forward.inner": "linear1",
    "feed_forward.outer": "linear2",
    "feed_forward_residual.norm": "norm2",
}
_DECODER_LAYER = _ENCODER_LAYER | {
    "cross_attention": "multihead_attn",
    "cross_attention_residual.norm": "norm2",
    "feed_forward_residual.norm": "norm3",
}


def read_torch(path: Path, naming: Naming) -> Checkpoint:
    """Read a directory as the module describes it.

    Raises:
        CheckpointError: a file is missing or broken, or a tensor is missing, unexpected or misshapen.
        TokenizerError: a SentencePiece model cannot be read.
    """
    settings = Settings.read(path / "config.json")
    settings.only(
        *("name", "source_languages", "target_languages", "license_note", "decoding", "transformer"),
        *("weights", "entry", "naming", "keys", "bias", "ignored", "tokenizer"),
    )
    try:
        config = TransformerConfig.from_dict(settings.raw("transformer") or {})
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{settings.where}: transformer: {error}") from error
    stored = _read_state_dict(path, settings)
    check_size(config, stored, where=str(path))
    model = Transformer(config)
    origins, copies = _origins(model, settings, stored)
    copy_weights(
        model,
        stored,
        where=str(path),
        origins=origins,
        copies=copies,
        passed_over=settings.texts("ignored", ()),
    )
    tokenizer = _tokenizer(path, settings.section("tokenizer"), config)
    check_vocabulary(tokenizer, config, where=str(path))
    card = make_card(
        Naming(
            name=naming.name or settings.text("name", ""),
            source_languages=naming.source_languages,
            target_languages=naming.target_languages,
            license_note=naming.license_note or settings.text("license_note", ""),
        ),
        fallback_name=path.resolve().name,
        sources=Languages(named=settings.texts("source_languages", ())),
        targets=Languages(named=settings.texts("target_languages", ())),
        decoding=settings.raw("decoding") or {},
    )
    return Checkpoint(model.eval(), tokenizer, card)


def _read_state_dict(path: Path, settings: Settings) -> dict[str, Tensor]:
    file = _beside(path, settings, "weights")
    if file.suffix == SAFETENSORS_SUFFIX:
        return read_weights(file)
    values: Any = read_saved(file)
    if "entry" in settings:
        for step in settings.text("entry").split("."):
            if not isinstance(values, dict) or step not in values:
                known = ", ".join(map(str, values)) if isinstance(values, dict) else type(values).__name__
                raise settings.fault("entry", f"what {file.name} holds: {known[:200]}")
            values = values[step]
    if not isinstance(values, dict) or not all(isinstance(value, Tensor) for value in values.values()):
        held = ", ".join(map(str, values)) if isinstance(values, dict) else type(values).__name__
        raise CheckpointError(f'{file}: got {held[:200]}, wanted tensors by name; name the state_dict as "entry"')
    return {str(name): tensor for name, tensor in values.items()}


def _beside(path: Path, settings: Settings, name: str) -> Path:
    """A file of the directory that a field names."""
    value = settings.text(name)
    if not is_file_name(value):
        raise settings.fault(name, "the name of a file beside config.json")
    return path / value


def _origins(
    model: Transformer, settings: Settings, stored: dict[str, Tensor]
) -> tuple[dict[str, Origin], dict[str, str]]:
    """Where our parameters stand, and which of the file's tensors are copies of others."""
    naming = settings.text("naming", "torch")
    if naming not in ("torch", "dragoman"):
        raise settings.fault("naming", "torch or dragoman")
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    if naming == "dragoman":
        origins = {name: Origin(name) for name in names}
    else:
        keys = settings.section("keys")
        keys.only(*_KEYS)
        places = {name: keys.text(name, default) for name, default in _KEYS.items()}
        origins = _torch_origins(model.config, places)
    if not settings.flag("bias", True):
        origins = {
            name: replace(origin, zeros_if_missing=name.endswith(".bias") and name != "output.bias")
            for name, origin in origins.items()
        }
    tied = {
        TiedEmbeddings.ALL: ("target_embedding.token.weight", "source_embedding.token.weight"),
        TiedEmbeddings.DECODER: ("target_embedding.token.weight",),
        TiedEmbeddings.NONE: (),
    }[model.config.tied_embeddings]
    # The matrix that several share may stand under any of its names.
    matrices = [origins[name].key for name in ("output.weight", *tied)]
    present = [key for key in matrices if key in stored] or matrices[:1]
    origins["output.weight"] = Origin(present[0])
    return origins, {key: present[0] for key in present[1:] if key != present[0]}


def _torch_origins(config: TransformerConfig, places: dict[str, str]) -> dict[str, Origin]:
    origins: dict[str, Origin] = {}
    for stack, layers, names in (
        ("encoder", config.encoder_layers, _ENCODER_LAYER),
        ("decoder", config.decoder_layers, _DECODER_LAYER),
    ):
        for number in range(layers):
            for ours, theirs in names.items():
                there = f"{places['transformer']}{stack}.layers.{number}.{theirs}"
                origins |= _module_origins(f"{stack}.{number}.{ours}", there)
        origins |= _pair(f"{stack}_norm", f"{places['transformer']}{stack}.norm.")
    for side in ("source", "target"):
        origins[f"{side}_embedding.token.weight"] = Origin(places[f"{side}_embedding"])
        if config.positions is Positions.LEARNED:
            origins[f"{side}_embedding.position"] = Origin(places[f"{side}_positions"])
        origins |= _pair(f"{side}_embedding.norm", places[f"{side}_embedding_norm"])
    return origins | _pair("output", places["output"])


def _module_origins(ours: str, theirs: str) -> dict[str, Origin]:
    """A linear map, a norm, or an attention whose three input projections are packed into one."""
    if not ours.endswith("_attention"):
        return _pair(ours, f"{theirs}.")
    origins = _pair(f"{ours}.output", f"{theirs}.out_proj.")
    for place, part in enumerate(_PACKED):
        packed = (place, len(_PACKED))
        origins[f"{ours}.{part}.weight"] = Origin(f"{theirs}.in_proj_weight", part=packed)
        origins[f"{ours}.{part}.bias"] = Origin(f"{theirs}.in_proj_bias", part=packed)
    return origins


def _pair(ours: str, prefix: str) -> dict[str, Origin]:
    return {f"{ours}.{part}": Origin(f"{prefix}{part}") for part in ("weight", "bias")}


def _tokenizer(path: Path, settings: Settings, config: TransformerConfig) -> Tokenizer:
    settings.only("source", "target", "source_template", "forced_template")
    try:
        source_template = tuple(Part(part) for part in settings.texts("source_template", ("text", "eos")))
        forced_template = tuple(Part(part) for part in settings.texts("forced_template", ()))
    except ValueError as error:
        raise CheckpointError(f"{settings.where}: {error}, wanted {', '.join(Part)}") from error
    segmenter = PieceSegmenter(
        read_model_file(_beside(path, settings, "source")),
        unk_id=config.unk_id,
        target_model=read_model_file(_beside(path, settings, "target")) if "target" in settings else None,
    )
    special = {config.pad_id, config.start_id, config.eos_id}
    described = TokenizerConfig(
        kind=Kind.SENTENCEPIECE,
        pad_id=config.pad_id,
        unk_id=config.unk_id,
        eos_id=config.eos_id,
        bos_id=config.start_id,
        source_template=source_template,
        forced_template=forced_template,
        special_ids=tuple(sorted(special)),
    )
    return Tokenizer(described, segmenter)
