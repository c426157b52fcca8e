"""The losses, compared with the published formulas written again in float64, and with TRL's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM
from trl.trainer.grpo_trainer import GRPOTrainer

from common.config import Config
from learner.groups import Group
from learner.train.aggregation import Aggregation, token_weights
from learner.train.logprob import chunked_logp
from learner.train.objective import KLForm, Objective, kl_estimate
from learner.train.samples import group_samples
from learner.train.statistics import make_axes
from learner.train.trainer import Trainer, make_objective
from tests.support.groups import random_rollout, work
from tests.support.train_once import configuration, full_gradients, random_batch, run_ranks

LENGTH = 40  # of "constant"


@given(
    rollouts=st.lists(st.tuples(st.integers(1, 999), st.sampled_from(["en", "zh", "th"])), min_size=1),
    aggregation=st.sampled_from(["token", "sequence", "fertility", "constant"]),
)
def test_token_weights_make_the_means_they_name(rollouts: list[tuple[int, str]], aggregation: Aggregation) -> None:
    losses = [np.random.default_rng(n).normal(size=n) for n, _ in rollouts]
    weights = token_weights([n for n, _ in rollouts], [language for _, language in rollouts], aggregation, LENGTH)
    ours = sum(weight * loss.sum() for weight, loss in zip(weights, losses, strict=True))
    by_language = defaultdict(list)
    for (_, language), loss in zip(rollouts, losses, strict=True):
        by_language[language].append(loss)
    wanted = {
        "token": np.concatenate(losses).mean(),
        "sequence": np.mean([loss.mean() for loss in losses]),
        "fertility": sum(len(some) * np.concatenate(some).mean() for some in by_language.values()) / len(losses),
        "constant": sum(loss.sum() for loss in losses) / LENGTH / len(losses),
    }
    assert ours == pytest.approx(wanted[aggregation], rel=1e-9, abs=1e-12)


def test_chunked_log_probabilities_match_float64(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(37, 16, generator=generator), torch.randn(101, 16, generator=generator)
    targets, upstream = torch.randint(0, 101, (37,), generator=generator), torch.randn(2, 37, generator=generator)
    exact = [tensor.double().requires_grad_() for tensor in (hidden, weight)]
    logits = torch.log_softmax(exact[0] @ exact[1].T / 0.7, -1)
    entropies = -(logits.exp() * logits).sum(-1)
    (logits[torch.arange(37), targets] * upstream[0] + entropies * upstream[1]).sum().backward()
    ours = [tensor.clone().requires_grad_() for tensor in (hidden, weight)]
    logp, entropy = chunked_logp(ours[0], ours[1], targets, 0.7, 8)
    (logp * upstream[0] + entropy * upstream[1]).sum().backward()
    torch.testing.assert_close(logp.double(), logits[torch.arange(37), targets], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy.double(), entropies, rtol=1e-5, atol=1e-5)
    for mine, reference in zip(ours, exact, strict=True):
        assert mine.grad is not None and reference.grad is not None
        torch.testing.assert_close(mine.grad.double(), reference.grad, rtol=1e-4, atol=1e-4)  # sums that cancel


# -- a token's loss ----------------------------------------------------------------------------------------------------


def _objective(**changes: Any) -> Objective:
    plain = Objective(clip_low=0.2, clip_high=0.28, kl=0.1, importance_cap=2.0, importance_floor=0.5)
    return replace(plain, **changes)


def definition(
    o: Objective, logp: Tensor, old: Tensor, behaviour: Tensor, advantage: float, ref: Tensor, entropy: Tensor
) -> tuple[list[Tensor], list[bool]]:
    """The losses of the tokens of one answer, as the papers write them, and whether a clipped ratio made each smaller.

    Of CISPO, whether the weight of the token's gradient was clipped.
    """
    proximal_logp = old if o.proximal == "step" else behaviour
    sequence = torch.exp((logp - proximal_logp).mean()).detach()  # GSPO, equation 7
    losses, clipped = [], []
    for t in range(len(logp)):
        weight = torch.exp(old[t] - behaviour[t])
        if o.correction == "none" or o.proximal == "behaviour":
            weight = torch.ones_like(weight)
        elif o.correction == "mask" and not o.importance_floor <= weight <= o.importance_cap:
            weight = torch.zeros_like(weight)
        else:
            weight = min(weight, torch.full_like(weight, o.importance_cap))
        ratio = torch.exp(logp[t] - proximal_logp[t])
        if o.loss == "cispo":
            coefficient = min(max(float(ratio.detach()), 1 - o.clip_low), 1 + o.clip_high)
            gain = coefficient * advantage * logp[t]
            clipped.append(advantage != 0 and coefficient != float(ratio.detach()))
        else:
            one = sequence * logp[t].exp() / logp[t].exp().detach() if o.loss == "gspo" else ratio
            bounded = min(max(one, torch.full_like(one, 1 - o.clip_low)), torch.full_like(one, 1 + o.clip_high))
            gain = min(one * advantage, bounded * advantage)
            clipped.append(bool(bounded * advantage < one * advantage))
            if o.loss == "ppo" and advantage < 0 and o.dual_clip:
                gain = max(gain, torch.full_like(gain, o.dual_clip * advantage))
        difference = ref[t] - logp[t]
        kl = {"k1": -difference, "k2": difference**2 / 2, "k3": difference.exp() - difference - 1}[o.kl_form]
        if o.kl_importance:
            kl = kl * ratio * weight
        losses.append(-weight * gain + o.kl * kl - o.entropy_bonus * entropy[t])
    return losses, clipped


FORMS: dict[str, dict[str, Any]] = {
    "ppo": {},
    "ppo, masked, no dual clip": {"correction": "mask", "dual_clip": 0.0},
    "ppo, no weight, k1": {"correction": "none", "kl_form": "k1", "kl_importance": True},
    "ppo against the behaviour": {"proximal": "behaviour", "kl_form": "k2"},
    "ppo, weighted k3, entropy": {"kl_importance": True, "entropy_bonus": 0.05},
    "gspo": {"loss": "gspo", "clip_low": 0.05, "clip_high": 0.1},
    "gspo, no weight": {"loss": "gspo", "correction": "none", "kl_form": "k2", "clip_low": 3e-4, "clip_high": 4e-4},
    "cispo": {"loss": "cispo", "clip_low": 1.0, "clip_high": 0.5},
    "cispo, entropy": {"loss": "cispo", "clip_low": 0.3, "clip_high": 4.0, "entropy_bonus": 0.1},
}


@pytest.mark.parametrize("changes", FORMS.values(), ids=FORMS)
def test_losses_and_gradients_are_those_of_the_definition(changes: dict[str, Any], rng: np.random.Generator) -> None:
    objective = _objective(**changes)
    lengths = rng.integers(1, 30, 20)
    tokens = int(lengths.sum())
    old, behaviour, ref, entropy = torch.from_numpy(rng.normal(size=(4, tokens)))
    behaviour = old + 0.7 * behaviour
    advantage = torch.from_numpy(rng.normal(size=20))
    advantage[:2] = 0.0  # of answers that are as good as the mean of their group
    logp = old + torch.from_numpy(rng.normal(size=tokens) * 0.5)
    sequence = torch.from_numpy(np.repeat(np.arange(20), lengths))
    ours, theirs = ([logp.clone().requires_grad_(), entropy.clone().requires_grad_()] for _ in range(2))
    loss, stats = objective(
        ours[0], old, behaviour, advantage[sequence], ref, entropy_R=ours[1], sequence_R=sequence
    )  # fmt: skip
    split = [x.split(lengths.tolist()) for x in (theirs[0], old, behaviour, ref, theirs[1])]
    defined = [
        definition(objective, split[0][n], split[1][n], split[2][n], float(advantage[n]), split[3][n], split[4][n])
        for n in range(20)
    ]
    wanted = torch.stack([one for losses, _ in defined for one in losses])
    torch.testing.assert_close(loss, wanted, rtol=1e-10, atol=1e-12)
    upstream = torch.from_numpy(rng.random(tokens))
    (loss @ upstream).backward()
    (wanted @ upstream).backward()
    for mine, other in zip(ours, theirs, strict=True):
        if mine.grad is None or other.grad is None:
            assert not objective.entropy_bonus
            continue
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-9, atol=1e-12)
    assert stats["clip_share"].tolist() == [float(one) for _, clipped in defined for one in clipped]
    assert 0 < stats["clip_share"].mean() < 1, "some are clipped, and some are not"
    raw = torch.exp(old - behaviour)
    torch.testing.assert_close(stats["outside_bounds"], ((raw < 0.5) | (raw > 2)).float())
    torch.testing.assert_close(stats["raw_weight_squared"], raw**2)
    unlimited = objective.correction == "none" or objective.proximal == "behaviour"
    assert bool(stats["importance_limited"].any()) != unlimited
    assert all(not value.requires_grad for value in stats.values())


@pytest.mark.parametrize("loss", ["ppo", "gspo", "cispo"])
def test_a_token_counts_as_clipped_where_the_clip_changes_its_loss(loss: Literal["ppo", "gspo", "cispo"]) -> None:
    """The cases of a ratio within, below and above its bounds, for A > 0, A < 0 and A = 0; an answer has one token."""
    log_ratio = torch.tensor([1.0, 0.5, 2.0, 9.0]).log().repeat(3)
    advantage = torch.tensor([1.0, -1.0, 0.0]).repeat_interleave(4)
    leaf, old = log_ratio.clone().requires_grad_(), torch.zeros(12)
    objective = _objective(loss=loss, kl=0.0)
    losses, stats = objective(leaf, old, old, advantage, None, entropy_R=old, sequence_R=torch.arange(12))
    losses.sum().backward()
    above, below = [0, 0, 1, 1], [0, 1, 0, 0]
    every = [one or other for one, other in zip(above, below, strict=True)]
    wanted = [*every, *every, 0, 0, 0, 0] if loss == "cispo" else [*above, *below, 0, 0, 0, 0]
    assert stats["clip_share"].tolist() == wanted
    if loss != "cispo":  # a clipped ratio has no gradient, and neither has one that the dual clip bounds
        assert leaf.grad is not None
        flat = (leaf.grad == 0) & (advantage != 0)
        dual = [0] * 7 + [int(loss == "ppo")] + [0] * 4
        assert flat.int().tolist() == [one + other for one, other in zip(wanted, dual, strict=True)]


def test_gspo_with_equal_weights_is_the_loss_of_whole_answers(rng: np.random.Generator) -> None:
    """Equation 5 of arXiv 2507.18071, whose ratio is that of the answer and which is a mean over answers."""
    old, noise = torch.from_numpy(rng.normal(size=(2, 12)))
    sequence = torch.tensor([0] * 5 + [1] * 7)
    advantage = torch.tensor([1.3, -0.4], dtype=torch.float64)
    ours, theirs = ((old + 0.3 * noise).requires_grad_() for _ in range(2))
    o = _objective(loss="gspo", correction="none", kl=0.0, clip_low=0.1, clip_high=0.2)
    losses, _ = o(ours, old, old, advantage[sequence], None, entropy_R=old, sequence_R=sequence)
    weights = torch.tensor([1 / (2 * 5)] * 5 + [1 / (2 * 7)] * 7, dtype=torch.float64)
    whole = []
    for n, part in enumerate([slice(0, 5), slice(5, 12)]):
        s = torch.exp((theirs[part] - old[part]).mean())
        whole.append(-torch.minimum(s * advantage[n], s.clamp(0.9, 1.2) * advantage[n]))
    (losses @ weights).backward()
    torch.stack(whole).mean().backward()
    torch.testing.assert_close(losses @ weights, torch.stack(whole).mean())
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize(("form", "weighted"), [("k1", True), ("k2", False), ("k3", True)])
def test_the_mean_gradient_of_the_kl_is_that_of_the_kl(form: KLForm, weighted: bool, seed: int) -> None:
    """Summed over a vocabulary with the probabilities of sampling; k1 and k3 with their weight, and k2 without."""
    generator = torch.Generator().manual_seed(seed)
    logits, other, sampled = torch.randn(3, 30, generator=generator, dtype=torch.float64)
    behaviour = torch.log_softmax(logits + 0.3 * sampled, -1) if weighted else torch.log_softmax(logits, -1)
    leaf, exact = (logits.clone().requires_grad_() for _ in range(2))
    policy, reference = torch.log_softmax(exact, -1), torch.log_softmax(other, -1)
    (policy.exp() * (policy - reference)).sum().backward()
    logp = torch.log_softmax(leaf, -1)
    o = _objective(kl=1.0, kl_form=form, kl_importance=weighted, importance_cap=1e9)
    args = (logp, logp.detach(), behaviour, torch.zeros(30), reference)
    losses, _ = o(*args, entropy_R=torch.zeros(30), sequence_R=torch.zeros(30, dtype=torch.int64))
    (losses * behaviour.exp()).sum().backward()
    torch.testing.assert_close(leaf.grad, exact.grad, rtol=1e-8, atol=1e-10)
    assert (kl_estimate(policy, reference, form).detach() >= 0).all() or form == "k1"


# -- TRL ---------------------------------------------------------------------------------------------------------------


def trl_loss(
    logp: Tensor, old: Tensor, ref: Tensor, weight: Tensor | None, mask: Tensor, advantage: Tensor, entropy: Tensor,
    *, loss_type: str, level: str = "token", high: float = 0.28, corrected_kl: bool = False, entropy_coef: float = 0.0,
    metrics: dict[str, list[float]] | None = None,
) -> Tensor:  # fmt: skip
    """The loss of ``GRPOTrainer``, by its own code, which also adds to ``metrics``."""
    accelerator = SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x, num_processes=1, sync_gradients=1)
    this = SimpleNamespace(
        args=SimpleNamespace(delta=3.0, use_bias_correction_kl=corrected_kl, steps_per_generation=1),
        accelerator=accelerator, model=SimpleNamespace(training=True), aux_loss_enabled=False,
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, importance_sampling_level=level, beta=0.1,
        loss_type=loss_type, epsilon_low=0.2, epsilon_high=high, use_vllm=weight is not None,
        vllm_importance_sampling_correction=True, current_gradient_accumulation_steps=1,
        max_completion_length=LENGTH, _entropy_bonus_enabled=bool(entropy_coef), use_adaptive_entropy=False,
        entropy_coef=entropy_coef, _metrics={"train": defaultdict(list) if metrics is None else metrics},
        _get_per_token_logps_and_entropies=lambda *_, **__: (logp, entropy, None),
    )  # fmt: skip
    rows = len(mask)
    inputs = {
        "prompt_ids": torch.ones(rows, 1), "prompt_mask": torch.ones(rows, 1), "completion_ids": torch.ones(mask.shape),
        "completion_mask": mask.to(logp.dtype), "advantages": advantage, "old_per_token_logps": old,
        "ref_per_token_logps": ref, "importance_sampling_ratio": weight, "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    compute: Callable[..., Tensor] = GRPOTrainer._compute_loss
    return compute(this, None, inputs)


TRL: dict[str, tuple[Aggregation, dict[str, Any], dict[str, Any]]] = {
    "ppo, token mean": ("token", {}, {"loss_type": "bnpo"}),
    "dapo": ("token", {}, {"loss_type": "dapo"}),
    "grpo": ("sequence", {}, {"loss_type": "grpo"}),
    "dr_grpo": ("constant", {}, {"loss_type": "dr_grpo"}),
    "cispo": ("token", {"loss": "cispo", "clip_low": 1.0, "clip_high": 0.5}, {"loss_type": "cispo", "high": 1.5}),
    "gspo": (
        "sequence", {"loss": "gspo", "correction": "none"}, {"loss_type": "grpo", "level": "sequence", "weight": None},
    ),
    "weighted KL": (
        "token", {"kl_importance": True, "correction": "none"},
        {"loss_type": "dapo", "corrected_kl": True, "weight": None},
    ),
    "entropy bonus": ("token", {"entropy_bonus": 0.05}, {"loss_type": "dapo", "entropy_coef": 0.05}),
}  # fmt: skip


@pytest.mark.parametrize(("aggregation", "changes", "options"), TRL.values(), ids=TRL)
def test_losses_and_gradients_are_those_of_trl(
    aggregation: Aggregation, changes: dict[str, Any], options: dict[str, Any], rng: np.random.Generator
) -> None:
    lengths = rng.integers(1, 30, 12)
    mask = torch.from_numpy(np.arange(lengths.max()) < lengths[:, None])
    old, behaviour, ref, noise, entropy = torch.from_numpy(rng.normal(size=(5, *mask.shape)))
    advantage = torch.from_numpy(rng.normal(size=12))
    ours, theirs = (
        [(old + 0.4 * noise).requires_grad_(), entropy.clone().requires_grad_()] for _ in range(2)
    )  # fmt: skip
    weight = torch.exp(old - behaviour).clamp(max=2.0)
    metrics: dict[str, list[float]] = defaultdict(list)
    wanted = trl_loss(theirs[0], old, ref, mask=mask, advantage=advantage, entropy=theirs[1], metrics=metrics, **{
        "weight": weight, **options
    })  # fmt: skip
    wanted.backward()
    weights = torch.from_numpy(token_weights(lengths.tolist(), ["en"] * 12, aggregation, LENGTH))
    each = (ours[0], old, behaviour, advantage[:, None].expand(mask.shape), ref)
    sequence = torch.arange(12)[:, None].expand(mask.shape)[mask]
    losses, stats = _objective(**changes)(*(x[mask] for x in each), entropy_R=ours[1][mask], sequence_R=sequence)
    if changes.get("loss", "ppo") == "ppo":  # TRL's is a mean over answers for GSPO, and has A > 0 alone for CISPO
        assert float(stats["clip_share"].mean()) == pytest.approx(metrics["clip_ratio/region_mean"][0])
        assert 0 < stats["clip_share"].mean() < 1
    loss = losses @ weights[:, None].expand(mask.shape)[mask]
    loss.backward()
    torch.testing.assert_close(loss, wanted, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(ours[0].grad, theirs[0].grad, rtol=1e-8, atol=1e-11)
    assert (ours[1].grad is None) == (theirs[1].grad is None) == ("entropy_bonus" not in changes)
    if ours[1].grad is not None:
        torch.testing.assert_close(ours[1].grad, theirs[1].grad)


def test_groups_of_equal_rewards_change_the_gradient_by_their_share_of_the_tokens(rng: np.random.Generator) -> None:
    """TRL keeps them in the mean, as ``drop_zero_variance`` = false does; without them it is over fewer tokens."""
    batch = []
    for number in range(4):
        rollouts = [random_rollout(rng, reward=0.5 if number == 3 else float(rng.random())) for _ in range(4)]
        batch.append(Group(work=work(number, ["en"] * 4), actor="a", rollouts=rollouts))
    rollouts = [rollout for group in batch for rollout in group.rollouts]
    lengths = [len(rollout.response_ids) for rollout in rollouts]
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    logp = torch.from_numpy(rng.normal(size=mask.shape))
    rewards = torch.tensor([[rollout.score.reward for rollout in group.rollouts] for group in batch]).double()
    advantage = ((rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-6)).flatten()
    leaf = logp.clone().requires_grad_()
    trl_loss(leaf, logp, leaf.detach(), None, mask, advantage, logp, loss_type="dapo").backward()
    gradients = {}
    for drops in (False, True):
        samples, _ = group_samples(batch, configuration(Path("m"), "--learner.drop_zero_variance", str(drops)).learner)
        gradients[drops] = torch.zeros_like(logp)
        for sample in samples:
            row = next(n for n, rollout in enumerate(rollouts) if rollout is sample.rollout)
            gradients[drops][row, : lengths[row]] = -sample.advantage * sample.weight
    torch.testing.assert_close(gradients[False], leaf.grad, rtol=1e-6, atol=1e-9)
    factor = sum(lengths) / sum(lengths[:12])
    assert leaf.grad is not None
    torch.testing.assert_close(gradients[True], factor * leaf.grad, rtol=1e-6, atol=1e-9)


# -- the loss of a batch, through the model ----------------------------------------------------------------------------


def reference_loss(policy: Any, reference: Any, batch: list[Group], config: Config, shift: bool) -> Tensor:
    """The loss of a batch with two float64 models, one answer after the other, with whole softmaxes.

    Args:
        shift: whether the policy at the beginning of the step is another one; see ``_shifted``.
    """
    learner, temperature = config.learner, config.sampling.temperature
    objective = make_objective(learner)
    losses: list[tuple[str, Tensor]] = []
    for sample in group_samples(batch, learner)[0]:  # its advantages are compared in test_advantages.py
        rollout = sample.rollout
        ids = torch.from_numpy(np.concatenate([rollout.prompt_ids, rollout.response_ids]).astype(np.int64))[None]
        answer = slice(len(rollout.prompt_ids) - 1, ids.shape[1] - 1)
        tokens = ids[0, answer.start + 1 :, None]
        table = torch.log_softmax(policy(ids).logits[0, answer] / temperature, -1)
        ref = torch.log_softmax(reference(ids).logits[0, answer].detach() / temperature, -1).gather(1, tokens)[:, 0]
        logp, entropy = table.gather(1, tokens)[:, 0], -(table.exp() * table).sum(-1)
        old = _shifted(logp.detach(), tokens[:, 0]) if shift else logp.detach()
        behaviour = torch.from_numpy(rollout.logprobs).double()
        some, _ = definition(objective, logp, old, behaviour, sample.advantage, ref, entropy)
        losses.append((rollout.language, torch.stack(some)))
    if learner.aggregation == "token":
        return torch.cat([loss for _, loss in losses]).mean()
    if learner.aggregation == "sequence":
        return torch.stack([loss.mean() for _, loss in losses]).mean()
    if learner.aggregation == "constant":
        return torch.stack([loss.sum() for _, loss in losses]).mean() / learner.aggregation_length
    parts = [
        (len(some), torch.cat(some).mean())
        for language in {language for language, _ in losses}
        if (some := [loss for other, loss in losses if other == language])
    ]
    return torch.stack([count * mean for count, mean in parts]).sum() / len(losses)


def _shifted(logp: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities of another policy, which a token and its probability determine."""
    return logp + 0.5 * torch.sin(tokens.to(logp.dtype))


