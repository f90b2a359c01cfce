"""Requests to jobs: finds the model, checks every field against its limits, tokenises. Runs off the event loop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dragoman.v1 import translation_pb2 as pb
from server.decoding.sequence import LengthPenalty, SearchOptions
from server.models import KnownModel, Limits, ModelState, Registry, ServedModel
from server.service.errors import (
    Internal,
    InvalidRequest,
    Loading,
    ModelNotFound,
    NotCertified,
    Violation,
    quote,
)
from server.service.languages import SIDES, Languages, code_of, field_of, listed, match_languages

RETRY_AFTER_S = 1.0
"""What a client is told to wait for a server that is starting or leaving."""

_LARGEST_PENALTY = 10.0
_PENALTY_TYPES = {
    pb.LENGTH_PENALTY_TYPE_GNMT: LengthPenalty.GNMT,
    pb.LENGTH_PENALTY_TYPE_POWER: LengthPenalty.POWER,
}

TranslateRequest = pb.TranslateTextRequest | pb.StreamTranslateTextRequest


@dataclass(frozen=True)
class Source:
    """One text as the model reads it.

    Attributes:
        tokens: token ids, end token included; empty where the text is blank and the model is not asked.
        has_unknown: whether it holds characters that the tokenizer does not know.
    """

    tokens: Sequence[int]
    has_unknown: bool = False


@dataclass(frozen=True)
class Job:
    """One checked request."""

    model: ServedModel
    options: SearchOptions
    sources: Sequence[Source]


def read_request(request: TranslateRequest, registry: Registry) -> Job:
    """Check a request as far as that is possible before decoding, and tokenise its texts.

    Raises:
        ServiceError: the request cannot be served; all wrong fields are reported together.
    """
    model = check_serving(find_model(request, registry))
    violations: list[Violation] = []
    languages = match_languages(request, [model], violations).get(model)
    forced_tokens = model.tokenizer.forced_tokens(languages.target) if languages else ()
    options = _read_options(request.decoding_config, model, forced_tokens, violations)
    sources = _read_contents(request.contents, model, languages, violations)
    if violations:
        raise InvalidRequest(violations, model=model.name)
    return Job(model, options, sources)


def find_model(request: TranslateRequest, registry: Registry) -> KnownModel:
    """The model that a request names, or else the only one that serves its languages.

    Raises:
        ServiceError: there is none, or several.
    """
    if request.model:
        return find_named(request.model, registry)
    check_loaded(registry)
    violations: list[Violation] = []
    matching = match_languages(request, registry.all(), violations)
    # A model that is out of order does not make the choice ambiguous, and is named only where it is the only one.
    able = {model: codes for model, codes in matching.items() if model.state is not ModelState.FAILED} or matching
    if len(able) > 1:
        violations += _undecided(request, able)
    if violations:
        raise InvalidRequest(violations)
    (only,) = able
    return only


def _undecided(request: TranslateRequest, models: dict[KnownModel, Languages]) -> list[Violation]:
    """What a request leaves open that several models serve: a language, or else the model."""
    names = listed(model.name for model in models)
    open_codes = {
        side: {getattr(languages, side) for languages in models.values()}
        for side in SIDES
        if not code_of(request, side)
    }
    return [
        Violation(field_of(side), f"got none, wanted one of {listed(codes)}, or as model one of {names}")
        for side, codes in open_codes.items()
        if len(codes) > 1
    ] or [Violation("model", f"got none, wanted one of {names}: they serve these languages")]


def find_named(name: str, registry: Registry) -> KnownModel:
    """The model called ``name``.

    Raises:
        ModelNotFound: there is none.
        Loading: there may be one soon.
    """
    model = registry.get(name)
    if model is None:
        check_loaded(registry)
        raise ModelNotFound(f"model: got {quote(name)}, wanted one of {', '.join(registry.names)}")
    return model


def check_loaded(registry: Registry) -> None:
    """Raise Loading while models are still to come."""
    if registry.loading:
        raise Loading("the server is loading its models", retry_after_s=RETRY_AFTER_S)


def check_serving(model: KnownModel) -> ServedModel:
    """Hold that a model takes work. A draining one does: calls that came before are still being read.

    Raises:
        ServiceError: it does not.
    """
    match model.state:
        case ModelState.LOADING:
            raise Loading(f"model {model.name} is loading", model=model.name, retry_after_s=RETRY_AFTER_S)
        case ModelState.FAILED if model.certified:
            raise Internal(model=model.name)
        case ModelState.FAILED:
            raise NotCertified(f"model {model.name} has no valid certificate", model=model.name)
    assert isinstance(model, ServedModel), "it serves, so it is loaded"
    return model


def _read_options(
    config: pb.DecodingConfig, model: ServedModel, forced_tokens: tuple[int, ...], violations: list[Violation]
) -> SearchOptions:
    """The options of a search, zero and unset fields replaced by the model's defaults."""
    defaults, limits = model.defaults, model.limits

    def number(name: str, *, unset: int, least: int, most: int, note: str = "") -> int:
        got: int = getattr(config, name)
        if got == 0:
            return unset
        if not least <= got <= most:
            violations.append(Violation(f"decoding_config.{name}", f"got {got}, wanted {least} to {most}{note}"))
            return unset
        return got

    beam_size = number("beam_size", unset=defaults.beam_size, least=1, most=limits.max_beam_size)
    max_output_tokens = number(
        "max_output_tokens",
        unset=defaults.max_output_tokens,
        least=len(forced_tokens) + 1,
        most=limits.max_output_tokens,
        note=f": {len(forced_tokens)} before the first of the text" if forced_tokens else "",
    )
    options = replace(
        defaults,
        beam_size=beam_size,
        num_hypotheses=number("num_hypotheses", unset=1, least=1, most=beam_size, note=", which is beam_size"),
        max_output_tokens=max_output_tokens,
        length_penalty=_read_penalty(config, defaults, violations),
        length_penalty_type=_read_penalty_type(config, defaults, violations),
        return_scores=config.return_scores,
        forced_tokens=forced_tokens,
    )
    most = options.longest_output
    what = "what max_output_tokens leaves room for" if options.forced_end else "which is max_output_tokens"
    return replace(
        options, min_output_tokens=number("min_output_tokens", unset=0, least=0, most=most, note=f", {what}")
    )


