"""A seeded model of a given size: its end token is barred, so that every output has the length that is asked for."""

from __future__ import annotations

import torch

from benchmarks.gpu.specs import END, MAX_OUTPUT_TOKENS, PAD, START, UNK, ModelSpec
from model.config import TiedEmbeddings, TransformerConfig
from model.transformer import Transformer

BARRED = -1e4
"""What stands in the end token's bias."""

_SEED = 1
_BIAS_DEVIATION = 0.05
_LOGIT_DEVIATION = 2.0  # about a trained model's


def config_of(spec: ModelSpec) -> TransformerConfig:
    """The configuration of a model of these sizes."""
    return TransformerConfig(
        source_vocab_size=spec.vocab,
        target_vocab_size=spec.vocab,
        d_model=spec.d_model,
        heads=spec.heads,
        encoder_layers=spec.layers,
        decoder_layers=spec.layers,
        ffn_dim=spec.ffn_dim,
        dropout=0.0,
        max_positions=4 * MAX_OUTPUT_TOKENS,
        tied_embeddings=TiedEmbeddings.NONE,
        output_bias=True,
        pad_id=PAD,
        unk_id=UNK,
        start_id=START,
        eos_id=END,
    )


@torch.no_grad()
def random_model(spec: ModelSpec) -> Transformer:
    """Draw the model; every weight is a float16 number, so that all precisions begin from the same ones."""
    torch.manual_seed(_SEED)
    model = Transformer(config_of(spec))
    model.initialise()
    model.output.weight.normal_(std=_LOGIT_DEVIATION * spec.d_model**-0.5)
    for layer in model.decoder_layers:  # so that a residual sum still knows its token after all layers
        for last in (layer.self_attention.output, layer.cross_attention.output, layer.feed_forward.outer):
            last.weight.mul_((3 * spec.layers) ** -0.5)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter) * _BIAS_DEVIATION)
        parameter.copy_(parameter.half().float())
    model.output.bias[END] = BARRED
    return model.eval()