BATCHES: dict[str, list[str]] = {
    "token mean": [],
    "sequence mean, mask, temperature": [
        "--learner.aggregation", "sequence", "--learner.importance", "mask", "--sampling.temperature", "0.7",
    ],
    "fertility, split, over-long masked": [
        "--learner.aggregation", "fertility", "--learner.advantage", "split", "--learner.mask_truncated", "true",
    ],
    "no weight, ddof 0, all groups": [
        "--learner.importance", "none", "--learner.std_ddof", "0", "--learner.drop_zero_variance", "false",
    ],
    "Dr. GRPO": [
        "--learner.aggregation", "constant", "--learner.aggregation_length", "40", "--learner.advantage_std", "false",
        "--learner.dual_clip", "0",
    ],
    "DAPO": [
        "--learner.clip_high", "0.28", "--learner.overlong_limit", "25", "--learner.overlong_buffer", "15",
        "--sampling.max_new_tokens", "30", "--learner.entropy_bonus", "0.01",
    ],
    "GSPO": ["--learner.loss", "gspo", "--learner.aggregation", "sequence", "--learner.clip_low", "0.02"],
    "CISPO": ["--learner.loss", "cispo", "--learner.clip_low", "1", "--learner.clip_high", "0.3"],
    "GDPO": ["--learner.advantage", "decoupled", "--learner.decoupled_parts", '{"quality" = 1.0, "reward" = 0.5}'],
    "against the behaviour, k2": ["--learner.proximal", "behaviour", "--learner.kl_form", "k2"],
    "weighted k1": ["--learner.kl_form", "k1", "--learner.kl_importance", "true"],
}  # fmt: skip


