"""The Transformer's two forms agree with each other and with PyTorch's own layers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from model.attention import MultiHeadAttention
from model.config import ConfigError, Positions, TransformerConfig
from model.dropout import ByteDropout
from model.transformer import Transformer, sinusoidal_positions

VARIANTS: list[dict[str, Any]] = [
    {},
    {"norm": "pre"},
    {"activation": "gelu", "positions": "learned"},
    {"activation": "swish", "scale_embeddings": False, "tied_embeddings": "all"},
    {"tied_embeddings": "decoder", "source_vocab_size": 29, "heads": 1, "decoder_layers": 1},
    {"norm": "pre", "positions": "learned", "heads": 8, "encoder_layers": 3},
    {"positions": "learned", "embedding_norm": True, "output_bias": True},
    {"norm": "pre", "final_norm": False, "positions": "sinusoidal_fairseq", "position_offset": 2},
    {"norm": "post", "final_norm": True, "positions": "sinusoidal_halves"},
]


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_steps_over_a_cache_equal_the_full_sequence(
    fields: dict[str, Any], make_model: Callable[..., Transformer]
) -> None:
    model = make_model(**fields)
    source = torch.tensor([[5, 6, 7, 8, 3], [9, 10, 3, 0, 0]])
    source_mask = source != 0
    target = torch.tensor([[2, 11, 12, 13, 14, 15], [2, 21, 22, 23, 24, 25]])
    with torch.no_grad():
        wanted = model(source, target, source_mask=source_mask)
        cross = model.cross_memory(model.encode(source, source_mask=source_mask))
        cache = model.new_cache(rows=2, capacity=10)
        for position in range(target.shape[1]):
            got = model.step(
                target[:, position], cache, cross, positions=torch.full((2,), position), source_mask=source_mask
            )
            assert torch.allclose(got, wanted[:, position], atol=1e-5), (got - wanted[:, position]).abs().max()


def test_padding_and_neighbours_do_not_change_a_row(make_model: Callable[..., Transformer]) -> None:
    model = make_model()
    alone = torch.tensor([[9, 10, 3]])
    padded = torch.tensor([[9, 10, 3, 0, 0, 0], [5, 6, 7, 8, 9, 3]])
    target = torch.tensor([[2, 11, 12]])
    with torch.no_grad():
        wanted = model(alone, target, source_mask=alone != 0)[0]
        got = model(padded, target.expand(2, -1), source_mask=padded != 0)[0]
    assert torch.allclose(got, wanted, atol=1e-5)


def test_attention_equals_torch_multi_head_attention() -> None:
    torch.manual_seed(0)
    ours = MultiHeadAttention(d_model=12, heads=3)
    theirs = torch.nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
        theirs.out_proj.load_state_dict(ours.output.state_dict())
    x, memory = torch.randn(2, 4, 12), torch.randn(2, 5, 12)
    wanted, _ = theirs(x, memory, memory, need_weights=False)
    assert torch.allclose(ours(x, ours.project_memory(memory)), wanted, atol=1e-6)


def test_tied_matrices_are_one_parameter(make_model: Callable[..., Transformer]) -> None:
    for tied, matrices in (("all", 1), ("decoder", 2), ("none", 3)):
        model = make_model(tied_embeddings=tied)
        weights = (model.source_embedding.token.weight, model.target_embedding.token.weight, model.output.weight)
        assert len({id(weight) for weight in weights}) == matrices


def test_sinusoids_are_those_of_the_paper() -> None:
    table = sinusoidal_positions(Positions.SINUSOIDAL, first=0, count=4, d_model=6)
    assert table[3, 2].item() == pytest.approx(torch.sin(torch.tensor(3 / 10000 ** (2 / 6))).item(), abs=1e-6)
    assert table[3, 3].item() == pytest.approx(torch.cos(torch.tensor(3 / 10000 ** (2 / 6))).item(), abs=1e-6)


def test_sinusoids_in_halves_are_the_same_in_another_order() -> None:
    paper = sinusoidal_positions(Positions.SINUSOIDAL, first=0, count=40, d_model=8)
    halves = sinusoidal_positions(Positions.SINUSOIDAL_HALVES, first=0, count=40, d_model=8)
    assert torch.equal(halves, torch.cat((paper[:, 0::2], paper[:, 1::2]), dim=1))


def test_fairseq_sinusoids_start_where_they_are_told_and_reach_further() -> None:
    table = sinusoidal_positions(Positions.SINUSOIDAL_FAIRSEQ, first=2, count=3, d_model=8)
    assert table[1, 0].item() == pytest.approx(math.sin(3.0), abs=1e-6)
    assert table[1, 3].item() == pytest.approx(math.sin(3.0 / 10000), abs=1e-8)
    assert table[1, 7].item() == pytest.approx(math.cos(3.0 / 10000), abs=1e-6)


def test_byte_dropout_keeps_rate_and_mean_and_is_off_in_eval() -> None:
    torch.manual_seed(0)
    dropout = ByteDropout(0.25)
    x = torch.ones(401, 503)
    dropped = dropout(x)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.01)
    assert torch.equal(dropout.eval()(x), x)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 5}, "d_model: got 512, wanted a multiple of heads = 5"),
        ({"activation": "tanh"}, "activation: got 'tanh', wanted one of relu, gelu, swish"),
        ({"target_vocab_size": 9}, "wanted equal sizes"),
        ({"dropout": 1.0}, "dropout: got 1.0"),
        ({"layers": 3}, "unknown field layers"),
        ({"encoder_layers": 0}, "encoder_layers: got 0"),
        ({"eos_id": 10}, "eos_id: got 10, wanted 0 <= id < 10"),
        ({"suppressed": [1, 3]}, "suppressed: got (1, 3), wanted ids below 10, not the end token 3"),
        ({"suppressed": "pad"}, "suppressed: got 'pad', wanted a list of ids"),
        ({"positions": "learned", "position_offset": 2}, "position_offset: got 2, wanted 0 for learned positions"),
        ({"final_norm": "yes"}, "final_norm: got 'yes', wanted true or false"),
    ],
)
def test_bad_configurations_name_got_and_wanted(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        TransformerConfig.from_dict({"source_vocab_size": 10, "target_vocab_size": 10, **fields})
