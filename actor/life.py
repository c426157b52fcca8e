"""An actor's life with one engine: say hello, lease, generate, have scored, submit, take new weights; until a stop."""

from __future__ import annotations

import asyncio
import logging
import time
from bisect import bisect_left
from contextlib import suppress
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from actor.concurrency import Concurrency
from actor.engine.client import Engine, EngineError, Generation, differences
from actor.prompts import STYLES
from actor.scoring import Scoring, ScoringError
from common import wire
from common.config import Config
from common.header import Header
from common.languages import POLICY_CHOOSES
from common.net.rendezvous import Route
from common.process import FatalError
from common.stopwatch import Stopwatch

log = logging.getLogger("actor")

_HEARTBEAT_S = 2.0
_FAREWELL_S = 5.0
_SILENCE_S = 3 * _HEARTBEAT_S  # of the learner, before looking whether it has moved

_Order: TypeAlias = wire.Join | wire.Pause | wire.Receive | EngineError  # the last of a failed proof


class Actor:
    """Keeps as many groups between lease and acknowledgement as its engine has room for: ``Concurrency``.

    Args:
        config: the whole configuration.
        name: unique in the run.
        engine: ready to generate.
        learner: the way to it, connected.
        scoring: client of the reward service.
        tokenizer: of the policy; only prompts are encoded and only finished answers decoded.
    """

    def __init__(
        self, config: Config, name: str, engine: Engine, learner: Route, scoring: Scoring,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:  # fmt: skip
        self._config, self.name, self._engine, self._learner, self._scoring = config, name, engine, learner, scoring
        self._tokenizer = tokenizer
        self._prompt = STYLES[config.model.prompt_style](tokenizer, config)
        self._header = Header(config.model.header, config.run.languages)
        self._stop_ids = _stop_ids(tokenizer)
        self._concurrency = Concurrency(config.actor.groups_in_flight)
        self._groups: dict[str, asyncio.Task[None]] = {}
        self._acknowledged: dict[str, asyncio.Event] = {}
        self._inbox: asyncio.Queue[_Order] = asyncio.Queue()
        self._heard = time.monotonic()
        self._weight_group = ""
        self._proved = asyncio.Event()  # the engine has the weights its tokens are marked with, so they may be sent
        self._proving: asyncio.Task[Any] = asyncio.create_task(self._proved.wait())
        self._known: dict[str, list[int]] | None = None  # shapes of the engine's tensors
        self.updates = 0
        self._tokens = 0
        self._gauges: dict[str, float] = {}  # of the engine, see wire.Heartbeat
        self._watch = Stopwatch()
        self._generating, self._syncing, self._since = 0, False, time.monotonic()
        self._load = np.zeros(2)  # seconds in which it generated; the same, times groups
        self._finished = asyncio.Event()
        self._stop_reason = ""

    async def run(self) -> None:
        """Returns when the learner ends the run.

        Raises:
            FatalError: the learner is silent or refuses this actor, or its model is not the engine's.
            EngineError: the engine ended or failed a weight update; it must be started again.
        """
        own = self._receive(), self._beat(), self._look(), self._weights(), self._finished.wait()
        tasks = [asyncio.create_task(work) for work in (*own, self._scoring.listen())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            ended = [*tasks, *self._groups.values(), self._proving]
            for task in ended:
                task.cancel()
            await asyncio.wait(ended, timeout=_FAREWELL_S)  # an update that was cut off lets the engine go on
        if self._stop_reason:
            raise FatalError(f"the learner refuses this actor: {self._stop_reason}")
        log.info("the run is over: generated %d tokens; %s", self._tokens, _shares(self._seconds()))

    # -- talking to the learner ----------------------------------------------------------------------------------

    async def _receive(self) -> None:
        await self._hello()
        while True:
            data = await self._learner.socket.recv()
            self._heard = time.monotonic()
            try:
                message = wire.decode(data)
            except wire.WireError as error:
                log.warning("dropped a message of the learner: %s", error)
                continue
            match message:
                case wire.Unknown():
                    await self._start_over()
                case wire.Leased():
                    for work in message.work:
                        self._groups[work.id] = asyncio.create_task(self._answer(work))
                case wire.Ack():
                    for id in message.accepted.keys() & self._acknowledged.keys():
                        self._acknowledged[id].set()
                case wire.Join() | wire.Pause() | wire.Receive():
                    await self._inbox.put(message)
                case wire.Eject():
                    raise EngineError(f"the learner gave this engine up: {message.reason}")
                case wire.Stop():
                    self._stop_reason = message.error
                    self._finished.set()
                case wire.Welcome() | wire.Alive():
                    pass
                case _:
                    log.warning("dropped a %s of the learner: not for an actor", message.kind)

    async def _hello(self) -> None:
        drain_s = self._config.sync.drain_s if self._engine.mode == "drain" else 0.0
        hello = wire.Hello(
            protocol=wire.PROTOCOL,
            engine_ranks=self._engine.ranks,
            slots=self._concurrency.groups,
            transport=self._config.sync.transport,
            drain_s=drain_s,
        )
        await self._learner.send(hello)

    async def _start_over(self) -> None:
        log.warning("the learner does not know this actor: dropping %d groups, saying hello again", len(self._groups))
        for task in self._groups.values():
            task.cancel()
        self._groups.clear()
        await self._hello()

    async def _beat(self) -> None:
        """Heartbeats while the learner answers; while it is silent, hello again and again, until a deadline."""
        while True:
            await asyncio.sleep(_HEARTBEAT_S)
            silence = time.monotonic() - self._heard
            if silence > self._config.actor.start_timeout_s:
                raise FatalError(f"no word from the learner at {self._learner.place.address} for {silence:.0f} s")
            moved = silence > _SILENCE_S and self._learner.follow()
            if moved or silence > self._config.learner.lease_timeout_s:
                await self._start_over()
            await self._tell()

    async def _tell(self) -> None:
        beat = wire.Heartbeat(
            holding=list(self._groups), seconds=self._seconds(), slots=self._concurrency.groups, gauges=self._gauges
        )
        await self._learner.send(beat)

    async def _look(self) -> None:
        """Apart from the heartbeats, which an engine that does not answer must not hold up."""
        while True:
            self._gauges |= await self._engine.load()
            await asyncio.sleep(_HEARTBEAT_S)

    # -- a group's way -------------------------------------------------------------------------------------------

    async def _answer(self, work: wire.Work) -> None:
        try:
            await self._deliver(work, await self._make(work))
        finally:
            self._switch()
            self._groups.pop(work.id, None)

    async def _make(self, work: wire.Work) -> wire.Submit | wire.Release:
        problem = ""
        for attempt in range(self._config.actor.attempts):
            try:
                return await self._submission(work)
            except (EngineError, ScoringError) as error:
                problem = str(error)
                log.warning("group %s, attempt %d: %s", work.id, attempt + 1, problem)
                await asyncio.sleep(2.0**attempt)
            except Exception as error:  # a question nobody foresaw must be reported, not leased for ever
                log.exception("group %s", work.id)
                problem = repr(error)
                break
        return wire.Release(id=work.id, reason=problem)

    async def _submission(self, work: wire.Work) -> wire.Submit:
        prompts = [self._prompt(work.question, language) for language in work.languages]
        generations, generate_s, groups = await self._generate(prompts, work.greedy)
        begin = time.monotonic()
        texts = [self._text(answer.ids) for answer in generations]
        truncated = [generation.truncated for generation in generations]
        scores = await self._scoring.score(work.question, texts, work.languages, truncated)
        timing = wire.Timing(generate_s=generate_s, groups=groups, score_s=time.monotonic() - begin)
        parts = zip(work.languages, prompts, generations, texts, scores, strict=True)
        return wire.Submit(id=work.id, rollouts=[self._rollout(*part) for part in parts], timing=timing)

    async def _generate(self, prompts: list[list[int]], greedy: bool) -> tuple[list[Generation], float, float]:
        """Answers; seconds without pauses for weights; how many groups were generated meanwhile, this one included."""
        sampling = {
            "temperature": 0.0 if greedy else self._config.sampling.temperature,
            "max_new_tokens": self._config.sampling.max_new_tokens,
            "stop_token_ids": self._stop_ids,
        }
        self._switch(generating=1)
        before = self._load.copy()
        try:
            generations = await self._engine.generate(prompts, sampling)
        finally:
            in_flight = self._generating
            self._switch(generating=-1)
        seconds, times_groups = (self._load - before).tolist()
        self._tokens += sum(len(generation.ids) for generation in generations)
        slots, retracted = self._concurrency.groups, any(generation.retracted for generation in generations)
        self._concurrency.finished(await self._engine.load(), in_flight, retracted=retracted)
        if self._concurrency.groups != slots:
            await self._tell()
        return generations, seconds, times_groups / max(seconds, 1e-9)

    def _text(self, ids: NDArray[np.int32]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def _rollout(
        self, asked: str, prompt: list[int], generation: Generation, text: str, score: wire.Score
    ) -> wire.Rollout:
        end, ids = self._header.parse(text).end if asked == POLICY_CHOOSES else 0, generation.ids
        return wire.Rollout(
            language=asked or score.language,
            header=bisect_left(range(len(ids)), end, key=lambda count: len(self._text(ids[:count]))),
            prompt_ids=np.array(prompt, np.int32),
            response_ids=ids,
            logprobs=generation.logprobs,
            versions=generation.versions,
            truncated=generation.truncated,
            text=text,
            score=score,
        )

    async def _deliver(self, work: wire.Work, message: wire.Submit | wire.Release) -> None:
        """Sends until acknowledged; the learner recognises what it has already."""
        await self._proved.wait()
        self._acknowledged[work.id] = asyncio.Event()
        try:
            while not self._acknowledged[work.id].is_set():
                await self._learner.send(message)
                try:
                    await asyncio.wait_for(self._acknowledged[work.id].wait(), self._config.learner.lease_timeout_s)
                except TimeoutError:
                    log.warning("group %s is not acknowledged yet: sending it again", work.id)
        finally:
            del self._acknowledged[work.id]

    # -- new weights -----------------------------------------------------------------------------------------------

    async def _weights(self) -> None:
        """Weight updates, one after another. An engine that failed one has unknown weights: this life ends with it."""
        message: _Order | None = None
        while True:
            message = message or await self._inbox.get()
            if isinstance(message, EngineError):
                raise message
            elif isinstance(message, wire.Pause):
                message = await self._update(message)
            else:
                if isinstance(message, wire.Join):
                    await self._join(message)
                else:
                    log.warning("dropped the weights of version %d: they came too late", message.version)
                message = None

    async def _join(self, join: wire.Join) -> None:
        if self._weight_group:
            await self._engine.leave(self._weight_group, join.timeout_s)
        await self._engine.join(join)
        self._weight_group = join.group
        await self._learner.send(wire.Joined(group=join.group))

    async def _update(self, order: wire.Pause) -> _Order | None:
        """From the pause to the new version. Requests in flight wait inside the engine and go on afterwards.

        Returns what came instead of the weights, of a learner that started again.
        """
        timeout = self._config.sync.timeout_s
        begin = time.monotonic()
        self._proving.cancel()  # the weights it waits for are about to go
        self._proved.clear()
        self._switch(syncing=True)
        try:
            await self._engine.pause(timeout, self._config.sync.drain_s)
            await self._learner.send(wire.Synced(version=order.version, stage="ready", pause_s=0.0))
            receive = await self._awaited(order)
            if isinstance(receive, wire.Receive):
                await self._check_names(receive)
                await self._engine.receive(receive)
            await self._engine.resume(timeout)
        except BaseException:  # cancelled too: an engine that others use must not stand still for ever
            with suppress(EngineError):
                await self._engine.recover(_FAREWELL_S / 2)
            raise
        finally:
            self._switch(syncing=False)
        if not isinstance(receive, wire.Receive):
            self._proved.set()
            return receive
        done = wire.Synced(version=receive.version, stage="done", pause_s=time.monotonic() - begin)
        await self._learner.send(done)
        self._proving = asyncio.create_task(self._prove(receive))
        return None

    async def _awaited(self, order: wire.Pause) -> _Order | None:
        """The weights announced by a pause, or what comes instead of them. None if nothing comes."""
        while True:
            try:
                message = await asyncio.wait_for(self._inbox.get(), order.timeout_s)
            except TimeoutError:
                log.error("version %d was announced and did not come: going on with the old weights", order.version)
                return None
            if not isinstance(message, wire.Receive) or message.version == order.version:
                return message

    async def _check_names(self, receive: wire.Receive) -> None:
        if self._known is None:
            self._known = await self._engine.shapes(self._config.sync.timeout_s)
            if not self._known:
                log.warning("the checkpoint of the engine cannot be read from here: only the probe checks the weights")
            elif wrong := differences(receive.buckets, self._known):
                raise FatalError(f"the engine at {self._engine.url} serves another model than the learner's: {wrong}")

    async def _prove(self, receive: wire.Receive) -> None:
        """Answers are held back until the engine has shown that its weights are the learner's."""
        try:
            found = await self._engine.probe(receive.probe, self._config.actor.request_timeout_s)
            if not found <= receive.probe.tolerance:
                raise EngineError(
                    f"after the update to version {receive.version} the engine's log-probabilities of the probe are "
                    f"{found:.3g} nats from the learner's (sync.probe_tolerance = {receive.probe.tolerance:g})"
                )
        except Exception as error:  # an answer nobody foresaw must not hold the others back for ever
            await self._inbox.put(error if isinstance(error, EngineError) else EngineError(f"the probe: {error!r}"))
        else:
            log.info("version %d: %.2g nats from the learner", receive.version, found)
            self._gauges["probe_error"] = found
            self.updates += 1
            self._proved.set()

    # -- where the time goes -------------------------------------------------------------------------------------

    def _switch(self, *, generating: int = 0, syncing: bool | None = None) -> None:
        """Enters the time since the last change under the state the actor was in."""
        now = time.monotonic()
        self._watch.add(self._state(), now - self._since)
        if not self._syncing:
            self._load += (now - self._since) * np.array([self._generating > 0, self._generating])
        self._since = now
        self._generating += generating
        self._syncing = self._syncing if syncing is None else syncing

    def _state(self) -> str:
        if self._syncing:
            return "sync"
        if self._generating:
            return "generate"
        return "wait_reward" if self._groups else "wait_work"

    def _seconds(self) -> dict[str, float]:
        self._switch()
        return {**self._watch.seconds(), **self._scoring.seconds}


def _stop_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The end-of-sequence token, and the end of a chat turn where that is another one."""
    candidates = [tokenizer.eos_token, "<|im_end|>", "<|eot_id|>"]
    vocabulary = tokenizer.get_vocab()
    return sorted({vocabulary[token] for token in candidates if token in vocabulary})


def _shares(seconds: dict[str, float]) -> str:
    own = {state: spent for state, spent in seconds.items() if not state.startswith("reward_")}
    total = sum(own.values()) or 1.0
    return ", ".join(f"{state} {spent / total:.0%}" for state, spent in sorted(own.items()))
