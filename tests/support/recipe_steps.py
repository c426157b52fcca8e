"""Three steps of every recipe in one process: hand-made answers, the real reward, and the learner's own trainer.

The engine is the light one's model, with the weights that the trainer publishes after each step. It is given what the
answers say, because a policy with random weights says nothing that could be right, and gives their log-probabilities.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from common import wire
from common.config import Config, load
from common.languages import POLICY_CHOOSES
from common.tokenizer import load_tokenizer
from learner.groups import Group
from learner.train import stages
from learner.train.outcomes import group_outcome, step_advantages
from learner.train.policy import full_weights
from learner.train.step_reward import StepReward
from learner.train.trainer import Trainer
from reward import embedder, gate, lid
from reward.scored import UnscoredError
from reward.scorer import Scorer
from reward.terms import tools
from reward.terms.math import MathVerifier
from scripts.ops.recipes import recipe_files
from tests.support.light.sglang.model import Model

STEPS, GROUPS = 3, 2
_TRIES = 5
_LONGEST = 300  # tokens of an answer that are trained: the context of the small policy ends soon after
OVERLONG = {"limit": 300, "buffer": 200}  # the penalty of DAPO, for answers of such lengths
# Sizes alone: everything that a recipe says about its rewards, advantages and loss stays.
SMALL = [
    "--learner.groups_per_step", "16", "--learner.steps", str(STEPS), "--learner.epochs", "0",
    "--learner.param_dtype", "float32", "--model.dtype", "float32", "--learner.lr", "1e-3",
    "--learner.warmup_steps", "0", "--learner.activation_checkpointing", "false", "--learner.ranks", "1",
    "--router.rollouts", "4", "--reward.embedder", "use",
]  # fmt: skip
OWN_SIZES = {
    "dapo": ["--learner.overlong_limit", str(OVERLONG["limit"]), "--learner.overlong_buffer", str(OVERLONG["buffer"]),
             "--sampling.max_new_tokens", str(OVERLONG["limit"])],
    "hybrid": ["--router.free_rollouts", "2"],
    "mcot": ["--lora.dropout", "0"],  # whose noise would hide from the comparison with the engine that weights agree
}  # fmt: skip

FRENCH = "On multiplie six par sept et on additionne les nombres pas à pas, jusqu'à ce que le résultat soit certain. "
ENGLISH = "We multiply six by seven and add up the numbers step by step, until the result is known for certain. "
RIGHT = "Le nombre que l'on cherche est donc $\\boxed{42}$."
WRONG = RIGHT.replace("42", "41")
RIGHT_ENGLISH = "So the number that is looked for is $\\boxed{42}$."
QUESTION = "Combien font six fois sept ? Écrivez le résultat dans \\boxed{}."
EXTRA = {
    "english_question": "How much is six times seven?", "english_thought": ENGLISH, "english_solution": RIGHT_ENGLISH,
    "english_answer": RIGHT_ENGLISH, "english_reasoning": ENGLISH,
}  # fmt: skip


def header(code: str) -> str:
    return f"<lang_select>\n{code}\n</lang_select>\n"


def monolingual(times: int = 1) -> list[tuple[str, str]]:
    """The language asked for, and an answer: right; right with an English thought; wrong; without an end."""
    return [
        ("fr", f"<think>{FRENCH * times}</think>{RIGHT}"),
        ("fr", f"<think>{ENGLISH * times}</think>{RIGHT}"),
        ("fr", f"<think>{FRENCH * times}</think>{WRONG}"),
        ("fr", f"<think>{FRENCH * times}{RIGHT}"),
    ]


# Right, wrong, right in English, and right but not in the language asked for.
ROUTED = [
    ("fr", f"{FRENCH}{RIGHT}"), ("fr", f"{FRENCH}{WRONG}"), ("en", f"{ENGLISH}{RIGHT_ENGLISH}"),
    ("en", f"{FRENCH}{RIGHT}"),
]  # fmt: skip
# The policy names its language: right twice, wrong, and right with a thought in another language.
CHOSEN = [
    (POLICY_CHOOSES, f"{header('fr')}<think>{FRENCH}</think>{RIGHT}"),
    (POLICY_CHOOSES, f"{header('en')}<think>{ENGLISH}</think>{RIGHT_ENGLISH}"),
    (POLICY_CHOOSES, f"{header('fr')}<think>{FRENCH}</think>{WRONG}"),
    (POLICY_CHOOSES, f"{header('en')}<think>{FRENCH}</think>{RIGHT_ENGLISH}"),
]
# Two answers in languages that the router drew, a right and a wrong one, and two in which the policy chose.
MIXED = [
    ("fr", f"<think>{FRENCH}</think>{RIGHT}"), ("en", f"<think>{ENGLISH}</think>So it is $\\boxed{{41}}$."),
    CHOSEN[0], CHOSEN[3],
]  # fmt: skip
ANSWERS: Mapping[str, list[tuple[str, str]]] = {
    "slc-rl": monolingual(12), "csc": ROUTED, "gdpo": ROUTED, "lrpo": ROUTED, "lrpo-paper": ROUTED, "explang": CHOSEN,
    "hybrid": MIXED,
}  # fmt: skip


def answers_of(name: str) -> list[tuple[str, str]]:
    return ANSWERS.get(name, monolingual())


def judge(request: dict[str, Any]) -> str:
    """A stand-in for the judge of every recipe, by what its prompt asks for."""
    text = request["messages"][-1]["content"]
    if "key intermediate results" in text:
        return "0.75"
    if "Answer A:" in text:
        first, _, second = text.partition("Answer A:")[2].partition("Answer B:")
        return "Let me see.\nA" if "42}" in first and "42}" not in second else "Let me see.\nB"
    return "80" if "42}" in text.partition("another language:")[2] else "20"


def recipe(name: str, model: Path, judges: str, calibration: Path) -> Config:
    """The configuration of a recipe in small."""
    flags = [*SMALL, *OWN_SIZES.get(name, [])]
    given = load([str(recipe_files()[name])])
    if given.reward.judges:
        flags += ["--reward.judges", json.dumps([f"stand-in@{judges}"])]
    if given.reward.calibration is not None:
        flags += ["--reward.calibration", str(calibration)]
    return load([str(recipe_files()[name]), "--model.path", str(model), *flags])


class SharedVerifier(MathVerifier):
    """One worker for all recipes: a process of math-verify takes seconds to start."""

    def __init__(self) -> None:
        super().__init__(workers=1)

    def close(self) -> None:
        """It is ended with the process."""


def requests(answers: Sequence[tuple[str, str]], count: int) -> list[wire.ScoreRequest]:
    languages, texts = zip(*answers, strict=True)
    return [
        wire.ScoreRequest(
            id=number, reference=f"{FRENCH}{RIGHT}", reference_language="fr", accepted=["42"], answers=list(texts),
            languages=list(languages), messages=[wire.Chat(role="user", content=QUESTION)], extra=EXTRA, row=number,
        )
        for number in range(count)
    ]  # fmt: skip


class Engine:
    """What an engine would have sent: the answers as tokens, with their log-probabilities."""

    def __init__(self, model: Path) -> None:
        self._model, self._tokenizer = Model(model), load_tokenizer(str(model))
        self._prompt = self._tokenizer.encode(QUESTION)[:40]

    def take(self, trainer: Trainer) -> None:
        for name, value in full_weights(trainer.policy):
            self._model.replace(name, value)

    @torch.no_grad()
    def rollouts(self, texts: Sequence[str], scores: Sequence[wire.Score], temperature: float) -> list[wire.Rollout]:
        tokens = [self._tokenizer.encode(text)[-_LONGEST:] for text in texts]
        tables = self._model.logits([[*self._prompt, *one] for one in tokens]) / temperature
        found = []
        for text, ids, score, table in zip(texts, tokens, scores, tables, strict=True):
            begin = len(self._prompt) - 1
            logp = table[begin : begin + len(ids)].log_softmax(-1)[range(len(ids)), ids]
            found.append(
                wire.Rollout(
                    language=score.language, prompt_ids=np.array(self._prompt, np.int32),
                    response_ids=np.array(ids, np.int32), logprobs=logp.numpy().astype(np.float32),
                    versions=np.zeros(len(ids), np.int32), truncated=False, text=text, score=score,
                    header=len(self._tokenizer.encode(header("fr"))) if text.startswith("<lang") else 0,
                )
            )  # fmt: skip
        return found


def score(scorer: Scorer, asked: list[wire.ScoreRequest]) -> list[list[wire.Score]]:
    """As an actor does: a group that cannot be scored now is scored again.

    The verifier, which has one worker here, has a time limit: of an answer that it was not done with by then nothing is
    known, and that says nothing of the recipe.
    """
    for left in reversed(range(_TRIES)):
        try:
            return scorer.score(asked)
        except UnscoredError:
            if not left:
                raise
    raise AssertionError("there is at least one try")


def train_recipe(config: Config, answers: Sequence[tuple[str, str]], model: Path) -> list[dict[str, Any]]:
    """Of each step what the first group earned, its advantages, and what the trainer says."""
    learner, engine = config.learner, Engine(model)
    scorer = Scorer(config.reward, config.run.languages, header=config.model.header)
    try:
        scored = score(scorer, requests(answers, GROUPS))
    finally:
        scorer.close()
    trainer = Trainer(config)
    term = StepReward(learner.step_reward, STEPS) if learner.step_reward else None
    shares: Mapping[str, float] = {}
    state: dict[str, Any] = {}
    languages, texts = zip(*answers, strict=True)
    steps = []
    for number in range(STEPS):
        engine.take(trainer)
        batch = [
            Group(work=work(index, list(languages)), actor="light",
                  rollouts=engine.rollouts(texts, scores, config.sampling.temperature))
            for index, scores in enumerate(scored)
        ]  # fmt: skip
        batch, shares = stages.stage_rewards(batch, learner.stage(number), shares)
        if term is not None:
            batch, state = term(batch, number, state)
        result = trainer.step(batch, number)
        first = batch[0].rollouts
        steps.append({
            "rewards": [one.score.reward for one in first], "terms": [one.score.terms for one in first],
            "similarities": [one.score.similarity for one in first],
            "compliant": [one.score.compliant for one in first], "lengths": [len(one.response_ids) for one in first],
            "advantages": step_advantages(batch, learner)[0].tolist(), "outcome": group_outcome(batch[0], learner),
            "problem": result.problem, "grad_norm": result.grad_norm, "entropy": result.means["entropy"],
            "mismatch": result.means["mismatch"], "clip_share": result.means["clip_share"],
        })  # fmt: skip
    return steps


def work(index: int, languages: list[str]) -> wire.Work:
    question = wire.Question(
        index=index, messages=[wire.Chat(role="user", content=QUESTION)], reference=RIGHT, language="fr",
        topics=["Reasoning / Logic"], regions=[], accepted=["42"], extra=EXTRA,
    )  # fmt: skip
    ones = [1.0] * len(languages)
    return wire.Work(f"train-{index}", question, languages, ones, router_version=0, policy_version=0, greedy=False)


def train_recipes(out: Path, model: Path, judges: str, calibration: Path, names: Sequence[str]) -> None:
    """Writes what :func:`train_recipe` finds of each recipe."""
    shared = SharedVerifier()  # and each model is loaded once, which takes a second
    try:
        with (
            patch.object(tools, "MathVerifier", lambda: shared),
            patch.object(embedder, "_load_model", cache(embedder._load_model)),
            patch.object(gate, "LanguageModel", cache(lid.LanguageModel)),
        ):
            found = {
                name: train_recipe(recipe(name, model, judges, calibration), answers_of(name), model) for name in names
            }
    finally:
        MathVerifier.close(shared)  # its threads would keep the process
    out.write_text(json.dumps(found))