def _read_penalty(config: pb.DecodingConfig, defaults: SearchOptions, violations: list[Violation]) -> float:
    if not config.HasField("length_penalty"):
        return defaults.length_penalty
    got = config.length_penalty
    if math.isnan(got) or not 0.0 <= got <= _LARGEST_PENALTY:
        violations.append(Violation("decoding_config.length_penalty", f"got {got:g}, wanted 0 to {_LARGEST_PENALTY:g}"))
    return got


def _read_penalty_type(
    config: pb.DecodingConfig, defaults: SearchOptions, violations: list[Violation]
) -> LengthPenalty:
    got = config.length_penalty_type
    if got == pb.LENGTH_PENALTY_TYPE_UNSPECIFIED:
        return defaults.length_penalty_type
    if got not in _PENALTY_TYPES:
        wanted = ", ".join(f"{number} ({penalty.value})" for number, penalty in _PENALTY_TYPES.items())
        violations.append(Violation("decoding_config.length_penalty_type", f"got {got}, wanted one of {wanted}"))
        return defaults.length_penalty_type
    return _PENALTY_TYPES[got]


def _read_contents(
    contents: Sequence[str], model: ServedModel, languages: Languages | None, violations: list[Violation]
) -> list[Source]:
    limits = model.limits
    if not 1 <= len(contents) <= limits.max_contents:
        violations.append(Violation("contents", f"got {len(contents)} texts, wanted 1 to {limits.max_contents}"))
        return []
    # What stands around a text. Where the languages are wrong, no text is tokenised.
    frame = len(_encode("", model, languages)) if languages else 0
    sources = []
    for index, text in enumerate(contents):
        if complaint := _check_bytes(text, limits):
            violations.append(Violation(f"contents[{index}]", complaint))
        elif languages and not violations:
            # Once anything is wrong, the rest is only checked for what costs nothing.
            source = _tokenise(text, model, languages, frame=frame)
            if len(source.tokens) > limits.max_source_tokens:
                got = f"got {len(source.tokens)} tokens, end token counted"
                violations.append(Violation(f"contents[{index}]", f"{got}, wanted at most {limits.max_source_tokens}"))
            sources.append(source)
    return sources


def _check_bytes(text: str, limits: Limits) -> str:
    got = len(text.encode())
    if got <= limits.max_source_bytes:
        return ""
    return f"got {got} bytes of UTF-8, wanted at most {limits.max_source_bytes}"


def _tokenise(text: str, model: ServedModel, languages: Languages, *, frame: int) -> Source:
    if not text.strip():
        return Source(())
    tokens = _encode(text, model, languages)
    # Text of nothing but characters that normalisation drops is blank too: only its frame is left.
    return Source(tokens, has_unknown=model.manifest.unk_id in tokens) if len(tokens) > frame else Source(())


def _encode(text: str, model: ServedModel, languages: Languages) -> list[int]:
    return model.tokenizer.encode(text, source_language=languages.source, target_language=languages.target)
