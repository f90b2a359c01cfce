"""The training log, one JSON object per line, and its plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

LOG_FILE = "log.jsonl"
PLOT_FILE = "training.png"


class TrainingLog:
    """Appends records to ``log.jsonl``; a resumed training drops what lies past its restart."""

    def __init__(self, directory: Path, *, update: int) -> None:
        self._path = directory / LOG_FILE
        kept = [record for record in read_log(directory) if record["update"] <= update]
        self._path.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")

    def write(self, **record: Any) -> None:
        """Append one record; ``update`` is its key."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def read_log(directory: Path) -> list[dict[str, Any]]:
    """All records of ``directory/log.jsonl``; none where there is no such file."""
    path = directory / LOG_FILE
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def plot_log(directory: Path) -> Path:
    """Draw loss, learning rate and validation BLEU over updates into ``directory/training.png``."""
    records = read_log(directory)
    training = [record for record in records if "loss" in record]
    validation = [record for record in records if "validation_bleu" in record]
    figure = Figure(figsize=(8, 9), layout="constrained")
    FigureCanvasAgg(figure)
    loss, rate, bleu = figure.subplots(3, 1, sharex=True)
    loss.plot([r["update"] for r in training], [r["loss"] for r in training], label="training (smoothed labels)")
    loss.plot([r["update"] for r in validation], [r["validation_nll"] for r in validation], label="validation")
    loss.set_ylabel("loss, nats per token")
    loss.legend()
    rate.plot([r["update"] for r in training], [r["learning_rate"] for r in training])
    rate.set_ylabel("learning rate")
    bleu.plot([r["update"] for r in validation], [r["validation_bleu"] for r in validation], marker="o")
    bleu.set_ylabel("validation BLEU (greedy)")
    bleu.set_xlabel("update")
    for axis in (loss, rate, bleu):
        axis.grid(alpha=0.3)
    path = directory / PLOT_FILE
    figure.savefig(path, dpi=120)
    return path
