"""The trainer: fits a recipe to a data directory, saves as it goes and resumes exactly."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from model.checkpoint import Checkpoint, save_checkpoint
from model.config import ConfigError, TransformerConfig
from model.data import Batch, ParallelText, TokenisedCorpus, read_parallel
from model.tokenizer import Tokenizer, train_tokenizer
from model.training.interrupt import held_interrupt
from model.training.log import TrainingLog, plot_log
from model.training.recipe import Recipe
from model.training.schedule import learning_rate
from model.training.validation import validate
from model.transformer import Transformer
from model.weight_files import read_weights
from model.weights import copy_weights, unique_parameters

_STATE_FILE = "state.safetensors"
_SAVE_EVERY_S = 120.0
_LOG_EVERY = 20


@dataclass
class Progress:
    """Where a training stands; with the tensors beside it, all that a resume needs."""

    update: int = 0
    epoch: int = 0
    batch: int = 0
    best_bleu: float = -1.0
    stale_validations: int = 0


class Trainer:
    """Fits one recipe; everything it makes lies under ``out``.

    ``out`` itself becomes the final checkpoint; ``out/training`` holds the resumable state, the checkpoints
    that are averaged, the log and its plot.
    """

    def __init__(self, recipe: Recipe, *, data: Path, out: Path) -> None:
        self._recipe = recipe
        self._out = out
        self._work = out / "training"
        self._work.mkdir(parents=True, exist_ok=True)
        languages = {
            "source_language": recipe.card.source_languages[0],
            "target_language": recipe.card.target_languages[0],
        }
        train_text = read_parallel(data, split="train", **languages)
        validation_text = read_parallel(data, split="val", **languages)
        self._tokenizer = self._load_or_train_tokenizer(train_text)
        settings = recipe.optimisation
        self._corpus = TokenisedCorpus(
            train_text, self._tokenizer, batch_tokens=settings.batch_tokens, max_length=settings.max_length
        )
        self._references = validation_text.target
        self._validation = TokenisedCorpus(
            validation_text, self._tokenizer, batch_tokens=settings.batch_tokens, max_length=1_000_000
        )
        _check_positions(recipe, self._corpus, self._validation)
        torch.manual_seed(settings.seed)
        vocab_size = self._tokenizer.vocab_size
        self._model = Transformer(
            TransformerConfig.from_dict(
                {"source_vocab_size": vocab_size, "target_vocab_size": vocab_size, **recipe.transformer}
            )
        )
        self._model.initialise()
        self._optimizer = torch.optim.Adam(self._model.parameters(), betas=(0.9, 0.98), eps=1e-9, fused=True)
        self._progress = Progress()
        self._state = self._work / _STATE_FILE
        if self._state.exists():
            self._restore()
        self._log = TrainingLog(self._work, update=self._progress.update)

    def run(self) -> None:
        """Train to the end of the recipe, then average and write the final checkpoint.

        An interrupt (Ctrl-C) waits for the end of an update and its validation, saves the state and is raised; a
        second one is raised at once, and the state is what was saved before.
        """
        with held_interrupt() as interrupted:
            self._train(interrupted)
        self._finish()

    def _train(self, interrupted: Callable[[], bool]) -> None:
        settings, progress = self._recipe.optimisation, self._progress
        saved_at = time.monotonic()
        losses: deque[float] = deque(maxlen=_LOG_EVERY)
        with tqdm(total=settings.max_updates, initial=progress.update, unit="update", smoothing=0.05) as bar:
            while not self._done():
                for batch in self._corpus.batches(seed=settings.seed, epoch=progress.epoch, start=progress.batch):
                    losses.append(self._update(batch))
                    bar.update()
                    if progress.update % _LOG_EVERY == 0:
                        loss = sum(losses) / len(losses)
                        rate = self._optimizer.param_groups[0]["lr"]
                        self._log.write(update=progress.update, epoch=progress.epoch, loss=loss, learning_rate=rate)
                        bar.set_postfix(epoch=progress.epoch, loss=f"{loss:.3f}", bleu=f"{progress.best_bleu:.2f}")
                    if progress.update % settings.validate_every == 0:
                        self._validate()
                    if interrupted():
                        self._save()
                        raise KeyboardInterrupt
                    if self._done():
                        return
                    if time.monotonic() - saved_at > _SAVE_EVERY_S:
                        self._save()
                        saved_at = time.monotonic()
                progress.epoch += 1
                progress.batch = 0

    def _done(self) -> bool:
        settings, progress = self._recipe.optimisation, self._progress
        return progress.update >= settings.max_updates or progress.stale_validations >= settings.patience

    def _update(self, batch: Batch) -> float:
        settings, progress = self._recipe.optimisation, self._progress
        self._model.train()
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(
                progress.update + 1, peak=settings.peak_learning_rate, warmup_updates=settings.warmup_updates
            )
        real = batch.target_out != self._tokenizer.pad_id
        # many short sentences: plain matrix products are faster here than the flash kernel's backward pass
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16), sdpa_kernel(SDPBackend.MATH):
            encoded = self._model.encode(batch.source, source_mask=batch.source_mask)
            cross = self._model.cross_memory(encoded)
            states = self._model.decode(batch.target_in, cross, source_mask=batch.source_mask)
            logits = self._model.output(states[real])
        loss = functional.cross_entropy(
            logits.float(), batch.target_out[real], label_smoothing=settings.label_smoothing
        )
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), settings.clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        progress.update += 1
        progress.batch += 1
        return loss.item()

    def _validate(self) -> None:
        progress = self._progress
        result = validate(self._model, self._validation, self._tokenizer, self._references)
        self._log.write(
            update=progress.update,
            epoch=progress.epoch,
            validation_nll=round(result.nll, 4),
            validation_bleu=round(result.bleu, 2),
        )
        progress.stale_validations = 0 if result.bleu > progress.best_bleu else progress.stale_validations + 1
        progress.best_bleu = max(progress.best_bleu, result.bleu)
        save_file(_contiguous(unique_parameters(self._model)), self._snapshot(progress.update))
        for stale in self._snapshots()[: -self._recipe.optimisation.average_last]:
            stale.unlink()
        plot_log(self._work)
        self._save()

    def _finish(self) -> None:
        snapshots = self._snapshots()
        if not snapshots:
            save_file(_contiguous(unique_parameters(self._model)), self._snapshot(self._progress.update))
            snapshots = self._snapshots()
        average = average_snapshots(snapshots)
        averaged = self._work / "average.safetensors"
        save_file(average, averaged)
        copy_weights(self._model, read_weights(averaged), where=str(averaged))
        checkpoint = Checkpoint(self._model.eval(), self._tokenizer, self._recipe.card)
        dtype = getattr(torch, self._recipe.optimisation.checkpoint_dtype)
        save_checkpoint(self._out, checkpoint, dtype=dtype)

    def _load_or_train_tokenizer(self, text: ParallelText) -> Tokenizer:
        folder = self._work / "tokenizer"
        if not folder.exists():
            train_tokenizer(text.source + text.target, vocab_size=self._recipe.vocab_size).save(folder)
        return Tokenizer.load(folder)

    def _snapshot(self, update: int) -> Path:
        return self._work / f"update-{update:08d}.safetensors"

    def _snapshots(self) -> list[Path]:
        return sorted(self._work.glob("update-*.safetensors"))

    def _save(self) -> None:
        """Write the whole state as one file and rename it, so that a kill at any moment leaves a whole one."""
        names = {id(parameter): name for name, parameter in self._model.named_parameters()}
        tensors = {f"model.{name}": tensor for name, tensor in unique_parameters(self._model).items()}
        for parameter, moments in self._optimizer.state.items():
            tensors |= {f"adam.{names[id(parameter)]}.{key}": value for key, value in moments.items()}
        tensors["random"] = torch.get_rng_state()
        draft = self._state.with_suffix(".draft")
        fields = {"progress": asdict(self._progress), "transformer": self._model.config.to_dict()}
        save_file(_contiguous(tensors), draft, metadata={key: json.dumps(value) for key, value in fields.items()})
        draft.rename(self._state)

    def _restore(self) -> None:
        with safe_open(self._state, framework="pt") as file:
            fields = {key: json.loads(value) for key, value in file.metadata().items()}
            begun, wanted = fields["transformer"], self._model.config.to_dict()
            if begun != wanted:
                differing = sorted(key for key in wanted if begun.get(key) != wanted[key])
                raise ConfigError(
                    f"{self._state} was begun with another {', '.join(differing)}; "
                    "give the recipe it was begun with, or another --out"
                )
            self._progress = Progress(**fields["progress"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
        torch.set_rng_state(tensors["random"])
        parameters = dict(self._model.named_parameters())
        with torch.no_grad():
            for name, tensor in unique_parameters(self._model).items():
                tensor.copy_(tensors[f"model.{name}"])
        for name, parameter in parameters.items():
            moments = {key: tensors.get(f"adam.{name}.{key}") for key in ("step", "exp_avg", "exp_avg_sq")}
            if all(moment is not None for moment in moments.values()):
                self._optimizer.state[parameter] = moments


def _check_positions(recipe: Recipe, *corpora: TokenisedCorpus) -> None:
    """Hold that the model has a position for every token of the data."""
    most = recipe.transformer.get("max_positions", TransformerConfig.max_positions)
    longest = max(len(side) for corpus in corpora for pair in corpus.pairs for side in pair)
    if isinstance(most, int) and longest > most:
        raise ConfigError(f"max_positions: got {most}, wanted at least {longest}, the tokens of the longest sentence")


def average_snapshots(paths: Sequence[Path]) -> dict[str, Tensor]:
    """Mean of each tensor over several safetensors files."""
    mean: dict[str, Tensor] = {}
    for path in paths:
        for name, tensor in load_file(path).items():
            share = tensor.double() / len(paths)
            mean[name] = mean[name] + share if name in mean else share
    return {name: tensor.float() for name, tensor in mean.items()}


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
