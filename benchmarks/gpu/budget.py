"""The time that the whole command may take, shared out as it goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Budget:
    """Minutes that are being used up.

    Attributes:
        seconds: in all.
        clock: seconds, monotonic.
        left_out: what was not measured, each with the reason.
    """

    seconds: float
    clock: Callable[[], float] = time.monotonic
    left_out: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._began = self.clock()

    @property
    def used(self) -> float:
        """Seconds since the beginning."""
        return self.clock() - self._began

    @property
    def left(self) -> float:
        """Seconds to go, at least 0."""
        return max(0.0, self.seconds - self.used)

    def share(self, *, wanted: float, least: float, wanted_later: float) -> float | None:
        """Seconds that the next part may take.

        Args:
            wanted: what it takes where time is plenty.
            least: below this it tells nothing.
            wanted_later: what all parts after it want together.

        Returns:
            What it wants, or its part of what is left where that is too little for all; None: not even the least.
        """
        if self.left < least:
            return None
        fair = self.left * wanted / (wanted + wanted_later)
        return min(wanted, max(least, fair), self.left)

    def leave_out(self, part: str, reason: str) -> None:
        """Note that a part is not measured."""
        self.left_out.setdefault(part, reason)
