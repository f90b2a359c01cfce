"""What the importers of Hugging Face directories have in common: sizes, the names of layers, tied embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from model.checkpoint import Checkpoint, check_vocabulary
from model.config import Activation, ConfigError, TiedEmbeddings, TransformerConfig
from model.importers.card import Languages, Naming, make_card
from model.importers.generation import Generation, read_generation
from model.importers.settings import Settings
from model.tokenizer import Tokenizer
from model.transformer import Transformer
from model.weight_files import CheckpointError
from model.weights import Origin, check_size, copy_weights

_ACTIVATIONS = {
    "relu": Activation.RELU,
    "gelu": Activation.GELU,
    "swish": Activation.SWISH,
    "silu": Activation.SWISH,
}
_ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}
_ENCODER_LAYER = {
    **{f"self_attention.{ours}": f"self_attn.{theirs}" for ours, theirs in _ATTENTION.items()},
    "self_attention_residual.norm": "self_attn_layer_norm",
    "feed_forward.inner": "fc1",
    "feed_forward.outer": "fc2",
    "feed_forward_residual.norm": "final_layer_norm",
}
_DECODER_LAYER = _ENCODER_LAYER | {
    **{f"cross_attention.{ours}": f"encoder_attn.{theirs}" for ours, theirs in _ATTENTION.items()},
    "cross_attention_residual.norm": "encoder_attn_layer_norm",
}
FINAL_NORMS = {"encoder_norm": "model.encoder.layer_norm", "decoder_norm": "model.decoder.layer_norm"}
SHARED, HEAD = "model.shared.weight", "lm_head.weight"
SOURCE, TARGET = "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"
LOGITS_BIAS = "final_logits_bias"
# Fairseq's leftovers in old files.
_VERSIONS = ("model.encoder.version", "model.decoder.version")


@dataclass(frozen=True)
class Embeddings:
    """Which matrices of a file are one.

    Attributes:
        tied: the same, in our words.
        origins: where each of our embedding matrices stands.
        copies: names of further copies, each with the name of the matrix it must equal.
        unused: names of matrices that the model does not look at.
    """

    tied: TiedEmbeddings
    origins: dict[str, Origin]
    copies: dict[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Directory:
    """A Hugging Face model directory, its small files read."""

    path: Path
    config: Settings
    tokenizer_config: Settings
    generation: Generation


def open_directory(path: Path, *, model_types: tuple[str, ...]) -> Directory:
    """Read config.json, tokenizer_config.json and generation_config.json.

    Raises:
        CheckpointError: one is broken, or the model is of another type.
    """
    config = Settings.read(path / "config.json")
    if config.raw("model_type") not in model_types:
        raise config.fault("model_type", " or ".join(model_types))
    tokenizer_config = Settings.read(path / "tokenizer_config.json", optional=True)
    return Directory(path, config, tokenizer_config, read_generation(path, config))


def layer_origins(config: TransformerConfig) -> dict[str, Origin]:
    """Where every layer's parameters stand."""
    origins: dict[str, Origin] = {}
    for stack, layers, names in (
        ("encoder", config.encoder_layers, _ENCODER_LAYER),
        ("decoder", config.decoder_layers, _DECODER_LAYER),
    ):
        for number in range(layers):
            there = f"model.{stack}.layers.{number}"
            origins |= pair_origins({f"{stack}.{number}.{ours}": f"{there}.{name}" for ours, name in names.items()})
    return origins


def pair_origins(modules: Mapping[str, str]) -> dict[str, Origin]:
    """Where weight and bias of modules stand, given our names and theirs."""
    return {
        f"{ours}.{part}": Origin(f"{theirs}.{part}") for ours, theirs in modules.items() for part in ("weight", "bias")
    }


def find_embeddings(directory: Directory, stored: Mapping[str, Tensor], *, shared: bool) -> Embeddings:
    """Tell which matrices the model uses, by what its config says and what the file holds.

    Args:
        directory: what is imported; ``tie_word_embeddings`` says whether the output projection is the target embedding.
        stored: its tensors.
        shared: whether source and target have one vocabulary and, where the projection is tied, one matrix.
    """
    tied_head = directory.config.flag("tie_word_embeddings", True)
    if tied_head and shared:
        present = [key for key in (SHARED, TARGET, SOURCE, HEAD) if key in stored] or [SHARED]
        return Embeddings(
            TiedEmbeddings.ALL,
            {"output.weight": Origin(present[0])},
            dict.fromkeys(present[1:], present[0]),
        )
    source = SOURCE if SOURCE in stored or not shared else SHARED
    target = TARGET if TARGET in stored or not shared else SHARED
    unused = (SHARED,) if SHARED not in (source, target) else ()
    if tied_head:
        return Embeddings(
            TiedEmbeddings.DECODER,
            {"output.weight": Origin(target), "source_embedding.token.weight": Origin(source)},
            {HEAD: target},
            unused,
        )
    return Embeddings(
        TiedEmbeddings.NONE,
        {
            "output.weight": Origin(HEAD),
            "source_embedding.token.weight": Origin(source),
            "target_embedding.token.weight": Origin(target),
        },
        unused=unused,
    )


