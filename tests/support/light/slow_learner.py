"""A learner rank, under torchrun, that takes ``SLOW_TOKEN_S`` longer for each token it trains on."""

from __future__ import annotations

import os
import time
from functools import partial

from torch import Tensor

from common.process import main
from learner.process import learn
from learner.train.packing import MicroBatch
from learner.train.trainer import Trainer


class SlowTrainer(Trainer):
    def _accumulate(self, batch: MicroBatch, old_logp_R: Tensor | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        time.sleep(float(os.environ["SLOW_TOKEN_S"]) * batch.ids_T.numel())
        return super()._accumulate(batch, old_logp_R)


if __name__ == "__main__":
    main(partial(learn, make_trainer=SlowTrainer))
