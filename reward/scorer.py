"""Scores answers, many requests at a time. It calls each step in order; what a step decides stands in its own file.

common/answer.py         what of an answer is read
reward/gate.py           whether the answer is in the language asked of it
reward/detectors.py      which languages its thought and its final answer are in, for the diagnostics
reward/embedder.py       how similar the answer is to the reference
reward/calibration/      what this similarity is worth for the pair of languages
reward/terms/            the quality of the answer: terms by topic, or a function of the user's own
reward/worth.py          what the answer is worth, and when a group is scored again

Three kinds of work run side by side: the caller's thread reads and tokenises a batch while the batch before it is
embedded in a second thread; a third one identifies languages; and an event loop waits for judges, verifiers and reward
functions, each group by itself.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from common.answer import ODDITIES, Answer, read_answer, replace_surrogates
from common.config import Config, ModelConfig, RewardConfig
from common.header import Header
from common.languages import POLICY_CHOOSES, code_of
from common.process import FatalError
from common.prose import without_code
from common.sparse_log import is_logged
from common.wire import Score, ScoreRequest
from reward.batching import each_or_error
from reward.calibration.drift import Drift
from reward.calibration.files import Pair, Quantiles, pair_of, quantile_path, warning_of_dtype
from reward.calibration.formulas import Calibration
from reward.detectors import Detector, diagnose, make_detector
from reward.encoder_languages import warning_of_languages
from reward.gate import ComplianceGate, Decision, check_languages
from reward.liveness import Liveness
from reward.scored import ScoredAnswer, UnscoredError
from reward.terms.custom import CustomReward
from reward.terms.inputs import TermInput
from reward.terms.quality import QualityTerms, Valued
from reward.terms.tools import Tools
from reward.waits import WaitingThread
from reward.worth import Worth, says_nothing

if TYPE_CHECKING:  # torch and transformers take seconds to import, and a run without similarities needs neither
    from reward.embedder import Embedder, TokenisedTexts, Vectors
    from reward.references import ReferenceCache

logger = logging.getLogger("reward")

_T = TypeVar("_T")

_REPLY_S, _REPLY_SHARE = 2.0, 0.1  # of the time that is left, for the reply that a reward function has not ended

_HEADER = ModelConfig().header


@dataclass(frozen=True)
class _Embedded:
    """The embeddings of one request's answers, [K, dimension], and their K cosine similarities to the reference."""

    vectors: Vectors
    similarities: list[float]


@dataclass(frozen=True)
class _Job:
    """One request whose answers have been read."""

    request: ScoreRequest
    answers: list[Answer]


