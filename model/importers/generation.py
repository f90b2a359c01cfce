"""Hugging Face's generation_config.json: what of it becomes part of the model, and what stands against an import.

A setting that changes what generate() finds is either carried over exactly or refused, never passed over.

Source: transformers 5.23, generation/configuration_utils.py and generation/logits_process.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.config import Suppression
from model.importers.settings import Settings
from model.weight_files import CheckpointError

_FILE = "generation_config.json"
# Settings that change the output and are not known to our searches, each with the value that changes nothing.
_NEUTRAL: dict[str, Any] = {
    "begin_suppress_tokens": None,
    "constraints": None,
    "diversity_penalty": 0.0,
    "do_sample": False,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "exponential_decay_length_penalty": None,
    "force_words_ids": None,
    "forced_decoder_ids": None,
    "guidance_scale": 1.0,
    "min_length": 0,
    "min_new_tokens": 0,
    "no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "penalty_alpha": 0.0,
    "remove_invalid_values": False,
    "repetition_penalty": 1.0,
    "sequence_bias": None,
    "stop_strings": None,
}


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How generate() searches with this model.

    Attributes:
        start_id: first input token of the decoder.
        eos_id: end token.
        pad_id: padding token.
        forced_ids: output tokens that every output begins with, whatever the languages.
        suppressed: tokens that are never selected.
        suppression: whether those count in the softmax.
        decoding: defaults of the search, as ModelCard.decoding.
    """

    start_id: int
    eos_id: int
    pad_id: int
    forced_ids: tuple[int, ...]
    suppressed: tuple[int, ...]
    suppression: Suppression
    decoding: dict[str, Any]


def read_generation(directory: Path, config: Settings) -> Generation:
    """Read ``generation_config.json`` or, where there is none, the same settings of config.json.

    Args:
        directory: a Hugging Face model directory.
        config: its config.json, which also gives the special tokens that the other file lacks.

    Raises:
        CheckpointError: a setting is malformed, or changes outputs in a way that our searches do not know.
    """
    own = Settings.read(directory / _FILE, optional=True)
    settings = own if (directory / _FILE).is_file() else config
    for name, neutral in sorted(_NEUTRAL.items()):
        if settings.raw(name) not in (None, neutral, []) and not _harmless(name, settings):
            unknown = f"{neutral!r}" if neutral is not None else "none"
            raise settings.fault(name, f"{unknown}: no search here does the same, and it would change translations")
    eos_id = _token("eos_token_id", settings, config)
    forced_end = _forced_end(settings, eos_id=eos_id)
    forced = settings.raw("forced_bos_token_id")
    suppressed = _suppressed(settings, eos_id=eos_id)
    forced_ids = () if forced is None else (settings.integer("forced_bos_token_id"),)
    if set(forced_ids) & set(suppressed):
        raise settings.fault("forced_bos_token_id", "a token that bad_words_ids does not forbid")
    return Generation(
        start_id=_token("decoder_start_token_id", settings, config),
        eos_id=eos_id,
        pad_id=_token("pad_token_id", settings, config),
        forced_ids=forced_ids,
        suppressed=suppressed,
        suppression=(
            Suppression.BEFORE_SOFTMAX if settings.flag("renormalize_logits", False) else Suppression.AFTER_SOFTMAX
        ),
        decoding=_decoding(settings, forced_end=forced_end),
    )


def _harmless(name: str, settings: Settings) -> bool:
    """Whether a setting has no effect although it is set."""
    # min_length counts the start token, and nothing ends before its first step.
    return name == "min_length" and settings.integer("min_length") <= 1


def _token(name: str, settings: Settings, config: Settings) -> int:
    holder = settings if name in settings else config
    value = holder.raw(name)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise holder.fault(name, "one token id")
    return value


def _forced_end(settings: Settings, *, eos_id: int) -> bool:
    forced = settings.raw("forced_eos_token_id")
    if forced is None:
        return False
    if forced not in (eos_id, [eos_id]):
        raise settings.fault("forced_eos_token_id", f"the end token {eos_id}, or none")
    return True


def _suppressed(settings: Settings, *, eos_id: int) -> tuple[int, ...]:
    """Tokens of bad_words_ids (sequences of one token each) and suppress_tokens."""
    sequences = settings.raw("bad_words_ids") or []
    single = settings.raw("suppress_tokens") or []
    try:
        tokens = [token for sequence in sequences for token in sequence] + [*single]
        fits = all(len(sequence) == 1 for sequence in sequences)
        fits = fits and all(isinstance(token, int) and token >= 0 for token in tokens)
    except TypeError:
        fits = False
    if not fits:
        raise settings.fault("bad_words_ids", "a list of lists of one token id each")
    # generate() itself drops the end token from its bad words.
    return tuple(sorted({token for token in tokens if token != eos_id}))


def _decoding(settings: Settings, *, forced_end: bool) -> dict[str, Any]:
    early_stopping = settings.raw("early_stopping")
    if early_stopping not in (None, True, False):
        raise settings.fault("early_stopping", "true or false")
    decoding: dict[str, Any] = {
        "beam_size": settings.integer("num_beams", 1),
        "length_penalty": settings.number("length_penalty", 1.0),
        "length_penalty_type": "POWER",
        "early_stopping": bool(early_stopping),
        "forced_end": forced_end,
    }
    if "max_new_tokens" in settings:
        decoding["max_output_tokens"] = settings.integer("max_new_tokens")
    elif "max_length" in settings:
        # max_length counts the start token.
        decoding["max_output_tokens"] = settings.integer("max_length") - 1
    if decoding["beam_size"] < 1:
        raise settings.fault("num_beams", "at least 1")
    if not 0.0 <= decoding["length_penalty"] <= 10.0:
        raise settings.fault("length_penalty", "0 to 10")
    if decoding.get("max_output_tokens", 1) < 1:
        raise CheckpointError(f"{settings.where}: max_length: got no room for a token, wanted at least 2")
    return decoding
