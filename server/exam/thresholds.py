"""What an exam has to reach, and the words for a figure that does not."""

from __future__ import annotations

from dataclasses import dataclass, field

from export.bundle import Exam

MAX_BLEU_LOSS = 0.2
"""BLEU that a precision which rounds may lose where nothing else was asked."""
# Precisions that round nothing away: the same tokens, log-probs that differ in the order of their sums alone.
_EXACT_PRECISIONS = ("fp32",)
# A trained model stays two orders of magnitude below; weights drawn at random, whose logits are loud, may come near.
_MAX_LOG_PROB_DIFFERENCE = 1e-3
# A score adds up the log-probs of a whole output.
_SCORE_PER_LOG_PROB = 10.0
# Another processor sums in another order, and an activation may be rounded to the neighbouring level.
_WARM_UP_MARGIN = 1.25


@dataclass(frozen=True)
class Judged:
    """A measured figure and what was asked of it.

    Attributes:
        name: of the figure.
        got: what was measured.
        least: the smallest that holds; None: not asked.
        most: the largest that holds; None: not asked.
        option: the flag of ``dragoman verify`` that decides what is asked; empty: there is none.
    """

    name: str
    got: float
    least: float | None = field(default=None, kw_only=True)
    most: float | None = field(default=None, kw_only=True)
    option: str = field(default="", kw_only=True)

    @property
    def asked(self) -> bool:
        """Whether anything was asked."""
        return self.least is not None or self.most is not None

    @property
    def holds(self) -> bool:
        """Whether what was asked was reached."""
        return (self.least is None or self.got >= self.least) and (self.most is None or self.got <= self.most)

    def complaint(self, *, name_option: bool = True) -> str:
        """What was measured and what was wanted, for a figure that does not hold; ``verify`` names the flag as well."""
        limit, word = (self.most, "most") if self.least is None or self.got >= self.least else (self.least, "least")
        assert limit is not None, "only what was asked can be missed"
        option = f" ({self.option})" if self.option and name_option else ""
        return f"{self.name} {_told_apart(self.got, limit)}, wanted at {word} {limit:g}{option}"


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What must hold; None: not asked.

    Attributes:
        min_exact_rate: least token-exact rate.
        max_log_prob_difference: most difference of a token's log-prob.
        max_score_difference: most difference of an output's score.
        max_bleu_loss: most BLEU below the reference decoder's, for greedy and beam search alike.
    """

    min_exact_rate: float | None = 1.0
    max_log_prob_difference: float | None = None
    max_score_difference: float | None = None
    max_bleu_loss: float | None = None

    @classmethod
    def of_precision(
        cls,
        precision: str,
        *,
        shortlisted: bool = False,
        min_exact_rate: float | None = None,
        max_log_prob_difference: float | None = None,
        max_bleu_loss: float | None = None,
    ) -> Thresholds:
        """What a runner of this precision has to reach.

        float32 has to give the reference's tokens. A precision that rounds, or a choice from a shortlist, is held to
        the quality of its texts: it may lose ``MAX_BLEU_LOSS`` on people's translations.

        Args:
            precision: of the matrix products.
            shortlisted: whether the runner chooses from a shortlist.
            min_exact_rate: asked in any case; None: as said above.
            max_log_prob_difference: asked in any case; None: 1e-3 of float32. A score may differ by ten times that.
            max_bleu_loss: asked in any case; None: as said above.
        """
        if precision in _EXACT_PRECISIONS and not shortlisted:
            log_prob = _MAX_LOG_PROB_DIFFERENCE if max_log_prob_difference is None else max_log_prob_difference
            return cls(
                min_exact_rate=1.0 if min_exact_rate is None else min_exact_rate,
                max_log_prob_difference=log_prob,
                max_score_difference=_SCORE_PER_LOG_PROB * log_prob,
                max_bleu_loss=max_bleu_loss,
            )
        return cls(
            min_exact_rate=min_exact_rate,
            max_log_prob_difference=max_log_prob_difference,
            max_bleu_loss=MAX_BLEU_LOSS if max_bleu_loss is None else max_bleu_loss,
        )

    @classmethod
    def for_warm_up(cls, precision: str, exam: Exam | None, *, shortlisted: bool = False) -> Thresholds:
        """What a few golden sentences have to show before a model serves: what its certificate says, no worse.

        Args:
            precision: of the matrix products.
            exam: the passed exam; None: there is none, and a precision that rounds has promised nothing.
            shortlisted: whether the runner chooses from a shortlist, which promises no more.
        """
        own = cls.of_precision(precision, shortlisted=shortlisted)
        if exam is None:
            return cls(
                min_exact_rate=own.min_exact_rate,
                max_log_prob_difference=own.max_log_prob_difference,
                max_score_difference=own.max_score_difference,
            )
        asked = exam.thresholds
        return cls(
            # A lower rate says nothing of the few sentences that are asked.
            min_exact_rate=1.0 if asked.get("min_exact_rate") == 1.0 else None,
            max_log_prob_difference=asked.get(
                "max_log_prob_difference", _WARM_UP_MARGIN * exam.max_log_prob_difference
            ),
            max_score_difference=asked.get("max_score_difference"),
        )

    def record(self) -> dict[str, float]:
        """As the certificate lists it: what was asked."""
        return {name: value for name, value in vars(self).items() if value is not None}


def _told_apart(got: float, limit: float) -> str:
    """``got`` in so many digits that it stands on its own side of ``limit``."""
    texts = (f"{got:.{digits}g}" for digits in range(3, 18))
    return next((text for text in texts if (float(text) - limit) * (got - limit) > 0.0), repr(got))