class Scorer:
    """Gives each answer a reward: its quality where it is compliant, otherwise 0.

    An answer is compliant when it is in the language asked of it, or, where the policy chose the language, in the one
    that its header names. The quality is made of the terms of the question's topic (:mod:`reward.terms.quality`), or of
    the parts that ``reward.function`` returns (:mod:`reward.terms.custom`). ``reward.gated`` and ``reward.bounded``
    switch the gate and the bounds of the quality off.

    ``counts`` holds how many answers were scored, how many were odd by kind (``empty``, ``not_finite``, ``short``,
    ``no_language``, ``not_compliant``, ``uncalibrated``, ``unencodable``, ``over_long``, ``unscored``), how many groups
    were ``handed_back``, how many calls of a reward function had not ended at their deadline (``function_hung``), and
    the counters of the embedder, of the reference cache and of the judges. An ``empty``
    answer is not counted as ``short``, ``no_language`` or ``not_compliant``, too.

    Args:
        config: the section ``reward``.
        languages: codes of the languages of the run. The gate chooses among these and the language asked for when
            ``reward.gate_active_only`` is set, and headers may name only these.
        directory: where reference embeddings and judgements are kept between two starts. None: nowhere.
        header: template of what an answer begins with where the policy chose its language.

    Raises:
        FatalError: a model cannot be loaded, or a term's package is missing.
        ConfigError: a calibration file is missing or malformed, a term is unknown, or the function cannot be loaded.
    """

    def __init__(
        self,
        config: RewardConfig,
        languages: Collection[str] = (),
        directory: Path | None = None,
        header: str = _HEADER,
    ) -> None:
        self._config, self._header = config, Header(header, languages)
        self.calibrate = Calibration.load(
            config.calibration_mode,
            config.calibration,
            config.calibration_weight,
            config.calibration_shrink,
            config.similarity_range,
        )
        offline = quantile_path(config.calibration) if config.calibration else None
        self._drift = Drift(Quantiles.read(offline) if offline and offline.exists() else None, config.drift_warning)
        judgements = directory / f"judgements-{config.replica}.sqlite" if directory is not None else None
        self._tools = Tools(config, self.calibrate, self._embed_for_tools, judgements, languages)
        self._custom = CustomReward(config.function, config.parts, config.is_bounded) if config.function else None
        self._terms = None if self._custom is not None else QualityTerms(config.terms, self._tools, config.is_bounded)
        self._gate, self._worth = ComplianceGate(config, languages), Worth(config)
        self._detector: Detector | None = None
        if config.diagnostics != "off":
            self._detector = make_detector(config.diagnostics, self._gate, {*languages, "en"})
            if unknown := sorted(code for code in languages if not self._detector.knows(code)):
                logger.warning("%s does not know %s: these have no diagnostics", config.diagnostics, ", ".join(unknown))
        self._directory = directory
        self._encoder_lock = threading.Lock()
        self._encoder: tuple[Embedder, ReferenceCache] | None = None
        self.liveness = Liveness()
        self.counts: Counter[str] = Counter()  # changed in the event loop alone
        self._waits = WaitingThread()
        self._embedding = ThreadPoolExecutor(1, "embedding")
        self._gating = ThreadPoolExecutor(1, "gating")
        self._newest: Future[list[_Embedded | Exception]] | None = None
        if self._needs_embeddings:
            if warning := warning_of_languages(config, languages):
                logger.warning("%s", warning)
            self._load_encoder()

    def warm_up(self) -> None:
        """Loads what is otherwise loaded when it is first used, so that the first request is as fast as the others."""
        texts = ["The capital of Japan is Tokyo.", "日本の首都は東京です。", "one " * 1000]
        if self._needs_embeddings:
            self._load_encoder()[0].embed(texts)
        self._gate.decide([read_answer(text, "en") for text in texts], [True] * len(texts))

    def check_languages(self, config: Config) -> None:
        """Says in the log which languages of a run cannot be checked.

        Raises:
            ConfigError: the reward is gated, and that is not by ``reward.unchecked`` the user's choice.
        """
        if warning := check_languages(config, self._gate.knows):
            logger.warning("%s", warning)

    def close(self) -> None:
        """Ends threads, processes and connections. Blocks for at most a few seconds."""
        with suppress(TimeoutError):
            self._waits.start(self._tools.close()).result(5)
        self._waits.close()
        for executor in (self._embedding, self._gating):
            executor.shutdown(wait=False, cancel_futures=True)
        if self._encoder is not None:
            self._encoder[1].close()

    def score(self, requests: Sequence[ScoreRequest]) -> list[list[Score]]:
        """Scores the answers of all requests as one batch. Blocks until they are scored.

        Returns:
            For each request, the scores of its answers in their order. They do not depend on what else is in the batch,
            apart from floating-point rounding.

        Raises:
            ValueError: a request is inconsistent, or a reward function failed on it.
            UnscoredError: more than ``reward.missing_max`` of a request's answers could not be scored.
        """
        return [[one.score for one in scored.result()] for scored in self.begin(requests)]

    def begin(self, requests: Sequence[ScoreRequest]) -> list[Future[list[ScoredAnswer]]]:
        """Begins to score a batch. Blocks until the batch before it is embedded; one thread at a time may call it.

        Returns:
            For each request the answers as they will be scored, in their order, within ``deadline_s`` of the request. A
            future raises what :meth:`score` does, and TimeoutError.
        """
        with self.liveness.step():
            read = [self._read(request) for request in requests]
            jobs = [one for one in read if isinstance(one, _Job)]
            decided = self._gating.submit(self._decide, jobs)
            embedded: Future[list[_Embedded | Exception]] | None = None
            if self._needs_embeddings and jobs:
                tokenised = self._tokenise(jobs)
                if self._newest is not None:
                    self._newest.exception()  # waits
                embedded = self._newest = self._embedding.submit(self._embed, jobs, tokenised)
        futures, number = list[Future[list[ScoredAnswer]]](), 0
        for one in read:
            if isinstance(one, _Job):
                futures.append(self._waits.start(self._finish(one, number, decided, embedded)))
                number += 1
            else:
                futures.append(_failed(one))
        return futures

    def busy_s(self) -> float:
        """Seconds in which batches were read, judged for their language or embedded."""
        return self.liveness.busy_s()

    def stalled_s(self) -> float:
        """For how many seconds the work has made no progress; see ``Healthy.stalled_s``."""
        hung_s = self._custom.stalled_s() if self._custom is not None else 0.0
        return max(self.liveness.stalled_s(), self._waits.stalled_s(), hung_s)

    def check(self) -> None:
        """Checks that requests are still answered, and warns where a reward function holds them up. Does not block.

        Raises:
            FatalError: the thread that waits for reward functions and judges died: no request would be answered.
        """
        self._waits.warn_of_blocking()
        if not self._waits.is_alive():
            raise FatalError("the thread that waits for reward functions and judges died; its traceback is above")

    # -- in the caller's thread ------------------------------------------------------------------------------------

    @property
    def _needs_embeddings(self) -> bool:
        return self._terms is not None and self._terms.embeds

    def _read(self, request: ScoreRequest) -> _Job | Exception:
        try:
            _check(request)
            truncated = request.truncated or [False] * len(request.answers)
            rows = zip(request.answers, request.languages, truncated, strict=True)
            opened = request.thinking_opened
            return _Job(request, [read_answer(raw, one, cut, self._header, opened) for raw, one, cut in rows])
        except ValueError as error:
            return error

    def _tokenise(self, jobs: Sequence[_Job]) -> TokenisedTexts | None:
        """None where that fails; the jobs are then embedded in smaller parts, to find the one that fails."""
        try:
            return self._load_encoder()[0].tokenise(
                [without_code(answer.final) for job in jobs for answer in job.answers]
            )
        except Exception:  # a tokenizer raises its own kinds of errors; the job that provokes one is found later
            logger.exception("a batch cannot be tokenised")
            return None

    def _load_encoder(self) -> tuple[Embedder, ReferenceCache]:
        """The embedder and its cache, which a run that needs no embeddings never loads."""
        with self._encoder_lock:
            if self._encoder is None:
                from reward.embedder import Embedder
                from reward.references import ReferenceCache

                config = self._config
                embedder = Embedder(config.embedder, config.device, config.batch_tokens, config.embedder_dtype)
                if warning := warning_of_dtype(config, embedder.dtype):
                    logger.warning("%s", warning)
                file = self._directory / f"references-{config.replica}.sqlite" if self._directory is not None else None
                self._encoder = embedder, ReferenceCache(embedder, config.cache_entries, file)
            return self._encoder

    # -- in the threads for embedding and for languages ------------------------------------------------------------

    def _embed(self, jobs: Sequence[_Job], tokenised: TokenisedTexts | None) -> list[_Embedded | Exception]:
        embedder, references = self._load_encoder()

        def embed(some: Sequence[_Job]) -> list[_Embedded]:
            own = references.embed([_reference(job.request) for job in some])
            if tokenised is not None and len(some) == len(jobs):
                vectors = embedder.encode(tokenised)
            else:
                vectors = embedder.embed([without_code(answer.final) for job in some for answer in job.answers])
            sizes = [len(job.answers) for job in some]
            if not sum(sizes):
                return [_Embedded(vectors, [])] * len(some)
            cosines = np.einsum("nd,nd->n", vectors, own[np.repeat(np.arange(len(some)), sizes)]).clip(-1, 1)
            cuts = np.cumsum(sizes)[:-1]
            pairs = zip(np.split(vectors, cuts), np.split(cosines, cuts), strict=True)
            return [_Embedded(part, cosine.tolist()) for part, cosine in pairs]

        with self.liveness.step():
            return each_or_error(embed, jobs)

    def _decide(self, jobs: Sequence[_Job]) -> list[list[Decision] | Exception]:
        def decide(some: Sequence[_Job]) -> list[list[Decision]]:
            terms = self._terms
            earns = [
                terms is not None and terms.earns_by_similarity(job.request.topics) for job in some for _ in job.answers
            ]
            answers = [answer for job in some for answer in job.answers]
            decisions = iter(self._diagnosed(answers, self._gate.decide(answers, earns)))
            return [[next(decisions) for _ in job.answers] for job in some]

        with self.liveness.step():
            return each_or_error(decide, jobs)

    def _diagnosed(self, answers: Sequence[Answer], decisions: Sequence[Decision]) -> Sequence[Decision]:
        """The decisions, each with the languages of its answer's parts by ``reward.diagnostics``."""
        if self._detector is None:
            return decisions
        parts = diagnose(self._detector, answers)
        return [
            replace(decision, thought_languages=thought, final_languages=final)
            for decision, (thought, final) in zip(decisions, parts, strict=True)
        ]

    def _embed_for_tools(self, texts: list[str], keep: bool) -> asyncio.Future[Vectors]:
        def embed() -> Vectors:
            with self.liveness.step():
                embedder, references = self._load_encoder()
                return references.embed(texts) if keep else embedder.embed(texts)

        return asyncio.wrap_future(self._embedding.submit(embed))

    # -- in the event loop -----------------------------------------------------------------------------------------

    async def _finish(
        self,
        job: _Job,
        number: int,
        decided: Future[list[list[Decision] | Exception]],
        embedded: Future[list[_Embedded | Exception]] | None,
    ) -> list[ScoredAnswer]:
        """Scores one request of a batch, of which it is the job of this number."""
        async with asyncio.timeout(job.request.deadline_s) as limit:
            decisions = _value(await _wait(decided), number)
            vectors = _value(await _wait(embedded), number) if embedded is not None else None
            if self._custom is not None:
                scored = await self._score_by_function(self._custom, job, decisions, _left_s(limit))
            else:
                assert self._terms is not None
                scored = await self._score_by_terms(self._terms, job, decisions, vectors)
        self._count(job, decisions, scored)
        try:
            self._worth.check_group(scored)
        except UnscoredError:
            self.counts["handed_back"] += 1
            raise
        return scored

    async def _score_by_function(
        self, function: CustomReward, job: _Job, decisions: Sequence[Decision], within_s: float
    ) -> list[ScoredAnswer]:
        try:
            found = await function(job.request, job.answers, decisions, self._tools, within_s)
        finally:
            self.counts |= function.counts
        scored = []
        for answer, decision, (parts, quality, never) in zip(job.answers, decisions, found, strict=True):
            score = self._worth.score(answer, decision, parts or {}, quality)
            scored.append(ScoredAnswer(score, decision, None, None, never))
        return scored

    async def _score_by_terms(
        self, terms: QualityTerms, job: _Job, decisions: Sequence[Decision], embedded: _Embedded | None
    ) -> list[ScoredAnswer]:
        topics = job.request.topics
        inputs = [self._input(job, number, decision, embedded) for number, decision in enumerate(decisions)]
        given = [one for one in inputs if one is not None]
        valued = iter(await terms.evaluate(given, topics) if given else [])
        scored = []
        for number, (answer, decision, one) in enumerate(zip(job.answers, decisions, inputs, strict=True)):
            if one is None:
                nothing = self._worth.nothing(answer, decision, terms.earned_by_final(topics))
                scored.append(ScoredAnswer(nothing, decision, None, None))
            else:
                raw = embedded.similarities[number] if embedded is not None else None
                scored.append(self._scored_by_terms(one, decision, next(valued), raw))
        return scored

    def _input(self, job: _Job, number: int, decision: Decision, embedded: _Embedded | None) -> TermInput | None:
        """What the terms read of the answer of this number; None where it says nothing."""
        request, answer = job.request, job.answers[number]
        if says_nothing(answer):
            return None
        similarity = embedded.similarities[number] if embedded is not None else math.nan
        return TermInput(
            answer=answer,
            detected=decision.detected,
            accepted=request.accepted or [request.reference],
            similarity=self.calibrate(
                similarity, code_of(request.reference_language), decision.detected or answer.asked
            ),
            vector=embedded.vectors[number] if embedded is not None else None,
            request=request,
        )

    def _scored_by_terms(self, given: TermInput, decision: Decision, valued: Valued, raw: float | None) -> ScoredAnswer:
        """The score of an answer with these terms.

        Args:
            raw: its cosine similarity to the reference, which may be nan; None where no term of the run embeds.
        """
        similarity, drift = 0.0, 0.0
        pair: Pair | None = None
        calibrated: float | None = None
        if raw is not None and math.isfinite(raw):
            similarity, calibrated = raw, given.similarity
            pair = pair_of(code_of(given.request.reference_language), given.language)
            self.counts["uncalibrated"] += not self.calibrate.knows(*pair)
            drift = self._drift.observe(similarity, *pair) if decision.compliant else 0.0
        elif raw is not None:
            self._count_not_finite(given.request)
        score = self._worth.score(given.answer, decision, valued.values, valued.quality, similarity, drift)
        return ScoredAnswer(score, decision, pair, calibrated, valued.never)

    def _count_not_finite(self, request: ScoreRequest) -> None:
        self.counts["not_finite"] += 1
        times = self.counts["not_finite"]
        if is_logged(times):
            logger.warning(
                "the embedder %s gives no numbers for an answer to question %d, or for its reference, so that they "
                "cannot be compared (%d so far)", self._config.embedder, request.row, times,
            )  # fmt: skip

    def _count(self, job: _Job, decisions: Sequence[Decision], scored: Sequence[ScoredAnswer]) -> None:
        self.counts["answers"] += len(scored)
        for answer, decision in zip(job.answers, decisions, strict=True):
            if says_nothing(answer):
                self.counts["empty"] += 1
                continue
            self.counts["short"] += decision.short
            self.counts["no_language"] += not decision.detected
            self.counts["not_compliant"] += not decision.compliant
        self.counts["unscored"] += sum(not one.score.scored for one in scored)
        for name in ODDITIES:
            self.counts[name] += sum(name in answer.oddities for answer in job.answers)
        # These counters only grow, so the larger value of each is the newer one. Other threads change some of them.
        if self._encoder is not None:
            self.counts |= Counter(dict(self._encoder[0].counts))
            self.counts |= Counter(dict(self._encoder[1].counts))
        self.counts |= self._tools.counts


