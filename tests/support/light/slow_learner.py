"""A learner rank, under torchrun, that takes ``SLOW_TOKEN_S`` longer for each token it trains on."""

from __future__ import annotations

import os
import time

from torch import Tensor

import learner.__main__ as learning
from common.process import main
from learner.train.packing import Packed
from learner.train.trainer import Trainer


class SlowTrainer(Trainer):
    def _accumulate(self, batch: Packed) -> tuple[Tensor, dict[str, Tensor]]:
        time.sleep(float(os.environ["SLOW_TOKEN_S"]) * batch.ids.numel())
        return super()._accumulate(batch)


if __name__ == "__main__":
    learning.Trainer = SlowTrainer  # type: ignore[attr-defined]
    main(learning._run)
