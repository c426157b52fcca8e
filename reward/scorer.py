"""The reward of answers, many requests at a time."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from common.config import Reward
from common.languages import code_of
from common.wire import Score, ScoreRequest
from reward.calibration import MeanCalibration, PairStatistics, on_scale
from reward.gate import LanguageGate
from reward.similarity import Embedder

logger = logging.getLogger("reward")


class Scorer:
    """reward = quality where the answer is in the language asked of it, else 0.

    Raises:
        FatalError: a model cannot be loaded.
        ConfigError: the calibration file is missing or malformed.
    """

    def __init__(self, config: Reward) -> None:
        statistics = PairStatistics.read(config.calibration) if config.calibration else PairStatistics({})
        self._calibrate = MeanCalibration(statistics, config.calibration_weight, config.calibration_shrink)
        self._range = config.similarity_range
        self._gate = LanguageGate(config.language_model)
        self._embedder = Embedder(config.embedder, config.device, config.cache_entries)

    def warm_up(self) -> None:
        """Loads what loads lazily, so that the first request is as fast as the others."""
        self._embedder.embed(["The capital of Japan is Tokyo.", "日本の首都は東京です。"])
        self._gate.detect(["The capital of Japan is Tokyo."])

    def score(self, requests: Sequence[ScoreRequest]) -> list[list[Score]]:
        """Scores the answers of all requests as one batch.

        Returns:
            For each request, the scores of its answers in their order. What else is in the batch changes them by no
            more than floating-point rounding.

        Raises:
            ValueError: a request is inconsistent, or has no finite similarity.
        """
        for request in requests:
            _check(request)
        answers = [answer.strip() for request in requests for answer in request.answers]
        if not answers:
            return [[] for _ in requests]
        references = self._embedder.embed_references([request.reference.strip() for request in requests])
        owners = np.repeat(np.arange(len(requests)), [len(request.answers) for request in requests])
        similarities = np.einsum("nd,nd->n", self._embedder.embed(answers), references[owners]).clip(-1, 1)
        if not np.isfinite(similarities).all():
            raise ValueError("the embedder gave no finite similarity")
        rows = iter(zip(answers, self._gate.detect(answers), similarities.tolist(), strict=True))
        return [
            [self._score(*next(rows), request.reference_language, asked) for asked in request.languages]
            for request in requests
        ]

    def _score(self, answer: str, detected: str, similarity: float, reference_language: str, asked: str) -> Score:
        if not answer:
            return Score(reward=0.0, quality=0.0, similarity=0.0, compliant=False, detected="")
        compliant = detected == code_of(asked)
        quality = on_scale(self._calibrate(similarity, code_of(reference_language), detected), self._range)
        return Score(
            reward=quality if compliant else 0.0,
            quality=quality,
            similarity=similarity,
            compliant=compliant,
            detected=detected,
        )


def _check(request: ScoreRequest) -> None:
    if len(request.answers) != len(request.languages):
        raise ValueError(f"{len(request.answers)} answers, but {len(request.languages)} languages asked of them")
    if not request.reference.strip():
        raise ValueError("the reference is empty: nothing can be similar to it")
    for language in {request.reference_language, *request.languages}:
        code_of(language)
