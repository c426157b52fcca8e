"""The prompt groups that an actor holds: prompt, generate, score, submit.

A group is leased with one question and K languages. Its K answers are generated in one request to the engine and scored
in one request to the reward service. Where one of the two fails repeatedly, the group is released with the cause and
the reason, and the learner gives it to another actor. A request that the engine refuses for good is not repeated.
Answers are kept while they wait for their scores: for up to ``actor.score_patience_s`` in an outage, else for
``actor.attempts`` attempts. A group that is released loses them, and whoever leases it next generates them anew.
Whatever happens to the task of a group, its lease ends with a message to the learner.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from actor.concurrency import Concurrency
from actor.engine.client import Engine
from actor.engine.errors import EngineError, EngineLost, EngineReplaced, RequestRefused
from actor.engine.generation import Generation
from actor.scoring import Scoring, ScoringError
from actor.session import Session
from actor.tasks import TaskGroup
from actor.times import ActorTimes, GenerationTime
from actor.updates import EngineUpdates
from common import wire
from common.config import Config
from common.header import Header
from common.languages import POLICY_CHOOSES
from common.process import FatalError
from common.prompts import PROMPT_STYLES

log = logging.getLogger("actor")

T = TypeVar("T")

_LONGEST_BACK_OFF_S = 30.0


@dataclass(frozen=True)
class _Generated:
    """The K answers of a group before they are scored.

    Attributes:
        prompts: [K] token ids.
        generations: [K] as the engine gave them.
        texts: [K] their texts.
        spent: what the generation took.
        at: when it ended, in seconds of the monotonic clock.
        checking: asks a router whether its engines are still those that this actor attached to. The answers may be sent
            once it has ended without an error.
    """

    prompts: list[list[int]]
    generations: list[Generation]
    texts: list[str]
    spent: GenerationTime
    at: float
    checking: asyncio.Task[None]


class _GivenUp(Exception):
    """A group that this actor gives up; the text says why."""

    def __init__(self, reason: str, cause: wire.Cause) -> None:
        super().__init__(reason)
        self.cause = cause


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
        weights: EngineUpdates,
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
        self._stop_ids = self._make_prompt.stop_ids
        self._thinking_opened = self._make_prompt.opens_thought
        self._concurrency = Concurrency(config.actor.groups_in_flight)
        self._task_group = TaskGroup()
        self._tasks: dict[str, asyncio.Task[None]] = {}  # by lease id
        self._generating: set[str] = set()  # lease ids; those of an engine that has ended stay
        self._generated: set[str] = set()  # lease ids whose answers are generated
        self._ending = False
        self.tokens_generated = 0

    @property
    def slots(self) -> int:
        """How many groups the actor can hold at the moment."""
        return self._concurrency.slots

    @property
    def holding(self) -> list[str]:
        """The lease ids of the groups that the actor holds."""
        return list(self._tasks)

    @property
    def generating(self) -> list[str]:
        """The lease ids of the groups whose answers the engine is generating, or was when it ended."""
        return sorted(self._generating)

    async def run(self) -> None:
        """Holds the tasks of the groups until it is cancelled, which cancels them. Must run before ``start``."""
        async with self._task_group:
            await asyncio.Event().wait()  # for ever

    def start(self, work: wire.Work, lives: wire.Lives) -> None:
        """Begins a group that was leased to these lives; none any more once ``finish`` was called."""
        if self._ending:
            return
        answering = self._answer(work, lives)
        try:
            self._tasks[work.id] = self._task_group.create_task(answering)
        except RuntimeError:  # the tasks are ending, and with them this life: its leases go back with its ``Leave``
            answering.close()
            return
        self._times.set_groups_held(len(self._tasks))

    def drop_all(self) -> int:
        """Cancels all groups and returns how many there were."""
        count = len(self._tasks)
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()
        self._generating.clear()
        self._generated.clear()
        self._times.set_groups_held(0)
        return count

    async def finish(self, timeout_s: float) -> None:
        """Begins no group any more, and waits until those whose answers are generated are with the learner.

        The others are left to whoever leases them next. Waits at most ``timeout_s`` seconds.
        """
        self._ending = True
        generated = [task for lease_id, task in self._tasks.items() if lease_id in self._generated]
        if generated:
            await asyncio.wait(generated, timeout=timeout_s)

    async def _answer(self, work: wire.Work, lives: wire.Lives) -> None:
        try:
            try:
                message = await self._submit_or_release(work)
                await self._session.deliver(message.of(lives))
            except (EngineLost, EngineReplaced, FatalError):
                raise  # this life is over
            except BaseException as error:
                # Also a cancellation that came from within. Nobody would hear of it, and the lease would never end.
                task = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling()):
                    raise
                if not isinstance(error, Exception | asyncio.CancelledError):
                    raise
                log.exception("group %s failed", work.id)
                self._generating.discard(work.id)
                await self._session.deliver(wire.Release(id=work.id, reason=repr(error)).of(lives))
        finally:
            self._generated.discard(work.id)
            self._tasks.pop(work.id, None)
            self._times.set_groups_held(len(self._tasks))

    async def _submit_or_release(self, work: wire.Work) -> wire.Submit | wire.Release:
        """Answers the group, or gives the reason why that failed.

        Generation and scoring have ``actor.attempts`` attempts each. Answers that were generated are kept and scored
        again. An outage of the reward service is no attempt: it is waited for, up to ``actor.score_patience_s``.

        Raises:
            EngineLost, EngineReplaced: there is no engine any more that could answer.
        """
        try:
            generated = await self._retried(work, "generation", self._generate_answers)
            self._generated.add(work.id)
            gives_up_at = time.monotonic() + self._config.actor.score_patience_s
            submit = await self._retried(work, "scoring", partial(self._score, generated=generated), gives_up_at)
        except RequestRefused as error:
            return wire.Release(id=work.id, reason=str(error), cause="refusal")
        except _GivenUp as error:
            return wire.Release(id=work.id, reason=str(error), cause=error.cause)
        return await self._when_proved(work, submit)

    async def _retried(
        self,
        work: wire.Work,
        cause: wire.Cause,
        stage: Callable[[wire.Work], Awaitable[T]],
        gives_up_at: float = math.inf,
    ) -> T:
        """The result of a stage of a group, which is tried again after a pause where engine or reward service fail.

        Args:
            cause: as which a failure of the stage counts, unless it is an outage of the reward service.
            gives_up_at: when no further attempt may begin, on the monotonic clock.

        Raises:
            _GivenUp: it failed too often, or for too long.
            EngineLost, EngineReplaced: there is no engine any more that could answer.
            RequestRefused: the engine will never answer the request.
        """
        failures: Counter[wire.Cause] = Counter()
        back_off_s = 1.0
        while True:
            try:
                return await stage(work)
            except (EngineLost, EngineReplaced, RequestRefused):
                raise
            except (EngineError, ScoringError) as error:
                failed_as: wire.Cause = "outage" if isinstance(error, ScoringError) and error.later else cause
                log.warning("group %s, %s: %s", work.id, failed_as, error)
                failures[failed_as] += 1
                attempts = math.inf if failed_as == "outage" else self._config.actor.attempts
                if failures[failed_as] >= attempts or time.monotonic() + back_off_s > gives_up_at:
                    raise _GivenUp(str(error), failed_as) from error
            await asyncio.sleep(back_off_s)
            back_off_s = min(2 * back_off_s, _LONGEST_BACK_OFF_S)

    async def _when_proved(self, work: wire.Work, submit: wire.Submit) -> wire.Submit | wire.Release:
        """The answers, once the weights that made them are proved to be the learner's; or why they never will be."""
        versions = {int(version) for rollout in submit.rollouts for version in np.unique(rollout.versions)}
        if await self._weights.wait_until_proved(versions):
            return submit
        reason = f"weights of the versions {sorted(versions)} were replaced before they were proved"
        return wire.Release(id=work.id, reason=reason, cause="outage")

    async def _generate_answers(self, work: wire.Work) -> _Generated:
        """Generates the K answers of a group.

        Raises:
            EngineError: the engine did not generate them.
        """
        prompts = [self._make_prompt(work.question, language) for language in work.languages]
        sampling = {
            "temperature": 0.0 if work.greedy else self._config.sampling.temperature,
            "max_new_tokens": self._config.sampling.max_new_tokens,
            "stop_token_ids": self._stop_ids,
        }
        await self._engine.wait_until_accepting()  # an engine that drains for a weight update has none of the group yet
        with self._times.generating() as spent, self._in_engine(work.id):
            generations = await self._engine.generate(prompts, sampling, self._draws(work))
        at = time.monotonic()
        self.tokens_generated += sum(len(generation.ids) for generation in generations)
        retracted = any(generation.retracted for generation in generations)
        # Beside the scoring, as a busy engine may take seconds to say how busy it is.
        self._task_group.create_task(self._adapt_slots(spent.groups_at_end, retracted=retracted))
        checking = self._task_group.create_task(self._engine.check_members())
        texts = [self._decode(generation.ids) for generation in generations]
        return _Generated(prompts, generations, texts, spent, at, checking)

    @contextmanager
    def _in_engine(self, lease_id: str) -> Iterator[None]:
        """Surrounds the call that has the engine generate a group.

        Where the engine or this life ends meanwhile, the group stays among those that are being generated, so that the
        actor's ``Leave`` names it. Any other outcome removes it.
        """
        self._generating.add(lease_id)
        try:
            yield
        except (EngineLost, EngineReplaced, asyncio.CancelledError):
            raise
        except BaseException:
            self._generating.discard(lease_id)
            raise
        self._generating.discard(lease_id)

    async def _adapt_slots(self, groups_at_end: int, *, retracted: bool) -> None:
        """Adapts the number of slots to what the engine says when a group is generated."""
        slots_before = self._concurrency.slots
        self._concurrency.record_finished(await self._engine.read_gauges(), groups_at_end, retracted=retracted)
        if self._concurrency.slots != slots_before:
            await self._session.send_heartbeat()

    async def _score(self, work: wire.Work, generated: _Generated) -> wire.Submit:
        """Has the K answers of a group scored, and waits until it is known that the engines were the actor's own.

        Raises:
            ScoringError: no replica of the reward service scored them.
            EngineReplaced: they are of other engines.
        """
        generations = generated.generations
        scores = await self._scoring.score(
            work.question,
            generated.texts,
            work.languages,
            [generation.truncated for generation in generations],
            self._thinking_opened,
            [len(generation.ids) for generation in generations],
        )
        score_s = time.monotonic() - generated.at
        await generated.checking
        spent = generated.spent
        timing = wire.Timing(generate_s=spent.seconds, groups=spent.mean_groups, score_s=score_s)
        answers = zip(work.languages, generated.prompts, generations, generated.texts, scores, strict=True)
        return wire.Submit(id=work.id, rollouts=[self._make_rollout(*answer) for answer in answers], timing=timing)

    def _draws(self, work: wire.Work) -> tuple[int, str]:
        """Tells the draws of a group from those of all others, whoever has its lease and however often."""
        return self._config.run.seed, work.id.partition(":")[2]

    def _decode(self, ids: NDArray[np.int32]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def _make_rollout(
        self, requested: str, prompt: list[int], generation: Generation, text: str, score: wire.Score
    ) -> wire.Rollout:
        """One answer as it is submitted; ``requested`` is its language, or ``POLICY_CHOOSES``."""
        header_chars = self._header.parse(text).end if requested == POLICY_CHOOSES else 0
        ids, header = generation.ids, 0
        if header_chars:  # the number of tokens whose text covers the header; that text grows with their number
            header = bisect_left(range(len(ids)), header_chars, key=lambda count: len(self._decode(ids[:count])))
        return wire.Rollout(
            language=requested or score.language,
            header=header,
            prompt_ids=np.array(prompt, np.int32),
            response_ids=ids,
            logprobs=generation.logprobs,
            versions=generation.versions,
            truncated=generation.truncated,
            thinking_opened=self._thinking_opened,
            text=text,
            score=score,
        )