# Behind another policy, so that the ratio lives; and two as in a step of one optimizer step, where it is 1.
CASES = [*((name, True) for name in BATCHES), ("token mean", False), ("GSPO", False)]


def write_losses(out: Path, model: Path, seed: int, order: int) -> None:
    """Writes loss and gradients of the same batch for each of ``CASES``."""
    found, trainer, batch = {}, Trainer(configuration(model)), random_batch(seed, groups=2)
    with torch.no_grad():
        for parameter in trainer.policy.parameters():
            parameter.mul_(1.05)  # so that the policy is not its reference
    for name, shift in CASES:
        config = configuration(model, *BATCHES[name], "--learner.microbatch_tokens", "100")
        trainer._config, trainer._objective = config.learner, make_objective(config.learner)
        for policy in (trainer.policy, trainer.reference.copy):
            assert policy is not None
            policy.temperature = config.sampling.temperature
        samples, languages = group_samples(batch, config.learner)
        np.random.default_rng(order).shuffle(samples)
        minibatch = trainer.divide(samples)
        if shift:
            some = [trainer._pack(members) for members in minibatch.micro_batches()]
            logp = trainer._logp(minibatch)
            minibatch.old_logp = [_shifted(one, part.targets_R) for one, part in zip(logp, some, strict=True)]
        sums = trainer.backward(minibatch, make_axes(samples, batch, languages, 3)).sums
        found[name, shift] = {"loss": float(sums["loss"].sum()), "gradients": full_gradients(trainer)}
        trainer.optimizer.zero_grad()
    torch.save(found, out.with_name(f"{out.name}-{torch.distributed.get_rank()}"))


