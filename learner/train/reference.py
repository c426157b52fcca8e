"""The reference policy, to which the KL penalty is taken: which policy it is, and how that changes over a run."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from common.config import LearnerConfig
from common.process import FatalError
from learner.train.model_digest import model_digest
from learner.train.packing import MicroBatch
from learner.train.policy import Policy, drop_gathered, shard, store_weights

log = logging.getLogger("learner.reference")


@dataclass(frozen=True)
class ReferenceState:
    """Which policy the reference of a run is, as training and checkpoints both have it.

    Args:
        moved: whether it is no longer the policy that the run began with, and is there. Of adapters, after a resume:
            whether the checkpoint has those of the reference, moved or not.
        stage: number of the stage for which it was last set, from 0; 0 also where the run has no stages. None where a
            checkpoint does not say it, as those of earlier versions of this program.
    """

    moved: bool
    stage: int | None


class Reference:
    """The reference policy of a run. It is in one of these states:

    * **absent**: all weights are trained and no step has a KL penalty, so that nobody asks for it.
    * **of the beginning**: the policy that the run began with. Where all weights are trained it is a frozen copy of
      them. With adapters it is the policy itself without them, which costs no memory.
    * **moved**: a stage with ``reset_anchor`` has begun, and the policy at its beginning is the reference. The copy has
      its weights, or adapters of its own have its adapters. From then on checkpoints hold it.
    * **dropped**: a stage had set it, and the run went on with all weights and without a KL penalty, so that the newer
      checkpoints do not hold it. Such a run cannot have a penalty again: it would be to the model of the beginning.

    Attributes:
        copy: the copy of all weights; None where it is absent, and with adapters.
        state: which policy it is.

    Args:
        config: of the learner.
        policy: that is trained, with its adapters, before it is sharded. Without adapters its ``base`` is set.
        mesh: to shard the copy over.
        on_cpu: keep the copy in host memory.
    """

    def __init__(self, config: LearnerConfig, policy: Policy, mesh: DeviceMesh, *, on_cpu: bool) -> None:
        self._config, self._policy = config, policy
        self.copy: Policy | None = None
        self.state = ReferenceState(moved=False, stage=0)
        if policy.adapters is None and config.has_kl:
            dtype = getattr(torch, config.param_dtype)
            policy.base = model_digest(policy.lm)
            copied = copy.deepcopy(policy).requires_grad_(False)
            store_weights(copied, dtype)
            stays = config.keep_gathered and not on_cpu
            self.copy = shard(copied, mesh, dtype, on_cpu=on_cpu, stays_gathered=stays)

    @torch.no_grad()
    def logp(self, batch: MicroBatch) -> Tensor:
        """Log-probabilities of ``batch.targets_R`` under the reference policy, [R] float32. A collective."""
        if self._policy.adapters is None:
            assert self.copy is not None  # there is one wherever a step has a KL penalty
            logp_R: Tensor = self.copy(batch, with_entropy=False)[0]
            return logp_R
        with self._policy.adapters.reference():
            logp_R = self._policy(batch, with_entropy=False)[0]
        return logp_R

    def begin_step(self, number: int) -> None:
        """Makes the present policy the reference, where step ``number``, counted from 0, is in a stage that says so."""
        current = self._config.stage_number(number)
        if current is None:
            return
        # Not asked of the step before: a resume with another number of steps may begin within a later stage.
        if self._config.stages[current].reset_anchor and self.state.stage != current:
            self._reset()
            self.state = ReferenceState(moved=True, stage=current)
        elif current < (self.state.stage or 0):  # the run has become longer, and that stage is to begin again
            self.state = replace(self.state, stage=current)

    def _reset(self) -> None:
        """Makes the present policy the reference, where there is one."""
        if self._policy.adapters is not None:
            self._policy.adapters.reset_reference()
        elif self.copy is not None:
            drop_gathered(self.copy)
            with torch.no_grad():
                for reference, present in zip(self.copy.parameters(), self._policy.parameters(), strict=True):
                    # The shards are copied one by one, because those of the reference may be in host memory.
                    cast(DTensor, reference).to_local().copy_(cast(DTensor, present).to_local())

    @property
    def saved(self) -> Policy | None:
        """The copy that a checkpoint holds: where it is no longer the policy that the run began with."""
        return self.copy if self.state.moved else None

    def resume(self, state: ReferenceState, step: int) -> None:
        """Goes on with the reference policy of a checkpoint, which ``Checkpoints.load`` has filled.

        Args:
            state: what the checkpoint says of it.
            step: how many steps were trained until there.

        Raises:
            FatalError: there is a KL penalty, and the checkpoint no longer has the reference that a stage had set.
        """
        if state.stage is None:
            # An older program wrote the checkpoint, and the run may have had no stages. Where one may have set the
            # reference, it is the last one until ``step`` that does by the present configuration.
            last = (self._config.stage_number(step - 1) or 0) if state.moved and step else 0
            reset = [number for number in range(1, last + 1) if self._config.stages[number].reset_anchor]
            state = replace(state, stage=max(reset, default=0))
        if state.stage and not state.moved:  # steps without a KL were trained since, or are to be
            if self._config.has_kl:
                raise FatalError(
                    f"cannot resume with a KL penalty: stage {state.stage + 1} of the run so far had set its reference "
                    "policy, which the checkpoint does not have, because no step had a penalty any more. Now it would "
                    "be to the model that the run began with. Leave learner.kl and the kl of all stages at 0, or begin "
                    "another run.dir"
                )
            log.warning(
                "the reference policy that stage %d had set is not kept, because no step has a KL penalty any more: "
                "the run cannot go on with one later", state.stage + 1,
            )  # fmt: skip
        self.state = state
