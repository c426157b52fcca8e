"""Random rollouts and small pieces of work."""

from __future__ import annotations

import numpy as np

from common import wire

LANGUAGES = ("en", "de", "zh")


def part_languages(generator: np.random.Generator) -> wire.PartLanguages:
    lines = bool(generator.random() < 0.7)
    return wire.PartLanguages(
        consistent=bool(generator.random() < 0.7),
        lines=lines,
        words=bool(generator.random() < 0.7) if lines else None,
        switches=bool(generator.random() < 0.3),
    )


def random_rollout(generator: np.random.Generator, *, reward: float | None = None, version: int = 0) -> wire.Rollout:
    prompt, response = generator.integers(2, 20), generator.integers(1, 30)
    compliant = reward is not None or bool(generator.random() < 0.7)
    return wire.Rollout(
        language=str(generator.choice(LANGUAGES)),
        prompt_ids=generator.integers(3, 320, prompt).astype(np.int32),
        response_ids=generator.integers(3, 320, response).astype(np.int32),
        logprobs=(-generator.random(response) * 6).astype(np.float32),
        versions=np.full(response, version, np.int32),
        truncated=bool(generator.random() < 0.2),
        text="",
        score=wire.Score(
            reward=float(generator.random()) * compliant if reward is None else reward,
            quality=0.5,
            similarity=0.5,
            compliant=compliant,
            detected="en",
            thought_languages=part_languages(generator),
            final_languages=part_languages(generator),
        ),
    )


def question(index: int = 0, language: str = "en") -> wire.Question:
    return wire.Question(
        index=index,
        messages=[wire.Chat(role="user", content="What is the capital of France?")],
        reference="The capital of France is Paris.",
        language=language,
        topics=["General Knowledge"],
        regions=[],
    )


def work(sequence: int, languages: list[str], *, name: str = "train", greedy: bool = False) -> wire.Work:
    return wire.Work(
        id=f"{name}-{sequence}",
        question=question(sequence),
        languages=languages,
        propensities=[1.0] * len(languages),
        router_version=0,
        policy_version=0,
        greedy=greedy,
    )