def test_loss_and_gradient_of_a_batch_match_float64_code(tiny_policy: Path, tmp_path: Path, seed: int) -> None:
    """On one rank and on two, in several micro-batches each."""
    for ranks in (1, 2):
        assert run_ranks(ranks, write_losses, tmp_path / str(ranks), tiny_policy, seed, ranks) == [0] * ranks
    found = [torch.load(tmp_path / f"{ranks}-0") for ranks in (1, 2)]
    reference = AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float64)
    policy = AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float64)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.05)  # as write_losses does
    for case in CASES:
        policy.zero_grad()
        config = configuration(tiny_policy, *BATCHES[case[0]])
        loss = reference_loss(policy, reference, random_batch(seed, groups=2), config, case[1])
        loss.backward()
        wanted = {weight: one.grad for weight, one in policy.named_parameters() if one.grad is not None}
        largest = max(gradient.norm() for gradient in wanted.values())
        for ours in found:
            value, gradients = ours[case].values()
            assert value == pytest.approx(loss.item(), rel=1e-5, abs=1e-5), case  # terms of order 1 cancel
            assert wanted.keys() == gradients.keys()
            for weight, gradient in wanted.items():
                difference = (gradients[weight] - gradient).norm()
                assert difference <= 1e-5 * max(gradient.norm(), 0.1 * largest), (case, weight)
