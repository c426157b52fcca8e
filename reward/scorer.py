"""The reward of answers, many requests at a time."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.config import ModelConfig, RewardConfig
from common.header import Header
from common.languages import POLICY_CHOOSES, code_of
from common.wire import Score, ScoreRequest
from reward.calibration.drift import Drift
from reward.calibration.files import Calibration, Quantiles, quantile_path
from reward.embedder import Embedder
from reward.gate import LanguageGate
from reward.terms import text as terms
from reward.terms.math import MathVerifier

logger = logging.getLogger("reward")

_HEADER = ModelConfig().header
_MAX_CHARACTERS = 100_000  # read of an answer; what follows is not scored


@dataclass(frozen=True)
class _Answer:
    """One answer of a request, made ready for the encoder and the gate."""

    request: ScoreRequest
    text: str  # what is scored: without the thinking part
    span: str  # what the language gate reads
    asked: str  # language code; of its header where none was asked for, "" where that names none
    selection: dict[str, float]  # whether that header is well formed; empty without one
    truncated: bool


class Scorer:
    """reward = quality where the answer is in the language asked of it, or chosen in its header, else 0.

    The quality is clip(sum(w v) / sum(w) - sum(p v), 0, 1) over the terms of the question's topic: w the weights of
    those that reward, p of the two that punish, v their values in [0, 1].

    Args:
        config: of the service.
        languages: of the run; what ``reward.gate_active_only`` chooses among, beside the language asked for.
        cache_file: where reference embeddings are kept; None: nowhere.
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
        self._config, self._languages, self._header = config, frozenset(languages), Header(header, languages)
        self.calibrate = Calibration.load(
            config.calibration_mode,
            config.calibration,
            config.calibration_weight,
            config.calibration_shrink,
            config.similarity_range,
        )
        offline = quantile_path(config.calibration) if config.calibration else None
        self._drift = Drift(Quantiles.read(offline) if offline and offline.exists() else None, config.drift_warning)
        self._topics: dict[str, dict[str, float]] = {"default": {"similarity": 1.0}}
        self._topics |= {
            topic: {str(name): weight for name, weight in weights.items()} for topic, weights in config.terms.items()
        }
        self._verifiers: dict[str, terms.Verifier] = {"exact": terms.exact, "contains": terms.contains}
        if any("math" in weights for weights in config.terms.values()):
            self._verifiers["math"] = MathVerifier()
        self._gate = LanguageGate(config.language_model, config.gate_piece, config.gate_min_probability)
        self._embedder = Embedder(config.embedder, config.device, config.cache_entries, config.batch_tokens, cache_file)
        self.counts: Counter[str] = Counter()  # answers scored, odd ones by kind, and what the encoder did

    def warm_up(self) -> None:
        """Loads what loads lazily, so that the first request is as fast as the others."""
        texts = ["The capital of Japan is Tokyo.", "日本の首都は東京です。", "one " * 1000]
        self._embedder.embed(texts)
        self._gate.detect(texts)

    def save(self) -> None:
        self._embedder.save()

    def score(self, requests: Sequence[ScoreRequest]) -> list[list[Score]]:
        """Scores the answers of all requests as one batch.

        Returns:
            For each request, the scores of its answers in their order. What else is in the batch changes them by no
            more than floating-point rounding.

        Raises:
            ValueError: a request is inconsistent.
        """
        for request in requests:
            _check(request)
        answers = [answer for request in requests for answer in self._prepared(request)]
        if not answers:
            return [[] for _ in requests]
        references = self._embedder.embed_references([_encodable(request.reference).strip() for request in requests])
        owners = np.repeat(np.arange(len(requests)), [len(request.answers) for request in requests])
        similarities = np.einsum("nd,nd->n", self._embedder.embed([a.text for a in answers]), references[owners])
        rows = iter(zip(answers, self._detect(answers), similarities.clip(-1, 1).tolist(), strict=True))
        scores = [[self._score(*next(rows)) for _ in request.answers] for request in requests]
        self.counts["answers"] += len(answers)
        self.counts |= self._embedder.counts  # the larger of each, and they only grow
        return scores

    def _prepared(self, request: ScoreRequest) -> list[_Answer]:
        prepared = []
        truncated = request.truncated or [False] * len(request.answers)
        for raw, language, cut in zip(request.answers, request.languages, truncated, strict=True):
            text = _encodable(raw)
            self.counts["unencodable"] += text != raw
            self.counts["over_long"] += len(text) > _MAX_CHARACTERS
            text = text[:_MAX_CHARACTERS].strip()
            asked, selection = language, dict[str, float]()
            if language == POLICY_CHOOSES:
                asked, well_formed, end = self._header.parse(text)
                text, selection = text[end:].strip(), {"selection": float(well_formed)}
            thinking, answer = terms.split_thinking(text)
            span = {"all": text, "thinking": thinking, "answer": answer}[self._config.gate_span]
            prepared.append(_Answer(request, answer, span, asked and code_of(asked), selection, cut))
        return prepared

    def _detect(self, answers: Sequence[_Answer]) -> list[str]:
        spans = [answer.span for answer in answers]
        if self._config.gate_active_only:
            return self._gate.detect(spans, [self._languages | {answer.asked} for answer in answers])
        return self._gate.detect(spans)

    def _score(self, answer: _Answer, detected: str, similarity: float) -> Score:
        request, asked = answer.request, answer.asked
        odd = "empty" if not answer.text else "" if math.isfinite(similarity) else "not_finite"
        if odd:  # there is nothing to be worth anything, whatever the terms say
            self.counts[odd] += 1
            nothing = Score(reward=0.0, quality=0.0, similarity=0.0, compliant=False, detected=detected)
            compliant = bool(answer.text and asked) and detected == asked
            return nothing.model_copy(update={"compliant": compliant, "language": asked, "terms": answer.selection})
        compliant = bool(asked) and detected == asked
        if len(answer.span) < self._config.gate_short_characters:
            self.counts["short"] += 1
            compliant = {"detect": compliant, "pass": bool(asked), "fail": False}[self._config.gate_short]
        self.counts["no_language"] += not detected
        self.counts["not_compliant"] += not compliant
        language, other = code_of(request.reference_language), detected or asked
        self.counts["uncalibrated"] += not self.calibrate.knows(language, other)
        drift = self._drift.observe(similarity, language, other) if compliant else 0.0
        values = self._values(answer, self.calibrate(similarity, language, other))
        quality = self._quality(values, self._weights(request))
        return Score(
            reward=quality if compliant else 0.0,
            quality=quality,
            similarity=similarity,
            compliant=compliant,
            detected=detected,
            language=asked,
            terms=values | answer.selection,
            drift=drift,
        )

    def _weights(self, request: ScoreRequest) -> dict[str, float]:
        topic = next((topic for topic in request.topics if topic in self._topics), "default")
        return self._topics[topic]

    def _values(self, answer: _Answer, similarity: float) -> dict[str, float]:
        request, values = answer.request, {}
        accepted = request.accepted or [request.reference]
        for name in self._weights(request):
            if name == "similarity":
                values[name] = similarity
            elif name == "repetition":
                values[name] = terms.repetition(answer.text)
            elif name == "truncation":
                values[name] = float(answer.truncated)
            else:
                values[name] = self._verifiers[name](answer.text, accepted)
        return values

    @staticmethod
    def _quality(values: dict[str, float], weights: dict[str, float]) -> float:
        rewards = {name: weight for name, weight in weights.items() if name not in ("repetition", "truncation")}
        earned = sum(weight * values[name] for name, weight in rewards.items()) / sum(rewards.values())
        lost = sum(weight * values[name] for name, weight in weights.items() if name not in rewards)
        return min(1.0, max(0.0, earned - lost))


def _encodable(text: str) -> str:
    """The text with a question mark for each lone surrogate, which no encoding has."""
    return text.encode("utf-8", "replace").decode()


def _check(request: ScoreRequest) -> None:
    if len(request.answers) != len(request.languages):
        raise ValueError(f"{len(request.answers)} answers, but {len(request.languages)} languages asked of them")
    if request.truncated and len(request.truncated) != len(request.answers):
        raise ValueError(f"{len(request.answers)} answers, but {len(request.truncated)} marks of truncation")
    if not request.reference.strip():
        raise ValueError("the reference is empty: nothing can be similar to it")
    for language in {request.reference_language, *(one for one in request.languages if one != POLICY_CHOOSES)}:
        code_of(language)
