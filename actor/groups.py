"""The prompt groups that an actor holds: prompt, generate, score, submit.

A group is leased with one question and K languages. Its K answers are generated in one request to the engine and scored
in one request to the reward service. Where that fails repeatedly, the group is released with the reason, and the
learner gives it to another actor.
"""

from __future__ import annotations

import asyncio
import logging
import time
from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from actor.concurrency import Concurrency
from actor.engine.client import Engine, EngineError, Generation
from actor.scoring import Scoring, ScoringError
from actor.session import Session
from actor.tasks import TaskGroup
from actor.times import ActorTimes, GenerationTime
from actor.weights import WeightUpdates
from common import wire
from common.config import Config
from common.header import Header
from common.languages import POLICY_CHOOSES
from common.prompts import PROMPT_STYLES

log = logging.getLogger("actor")

_TURN_ENDS = ("<|im_end|>", "<|eot_id|>")  # end a chat turn in models whose end-of-sequence token is another one


class PromptGroups:
    """Works on every leased group in a task of its own.

    Args:
        config: the whole configuration.
        engine: ready to generate.
        scoring: the client of the reward service, which must be listening.
        tokenizer: of the policy.
        session: delivers finished groups.
        weights: says when the engine has proved the weights of its answers.
        times: books where the time goes.
    """

    def __init__(
        self,
        config: Config,
        engine: Engine,
        scoring: Scoring,
        tokenizer: PreTrainedTokenizerBase,
        session: Session,
        weights: WeightUpdates,
        times: ActorTimes,
    ) -> None:
        self._config = config
        self._engine = engine
        self._scoring = scoring
        self._tokenizer = tokenizer
        self._session = session
        self._weights = weights
        self._times = times
        self._make_prompt = PROMPT_STYLES[config.model.prompt_style](tokenizer, config)
        self._header = Header(config.model.header, config.run.languages)
        self._stop_ids = find_stop_ids(tokenizer)
        self._thinking_opened = self._make_prompt.opens_thought
        self._concurrency = Concurrency(config.actor.groups_in_flight)
        self._task_group = TaskGroup()
        self._tasks: dict[str, asyncio.Task[None]] = {}  # by lease id
        self.tokens_generated = 0

    @property
    def slots(self) -> int:
        """How many groups the actor can hold at the moment."""
        return self._concurrency.slots

    @property
    def holding(self) -> list[str]:
        """The lease ids of the groups that the actor holds."""
        return list(self._tasks)

    async def run(self) -> None:
        """Holds the tasks of the groups until it is cancelled, which cancels them. Must run before ``start``."""
        async with self._task_group:
            await asyncio.Event().wait()  # for ever

    def start(self, work: wire.Work) -> None:
        """Begins a leased group."""
        self._tasks[work.id] = self._task_group.create_task(self._answer(work))
        self._times.set_groups_held(len(self._tasks))

    def drop_all(self) -> int:
        """Cancels all groups and returns how many there were."""
        count = len(self._tasks)
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()
        self._times.set_groups_held(0)
        return count

    async def _answer(self, work: wire.Work) -> None:
        try:
            message = await self._submit_or_release(work)
            await self._weights.wait_until_proved()
            await self._session.deliver(message)
        finally:
            self._tasks.pop(work.id, None)
            self._times.set_groups_held(len(self._tasks))

    async def _submit_or_release(self, work: wire.Work) -> wire.Submit | wire.Release:
        """Answers the group in at most ``actor.attempts`` attempts, or gives the reason why that failed."""
        reason = ""
        for attempt in range(self._config.actor.attempts):
            try:
                return await self._make_submission(work)
            except (EngineError, ScoringError) as error:
                reason = str(error)
                log.warning("group %s, attempt %d: %s", work.id, attempt + 1, reason)
                await asyncio.sleep(2.0**attempt)
            except Exception as error:  # any question that cannot be answered must be reported, or its lease never ends
                log.exception("group %s failed", work.id)
                reason = repr(error)
                break
        return wire.Release(id=work.id, reason=reason)

    async def _make_submission(self, work: wire.Work) -> wire.Submit:
        """Generates and scores the K answers of a group once.

        Raises:
            EngineError: the engine did not generate the answers.
            ScoringError: no replica of the reward service scored them.
        """
        prompts = [self._make_prompt(work.question, language) for language in work.languages]
        generations, spent = await self._generate(prompts, work.greedy)
        scoring_since = time.monotonic()
        texts = [self._decode(generation.ids) for generation in generations]
        truncated = [generation.truncated for generation in generations]
        scores = await self._scoring.score(work.question, texts, work.languages, truncated, self._thinking_opened)
        score_s = time.monotonic() - scoring_since
        timing = wire.Timing(generate_s=spent.seconds, groups=spent.mean_groups, score_s=score_s)
        answers = zip(work.languages, prompts, generations, texts, scores, strict=True)
        return wire.Submit(id=work.id, rollouts=[self._make_rollout(*answer) for answer in answers], timing=timing)

    async def _generate(self, prompts: list[list[int]], greedy: bool) -> tuple[list[Generation], GenerationTime]:
        """Generates one answer to each prompt, and adapts the number of slots to what the engine then says.

        Raises:
            EngineError: the engine did not generate them, or a router's engines are not those of the start any more.
        """
        sampling = {
            "temperature": 0.0 if greedy else self._config.sampling.temperature,
            "max_new_tokens": self._config.sampling.max_new_tokens,
            "stop_token_ids": self._stop_ids,
        }
        with self._times.generating() as spent:
            generations = await self._engine.generate(prompts, sampling)
        self.tokens_generated += sum(len(generation.ids) for generation in generations)
        slots_before = self._concurrency.slots
        self._concurrency.record_finished(
            await self._engine.read_gauges(),
            spent.groups_at_end,
            retracted=any(generation.retracted for generation in generations),
        )
        if self._concurrency.slots != slots_before:
            await self._session.send_heartbeat()
        return generations, spent

    def _decode(self, ids: NDArray[np.int32]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def _make_rollout(
        self, requested: str, prompt: list[int], generation: Generation, text: str, score: wire.Score
    ) -> wire.Rollout:
        """One answer as it is submitted; ``requested`` is its language, or ``POLICY_CHOOSES``."""
        header_chars = self._header.parse(text).end if requested == POLICY_CHOOSES else 0
        ids = generation.ids
        return wire.Rollout(
            language=requested or score.language,
            # The number of tokens whose text covers the header; that text grows with the number of tokens.
            header=bisect_left(range(len(ids)), header_chars, key=lambda count: len(self._decode(ids[:count]))),
            prompt_ids=np.array(prompt, np.int32),
            response_ids=ids,
            logprobs=generation.logprobs,
            versions=generation.versions,
            truncated=generation.truncated,
            thinking_opened=self._thinking_opened,
            text=text,
            score=score,
        )


def find_stop_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of the end-of-sequence token and of the tokens that end a chat turn, if the vocabulary has them."""
    vocabulary = tokenizer.get_vocab()
    return sorted({vocabulary[token] for token in (tokenizer.eos_token, *_TURN_ENDS) if token in vocabulary})
