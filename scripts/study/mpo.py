"""MPO (arXiv 2505.16869) as a trainer on top of TRL's DPO trainer. Importing it takes seconds, because of TRL."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from trl.trainer.dpo_trainer import DPOTrainer


class MPOTrainer(DPOTrainer):
    """Trains the policy to prefer a translated answer as much as the reference model prefers the original.

    Even rows of the data are pairs in the pivot language, and each is followed by its translation. A batch holds an
    even number of rows, in this order. With the reward gap RG = log p(chosen) / |chosen| - log p(rejected) / |rejected|
    of a pair, the loss is

        (beta RG of the policy, translated - RG of the reference, pivot)^2 + (h - h of the reference)^2,

    where h is the last hidden state of each pivot sequence, averaged over its tokens. Both squares are
    averaged over the pairs, the second one also over the width of the hidden state.
    """

    def _compute_loss(self, model: Any, inputs: dict[str, Tensor], return_outputs: bool) -> Tensor:
        with torch.no_grad():
            target_gaps, reference_states = self._gaps(
                self.ref_model, {name: value[0::2] for name, value in inputs.items()}
            )
        gaps, states = self._gaps(model, inputs)
        return mse_loss(self.beta * gaps[1::2], target_gaps) + mse_loss(states[0::2], reference_states)

    def _gaps(self, model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Reward gaps [pairs] and mean hidden states [2 * pairs, hidden width], in nats per token and without a unit.

        Args:
            inputs: token ids and masks, [2 * pairs, tokens] each: first all chosen sequences, then all rejected ones.
        """
        ids, present, answer = (inputs[name] for name in ("input_ids", "attention_mask", "completion_mask"))
        hidden: list[Tensor] = []  # of a hook, as the output of TRL's fused head holds neither logits nor hidden states
        body = self.accelerator.unwrap_model(model).base_model
        with body.register_forward_hook(lambda _, __, output: hidden.append(output.last_hidden_state)):
            labels = ids.masked_fill(answer == 0, -100)
            logps = model(input_ids=ids, attention_mask=present, labels=labels, fused_lm_head=True).log_probs.sum(1)
        chosen, rejected = (logps / answer[:, 1:].sum(1)).chunk(2)
        weights = present / present.sum(1, keepdim=True)
        return chosen - rejected, (hidden[0] * weights[..., None]).sum(1)