async def _wait(future: Future[list[_T]]) -> list[_T]:
    # Shielded, because the other requests of the batch wait for it even if this one no longer does.
    return await asyncio.shield(asyncio.wrap_future(future))


def _left_s(limit: asyncio.Timeout) -> float:
    """Seconds that a reward function may take: a little less than there are, so that the reply is still awaited."""
    when = limit.when()
    assert when is not None
    left_s = max(0.0, when - asyncio.get_running_loop().time())
    return left_s - min(_REPLY_S, _REPLY_SHARE * left_s)


def _value(results: Sequence[_T | Exception], number: int) -> _T:
    result = results[number]
    if isinstance(result, Exception):
        raise result
    return result


def _failed(error: Exception) -> Future[list[ScoredAnswer]]:
    future: Future[list[ScoredAnswer]] = Future()
    future.set_exception(error)
    return future


def _reference(request: ScoreRequest) -> str:
    """What answers are compared with: like them without code, unless it is nothing but code."""
    text = replace_surrogates(request.reference).strip()
    return without_code(text).strip() or text


def _check(request: ScoreRequest) -> None:
    """Raises ValueError when a request is inconsistent."""
    if len(request.answers) != len(request.languages):
        raise ValueError(f"the request has {len(request.answers)} answers, but {len(request.languages)} languages")
    for name, given in (("truncated", request.truncated), ("tokens", request.tokens)):
        if given and len(given) != len(request.answers):
            raise ValueError(f"the request has {len(request.answers)} answers, but {len(given)} in `{name}`")
    if not request.reference.strip():
        raise ValueError("the reference is empty, so nothing can be similar to it")
    for language in {request.reference_language, *(one for one in request.languages if one != POLICY_CHOOSES)}:
        code_of(language)
