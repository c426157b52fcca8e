"""The published losses as recipes: each trains a small random model for some steps, without engines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from common.config import load
from learner.train.trainer import Trainer
from tests.support.train_once import random_batch, run_ranks

RECIPES = Path(__file__).parents[3] / "configs" / "recipes"
NAMES = ("dapo", "dr-grpo", "gspo", "cispo", "gdpo")
# Sizes alone: everything that a recipe says about its loss stays.
SMALL = [
    "--learner.groups_per_step", "16", "--learner.param_dtype", "float32", "--learner.lr", "1e-3",
    "--learner.warmup_steps", "0", "--learner.activation_checkpointing", "false",
]  # fmt: skip


def train(out: Path, model: Path, seed: int) -> None:
    rng, found = np.random.default_rng(seed), {}
    batch = random_batch(seed, groups=5)
    for group in batch:
        for n, one in enumerate(group.rollouts):
            score = one.score.model_copy(update={"terms": {"math": float(rng.random())}})
            group.rollouts[n] = one.model_copy(update={"score": score})
    for name in NAMES:
        config = load([str(RECIPES / f"{name}.toml"), "--model.path", str(model), *SMALL])
        trainer = Trainer(config)
        results = [trainer.step(batch, number) for number in range(2)]
        found[name] = [
            [result.problem, result.grad_norm, result.means["entropy"], result.means["clip_share"]]
            for result in results
        ]
    out.write_text(json.dumps(found))


def test_every_recipe_takes_steps(tiny_policy: Path, tmp_path: Path, seed: int) -> None:
    assert run_ranks(1, train, tmp_path / "found", tiny_policy, seed) == [0]
    for name, steps in json.loads((tmp_path / "found").read_text()).items():
        problems, norms, entropies, clipped = zip(*steps, strict=True)
        assert not any(problems) and all(norm > 0 for norm in norms), name
        assert len(set(entropies)) == len(steps), f"{name}: the policy has not changed"
        if name == "gspo":  # with its narrow bounds
            assert max(clipped) > 0, "several optimizer steps move the ratio past its bounds"


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_holds_its_loss(name: str) -> None:
    learner = load([str(RECIPES / f"{name}.toml")]).learner
    assert learner.minibatches > 1 and learner.staleness == 0 and learner.importance == "none"
    assert (learner.loss, learner.aggregation, learner.advantage, bool(learner.refill)) == {
        "dapo": ("ppo", "token", "gated", True),
        "dr-grpo": ("ppo", "constant", "gated", False),
        "gspo": ("gspo", "sequence", "gated", False),
        "cispo": ("cispo", "token", "gated", False),
        "gdpo": ("ppo", "token", "decoupled", False),
    }[name]
