"""Results to wire messages."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from dragoman.v1 import translation_pb2 as pb
from export.bundle import Exam
from server.decoding.sequence import FinishReason, Hypothesis, LengthPenalty, Outcome, Result, SearchOptions
from server.models import KnownModel, ModelState, ServedModel
from server.service.errors import Internal, to_status
from server.service.requests import Job, Source

_FINISH_REASONS = {
    FinishReason.END_TOKEN: pb.FINISH_REASON_END_TOKEN,
    FinishReason.MAX_TOKENS: pb.FINISH_REASON_MAX_TOKENS,
}
_PENALTY_TYPES = {
    LengthPenalty.GNMT: pb.LENGTH_PENALTY_TYPE_GNMT,
    LengthPenalty.POWER: pb.LENGTH_PENALTY_TYPE_POWER,
}
_STATES = {
    ModelState.LOADING: pb.MODEL_STATE_LOADING,
    ModelState.SERVING: pb.MODEL_STATE_SERVING,
    ModelState.DRAINING: pb.MODEL_STATE_DRAINING,
    ModelState.FAILED: pb.MODEL_STATE_FAILED,
}
_PRECISIONS = {
    "fp32": pb.PRECISION_FP32,
    "fp16": pb.PRECISION_FP16,
    "bf16": pb.PRECISION_BF16,
    "int8": pb.PRECISION_INT8,
}


def blank_translation() -> pb.Translation:
    """What a blank text gives; the model was not asked."""
    return pb.Translation(finish_reason=pb.FINISH_REASON_EMPTY_SOURCE)


def translation_of(job: Job, source: Source, result: Result) -> pb.Translation:
    """One text's translation, or the status with which that text alone failed."""
    if result.outcome is not Outcome.FINISHED:
        return pb.Translation(source_token_count=len(source.tokens), status=to_status(Internal(model=job.model.name)))
    hypotheses = [_hypothesis(job, hypothesis) for hypothesis in result.hypotheses]
    best = hypotheses[0]
    translation = pb.Translation(
        text=best.text,
        finish_reason=best.finish_reason,
        source_token_count=len(source.tokens),
        output_token_count=best.output_token_count,
        hypotheses=hypotheses if job.options.num_hypotheses > 1 else (),
    )
    if best.HasField("score"):
        translation.score = best.score
    if best.finish_reason == pb.FINISH_REASON_MAX_TOKENS:
        translation.warnings.append(pb.TRANSLATION_WARNING_OUTPUT_TRUNCATED)
    if source.has_unknown:
        translation.warnings.append(pb.TRANSLATION_WARNING_UNKNOWN_CHARACTERS)
    return translation


def _hypothesis(job: Job, hypothesis: Hypothesis) -> pb.Hypothesis:
    return pb.Hypothesis(
        text=job.model.tokenizer.decode(hypothesis.tokens),
        score=hypothesis.score,
        finish_reason=_FINISH_REASONS[hypothesis.finish_reason],
        # Forced tokens are none of the text.
        output_token_count=len(hypothesis.tokens) - len(job.options.forced_tokens),
    )


def model_message(model: KnownModel) -> pb.Model:
    """A model as ListModels and GetModel tell it; of one that could not be loaded, what its manifest says."""
    manifest = model.manifest
    message = pb.Model(
        name=model.name,
        bundle_digest=model.digest,
        state=_STATES[model.state],
        source_language_codes=manifest.source_languages,
        target_language_codes=manifest.target_languages,
        architecture=manifest.architecture,
        parameter_count=manifest.parameter_count,
        license_note=manifest.license_note,
        detail=model.detail,
    )
    if isinstance(model, ServedModel):
        backend = model.backend  # looked up once: another one may take its place
        message.runner = backend.runner.name
        message.precision = _PRECISIONS[backend.runner.precision]
        message.limits.CopyFrom(pb.ModelLimits(**vars(model.limits)))
        message.default_decoding_config.CopyFrom(_decoding_config(model.defaults))
        if backend.exam is not None:
            message.certificate.CopyFrom(_certificate(backend.exam))
    return message


def _decoding_config(defaults: SearchOptions) -> pb.DecodingConfig:
    return pb.DecodingConfig(
        beam_size=defaults.beam_size,
        num_hypotheses=defaults.num_hypotheses,
        length_penalty=defaults.length_penalty,
        max_output_tokens=defaults.max_output_tokens,
        min_output_tokens=defaults.min_output_tokens,
        length_penalty_type=_PENALTY_TYPES[defaults.length_penalty_type],
        return_scores=defaults.return_scores,
    )


def _certificate(exam: Exam) -> pb.Certificate:
    verify_time = Timestamp()
    verify_time.FromJsonString(exam.verify_time)
    return pb.Certificate(
        passed=exam.passed,
        verify_time=verify_time,
        token_exact_rate=exam.token_exact_rate,
        max_log_prob_difference=exam.max_log_prob_difference,
        reference_bleu=exam.reference_bleu,
        bleu=exam.bleu,
        reference_chrf=exam.reference_chrf,
        chrf=exam.chrf,
    )
