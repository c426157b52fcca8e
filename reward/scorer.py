"""Scores answers, many requests at a time. It calls each step in order and decides nothing itself.

common/answer.py        what of an answer is read
reward/gate.py          whether the answer is in the language asked of it
reward/embedder.py      how similar the answer is to the reference
reward/calibration/     what this similarity is worth for the pair of languages
reward/terms/           the quality of the answer
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from common.answer import ODDITIES, Answer, read_answer, replace_surrogates
from common.config import ModelConfig, RewardConfig
from common.header import Header
from common.languages import POLICY_CHOOSES, code_of
from common.prose import without_code
from common.wire import Score, ScoreRequest
from reward.calibration.drift import Drift
from reward.calibration.files import Quantiles, quantile_path
from reward.calibration.formulas import Calibration
from reward.embedder import Embedder
from reward.gate import ComplianceGate, Decision
from reward.references import ReferenceCache
from reward.terms.quality import QualityTerms
from reward.terms.registry import TermInput

logger = logging.getLogger("reward")

_HEADER = ModelConfig().header


class Scorer:
    """Gives each answer a reward: its quality where it is compliant, otherwise 0.

    An answer is compliant when it is in the language asked of it, or, where the policy chose the language, in the one
    that its header names. The quality is made of the terms of the question's topic (:mod:`reward.terms.quality`).

    ``counts`` holds how many answers were scored, how many were odd by kind (``empty``, ``not_finite``, ``short``,
    ``no_language``, ``not_compliant``, ``uncalibrated``, ``unencodable``, ``over_long``), and the counters of the
    embedder and of the reference cache.

    Args:
        config: the section ``reward``.
        languages: codes of the languages of the run. The gate chooses among these and the language asked for when
            ``reward.gate_active_only`` is set, and headers may name only these.
        cache_file: where reference embeddings are kept between two starts. None: nowhere.
        header: template of what an answer begins with where the policy chose its language.

    Raises:
        FatalError: a model cannot be loaded, or a term's package is missing.
        ConfigError: a calibration file is missing or malformed.
    """

    def __init__(
        self,
        config: RewardConfig,
        languages: Collection[str] = (),
        cache_file: Path | None = None,
        header: str = _HEADER,
    ) -> None:
        self._header = Header(header, languages)
        self.calibrate = Calibration.load(
            config.calibration_mode,
            config.calibration,
            config.calibration_weight,
            config.calibration_shrink,
            config.similarity_range,
        )
        offline = quantile_path(config.calibration) if config.calibration else None
        self._drift = Drift(Quantiles.read(offline) if offline and offline.exists() else None, config.drift_warning)
        self._terms = QualityTerms(config.terms)
        self._gate = ComplianceGate(config, languages)
        self._embedder = Embedder(config.embedder, config.device, config.batch_tokens)
        self._references = ReferenceCache(self._embedder, config.cache_entries, cache_file)
        self.counts: Counter[str] = Counter()

    def warm_up(self) -> None:
        """Runs everything once that loads lazily, so that the first request is as fast as the others."""
        texts = ["The capital of Japan is Tokyo.", "日本の首都は東京です。", "one " * 1000]
        self._embedder.embed(texts)
        self._gate.decide([read_answer(text, "en") for text in texts], [True] * len(texts))

    def save(self) -> None:
        """Writes the reference embeddings to their file."""
        self._references.save()

    def score(self, requests: Sequence[ScoreRequest]) -> list[list[Score]]:
        """Scores the answers of all requests as one batch. Blocks until they are scored.

        Returns:
            For each request, the scores of its answers in their order. They do not depend on what else is in the batch,
            apart from floating-point rounding.

        Raises:
            ValueError: a request is inconsistent.
        """
        for request in requests:
            _check(request)
        rows = [(request, answer) for request in requests for answer in self._read(request)]
        if not rows:
            return [[] for _ in requests]
        answers = [answer for _, answer in rows]
        references = self._references.embed([_reference(request) for request in requests])
        owners = np.repeat(np.arange(len(requests)), [len(request.answers) for request in requests])
        similarities = np.einsum(
            "nd,nd->n", self._embedder.embed([without_code(a.rewarded) for a in answers]), references[owners]
        )
        similarity_earns = ["similarity" in self._terms.weights_of(request.topics) for request, _ in rows]
        decisions = self._gate.decide(answers, similarity_earns)
        scored = iter(
            self._score(request, answer, decision, similarity)
            for (request, answer), decision, similarity in zip(
                rows, decisions, similarities.clip(-1, 1).tolist(), strict=True
            )
        )
        scores = [[next(scored) for _ in request.answers] for request in requests]
        self.counts["answers"] += len(answers)
        # These counters only grow, so the larger value of each is the newer one.
        self.counts |= self._embedder.counts
        self.counts |= self._references.counts
        return scores

    def _read(self, request: ScoreRequest) -> list[Answer]:
        truncated = request.truncated or [False] * len(request.answers)
        rows = zip(request.answers, request.languages, truncated, strict=True)
        opened = request.thinking_opened
        answers = [read_answer(raw, language, cut, self._header, opened) for raw, language, cut in rows]
        for name in ODDITIES:
            self.counts[name] += sum(name in answer.oddities for answer in answers)
        return answers

    def _score(self, request: ScoreRequest, answer: Answer, decision: Decision, similarity: float) -> Score:
        problem = "empty" if not answer.rewarded else "" if math.isfinite(similarity) else "not_finite"
        if problem:  # nothing was said, or it cannot be compared: the answer is worth nothing, whatever the terms are
            self.counts[problem] += 1
            return Score(
                reward=0.0,
                quality=0.0,
                similarity=0.0,
                compliant=bool(answer.rewarded) and decision.compliant,
                detected=decision.detected,
                language=answer.asked,
                terms=answer.selection,
            )
        if decision.short:
            self.counts["short"] += 1
        self.counts["no_language"] += not decision.detected
        self.counts["not_compliant"] += not decision.compliant
        language, other = code_of(request.reference_language), decision.detected or answer.asked
        self.counts["uncalibrated"] += not self.calibrate.knows(language, other)
        drift = self._drift.observe(similarity, language, other) if decision.compliant else 0.0
        accepted = request.accepted or [request.reference]
        calibrated = self.calibrate(similarity, language, other)
        given = TermInput(answer.rewarded, accepted, calibrated, answer.truncated)
        values, quality = self._terms.evaluate(given, request.topics)
        return Score(
            reward=quality if decision.compliant else 0.0,
            quality=quality,
            similarity=similarity,
            compliant=decision.compliant,
            detected=decision.detected,
            language=answer.asked,
            terms=values | answer.selection,
            drift=drift,
        )


def _reference(request: ScoreRequest) -> str:
    """What answers are compared with: without code, as they are, unless it is nothing but code."""
    text = replace_surrogates(request.reference).strip()
    return without_code(text).strip() or text


def _check(request: ScoreRequest) -> None:
    """Raises ValueError when a request is inconsistent."""
    if len(request.answers) != len(request.languages):
        raise ValueError(f"the request has {len(request.answers)} answers, but {len(request.languages)} languages")
    if request.truncated and len(request.truncated) != len(request.answers):
        raise ValueError(f"the request has {len(request.answers)} answers, but {len(request.truncated)} in `truncated`")
    if not request.reference.strip():
        raise ValueError("the reference is empty, so nothing can be similar to it")
    for language in {request.reference_language, *(one for one in request.languages if one != POLICY_CHOOSES)}:
        code_of(language)