def make_config(
    directory: Directory, stored: Mapping[str, Tensor], *, tokenizer: Tokenizer, tied: TiedEmbeddings, **family: Any
) -> TransformerConfig:
    """The shape of a model, its sizes from config.json.

    Args:
        directory: what is imported.
        stored: its tensors.
        tokenizer: gives the unknown token.
        tied: as ``find_embeddings`` says.
        family: fields that the family decides.

    Raises:
        CheckpointError: config.json describes a model that our Transformer cannot be.
    """
    config, generation = directory.config, directory.generation
    for name in ("attention_heads", "ffn_dim"):
        if config.integer(f"encoder_{name}") != config.integer(f"decoder_{name}"):
            raise config.fault(f"decoder_{name}", f"encoder_{name} = {config.integer(f'encoder_{name}')}")
    activation = config.text("activation_function", "gelu")
    if activation not in _ACTIVATIONS:
        raise config.fault("activation_function", f"one of {', '.join(_ACTIVATIONS)}")
    vocab_size = config.integer("vocab_size")
    try:
        return TransformerConfig(
            **{
                "source_vocab_size": vocab_size,
                "target_vocab_size": vocab_size,
                "d_model": config.integer("d_model"),
                "heads": config.integer("encoder_attention_heads"),
                "encoder_layers": config.integer("encoder_layers"),
                "decoder_layers": config.integer("decoder_layers"),
                "ffn_dim": config.integer("encoder_ffn_dim"),
                "dropout": config.number("dropout", 0.1),
                "activation": _ACTIVATIONS[activation],
                "tied_embeddings": tied,
                "output_bias": LOGITS_BIAS in stored,
                "max_positions": config.integer("max_position_embeddings"),
                "pad_id": generation.pad_id,
                "unk_id": tokenizer.unk_id,
                "start_id": generation.start_id,
                "eos_id": generation.eos_id,
                "suppressed": generation.suppressed,
                "suppression": generation.suppression,
                **family,
            }
        )
    except ConfigError as error:
        raise CheckpointError(f"{config.where}: {error}") from error


def assemble(
    directory: Directory,
    stored: Mapping[str, Tensor],
    *,
    config: TransformerConfig,
    origins: Mapping[str, Origin],
    embeddings: Embeddings,
    tables: Mapping[str, Tensor] | None = None,
) -> Transformer:
    """Build the model and fill it, every tensor of the file accounted for.

    Args:
        directory: what is imported.
        stored: its tensors.
        config: the model's shape.
        origins: where our parameters stand, those of layers and embeddings excepted.
        embeddings: as ``find_embeddings`` found them.
        tables: what a stored table of fixed positions must hold, by its name in the file.

    Raises:
        CheckpointError: a tensor is missing, unexpected or misshapen, or contradicts another; all are listed.
    """
    check_size(config, stored, where=str(directory.path))
    model = Transformer(config)
    places = {**layer_origins(config), **embeddings.origins, **origins}
    if config.output_bias:
        places["output.bias"] = Origin(LOGITS_BIAS, row=True)
    copy_weights(
        model,
        stored,
        where=str(directory.path),
        origins=places,
        passed_over=(*embeddings.unused, *_VERSIONS),
        copies=embeddings.copies,
        tables=tables,
    )
    return model.eval()


def finish(
    directory: Directory,
    model: Transformer,
    tokenizer: Tokenizer,
    *,
    naming: Naming,
    sources: Languages,
    targets: Languages,
) -> Checkpoint:
    """Hold model and tokenizer against each other and name the model.

    Args:
        directory: what is imported.
        model: its weights, as ``assemble`` placed them.
        tokenizer: its tokenizer.
        naming: what the user says of the model; beats what its files say.
        sources: languages that its files name.
        targets: likewise.

    Raises:
        CheckpointError: the tokenizer gives ids that the model has no embedding for, or another end token; or a name
            or language is wrong or missing.
    """
    check_vocabulary(tokenizer, model.config, where=str(directory.path))
    if tokenizer.eos_id != model.config.eos_id:
        raise CheckpointError(
            f"{directory.path}: eos_token_id: got {model.config.eos_id}, wanted the tokenizer's {tokenizer.eos_id}"
        )
    card = make_card(
        naming,
        fallback_name=directory.config.text("_name_or_path", "") or directory.path.resolve().name,
        sources=sources,
        targets=targets,
        decoding=directory.generation.decoding,
    )
    return Checkpoint(model, tokenizer, card)


def token_languages(tokenizer: Tokenizer) -> Languages:
    """Languages of a side on which each has a token; BART's English models have none."""
    codes = tuple(sorted(tokenizer.language_ids))
    return Languages(named=codes, closed=bool(codes), aliases=tokenizer.language_aliases)


def target_languages(directory: Directory, tokenizer: Tokenizer) -> Languages:
    """Target languages of a model whose outputs begin with their language.

    All of them or, where ``forced_bos_token_id`` names one, that one alone: the model was tuned for it.

    Raises:
        CheckpointError: it names a token that is no language.
    """
    languages, forced = token_languages(tokenizer), directory.generation.forced_ids
    if not languages.named or not forced:
        return languages
    tuned = tuple(code for code, token in tokenizer.language_ids.items() if token == forced[0])
    if not tuned:
        raise CheckpointError(f"{directory.path}: forced_bos_token_id: got {forced[0]}, wanted a language's token")
    return replace(languages, named=tuned)
