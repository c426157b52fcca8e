"""MPO (arXiv 2505.16869) on TRL's DPO trainer; slow to import."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from trl.trainer.dpo_trainer import DPOTrainer


class MPOTrainer(DPOTrainer):
    """Leads the policy's preferences in a language to the reference's in the pivot language.

    Even rows are pairs in the pivot language, each followed by its translation; batches are even and in this order.
    With RG = log p(chosen) / |chosen| - log p(rejected) / |rejected|, the loss is

        (beta RG of the policy, translated - RG of the reference, pivot)^2 + (h - h of the reference)^2,

    where h is the last hidden state of each pivot sequence, averaged over its tokens; both squares are means.
    """

    def _compute_loss(self, model: Any, inputs: dict[str, Tensor], return_outputs: bool) -> Tensor:
        with torch.no_grad():
            aims, kept = self._gaps(self.ref_model, {name: value[0::2] for name, value in inputs.items()})
        gaps, states = self._gaps(model, inputs)
        return mse_loss(self.beta * gaps[1::2], aims) + mse_loss(states[0::2], kept)

    def _gaps(self, model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Reward gaps [pairs] and mean states [2 pairs, hidden]; of 2 pairs sequences the chosen ones come first."""
        ids, present, answer = (inputs[name] for name in ("input_ids", "attention_mask", "completion_mask"))
        found: list[Tensor] = []  # TRL's fused head keeps the logits out of memory, and the states to itself
        body = self.accelerator.unwrap_model(model).base_model
        with body.register_forward_hook(lambda _, __, output: found.append(output.last_hidden_state)):
            labels = ids.masked_fill(answer == 0, -100)
            logps = model(input_ids=ids, attention_mask=present, labels=labels, fused_lm_head=True).log_probs.sum(1)
        chosen, rejected = (logps / answer[:, 1:].sum(1)).chunk(2)
        weights = present / present.sum(1, keepdim=True)
        return chosen - rejected, (found[0] * weights[..., None]).sum(1)
