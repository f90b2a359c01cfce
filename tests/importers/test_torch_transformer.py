"""A plain state_dict of torch.nn.Transformer, imported, gives the same logits; so does one of our own."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from model.checkpoint import CheckpointError, load_checkpoint
from model.config import Positions, TransformerConfig
from model.importers import Naming, import_checkpoint
from model.tokenizer import TokenizerError
from model.transformer import Transformer, sinusoidal_positions
from tests.importers.hugging import piece_model

VOCAB, D_MODEL = 97, 32
SIZES = {
    "source_vocab_size": VOCAB,
    "target_vocab_size": VOCAB,
    "d_model": D_MODEL,
    "heads": 4,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "ffn_dim": 48,
    "max_positions": 64,
    "tied_embeddings": "none",
    "output_bias": True,
    "final_norm": True,
}


class PaperModel(nn.Module):
    """torch.nn.Transformer with embeddings and a generator, as tutorials write it."""

    def __init__(self, *, activation: str, norm_first: bool, bias: bool) -> None:
        super().__init__()
        self.src_emb = nn.Embedding(VOCAB, D_MODEL)
        self.tgt_emb = nn.Embedding(VOCAB, D_MODEL)
        self.transformer = nn.Transformer(
            D_MODEL,
            4,
            2,
            3,
            48,
            dropout=0.0,
            activation=activation,
            norm_first=norm_first,
            bias=bias,
            batch_first=True,
        )
        self.generator = nn.Linear(D_MODEL, VOCAB)
        table = sinusoidal_positions(Positions.SINUSOIDAL, first=0, count=64, d_model=D_MODEL)
        self.register_buffer("pos_table", table)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        def embed(embedding: nn.Embedding, tokens: Tensor) -> Tensor:
            table: Any = self.pos_table
            return embedding(tokens) * math.sqrt(D_MODEL) + table[: tokens.shape[1]]  # type: ignore[no-any-return]

        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        out = self.transformer(embed(self.src_emb, source), embed(self.tgt_emb, target), tgt_mask=mask)
        return self.generator(out)  # type: ignore[no-any-return]


def write(directory: Path, state: dict[str, Any], sizes: dict[str, Any], /, **fields: Any) -> Path:
    """A directory as the importer reads it."""
    directory.mkdir()
    torch.save(state, directory / "model.pt")
    (directory / "spm.model").write_bytes(piece_model("unigram", 90))
    config = {
        "name": "paper",
        "source_languages": ["en"],
        "target_languages": ["de"],
        "transformer": {**SIZES, **sizes},
        "weights": "model.pt",
        "tokenizer": {"source": "spm.model"},
        **fields,
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory


KEYS = {
    "source_embedding": "src_emb.weight",
    "target_embedding": "tgt_emb.weight",
    "output": "generator.",
}


def drawn(**arguments: Any) -> PaperModel:
    torch.manual_seed(3)
    model = PaperModel(**{"activation": "relu", "norm_first": False, "bias": True, **arguments}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")  # torch's word on its own fast path
@pytest.mark.parametrize(
    ("arguments", "transformer", "fields"),
    [
        ({}, {}, {}),
        ({"norm_first": True, "activation": "gelu"}, {"norm": "pre", "activation": "gelu"}, {}),
        ({"bias": False}, {}, {"bias": False}),
    ],
    ids=["post-relu", "pre-gelu", "without-biases"],
)
def test_the_logits_are_those_of_torch(
    arguments: dict[str, Any], transformer: dict[str, Any], fields: dict[str, Any], tmp_path: Path
) -> None:
    theirs = drawn(**arguments)
    directory = write(tmp_path / "model", theirs.state_dict(), transformer, keys=KEYS, ignored=["pos_table"], **fields)
    import_checkpoint("torch", directory, out=tmp_path / "out", naming=Naming())
    ours = load_checkpoint(tmp_path / "out")
    source, target = torch.randint(4, VOCAB, (3, 7)), torch.randint(4, VOCAB, (3, 5))
    with torch.no_grad():
        wanted = theirs(source, target)
        got = ours.model(source, target, source_mask=torch.ones_like(source, dtype=torch.bool))
    assert float((got - wanted).abs().max()) < 1e-5
    assert ours.card.name == "paper"
    assert ours.tokenizer.encode("sale")[-1] == 3


def test_a_checkpoint_of_a_training_loop_is_entered_by_name(tmp_path: Path) -> None:
    saved = {"epoch": 7, "state": {"net": drawn().state_dict()}}
    plain = write(tmp_path / "plain", saved, {}, keys=KEYS, ignored=["pos_table"])
    with pytest.raises(
        CheckpointError, match=r'model\.pt: got epoch, state, wanted tensors by name; name the .*"entry"'
    ):
        import_checkpoint("torch", plain, out=tmp_path / "out", naming=Naming())
    entered = write(tmp_path / "entered", saved, {}, keys=KEYS, ignored=["pos_table"], entry="state.net")
    import_checkpoint("torch", entered, out=tmp_path / "out", naming=Naming(name="other"))
    assert load_checkpoint(tmp_path / "out").card.name == "other"


@pytest.mark.parametrize("tied", ["all", "decoder", "none"])
def test_our_own_names_with_tied_matrices_under_all_their_names(tied: str, tmp_path: Path) -> None:
    torch.manual_seed(4)
    fields = {**SIZES, "tied_embeddings": tied, "output_bias": False, "positions": "learned"}
    model = Transformer(TransformerConfig.from_dict(fields))
    model.initialise()
    directory = write(tmp_path / "model", {}, fields, naming="dragoman", weights="model.safetensors")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(state, directory / "model.safetensors")
    import_checkpoint("torch", directory, out=tmp_path / "out", naming=Naming())
    imported = load_checkpoint(tmp_path / "out").model.state_dict()
    assert all(torch.equal(imported[name], tensor) for name, tensor in state.items())

    if tied != "none":
        state["target_embedding.token.weight"][5, 5] += 1.0
        save_file(state, directory / "model.safetensors")
        with pytest.raises(CheckpointError, match=r"got values of its own, wanted those of output\.weight"):
            import_checkpoint("torch", directory, out=tmp_path / "again", naming=Naming())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight": "model.pt"}, "unknown field weight"),
        ({"naming": "jax"}, "naming: got 'jax', wanted torch or dragoman"),
        ({"weights": "../model.pt"}, r"weights: got '\.\./model\.pt', wanted the name of a file beside config\.json"),
        ({"weights": "other.pt"}, r"other\.pt: No such file"),
        ({"keys": {"generator": "g."}}, "keys: unknown field generator"),
        ({"transformer": {**SIZES, "heads": 5}}, "transformer: d_model: got 32, wanted a multiple of heads = 5"),
        ({"transformer": {**SIZES, "final_norm": False}}, r"unexpected transformer\.encoder\.norm\.weight \[32\]"),
        ({"transformer": {**SIZES, "encoder_layers": 3}}, r"missing transformer\.encoder\.layers\.2\.linear1\.bias"),
        ({"target_languages": None}, "target languages: got none in the model's files, wanted --target-languages"),
        ({"entry": "model"}, r"entry: got 'model', wanted what model\.pt holds: pos_table"),
    ],
)
def test_faults_of_the_config_name_got_and_wanted(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    directory = write(
        tmp_path / "model", drawn().state_dict(), {}, **{"keys": KEYS, "ignored": ["pos_table"], **fields}
    )
    with pytest.raises(CheckpointError, match=message):
        import_checkpoint("torch", directory, out=tmp_path / "out", naming=Naming())
    assert not (tmp_path / "out").exists()


def test_a_garbage_sentencepiece_model_is_named(tmp_path: Path) -> None:
    directory = write(tmp_path / "model", drawn().state_dict(), {}, keys=KEYS, ignored=["pos_table"])
    (directory / "spm.model").write_bytes(b"garbage")
    with pytest.raises(TokenizerError, match=r"spm\.model: not a SentencePiece model"):
        import_checkpoint("torch", directory, out=tmp_path / "out", naming=Naming())
