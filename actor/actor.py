"""An actor's life: say hello, lease, generate, have scored, submit, take new weights; until the learner says stop."""

from __future__ import annotations

import asyncio
import logging
import time

import numpy as np
import zmq.asyncio
from transformers import PreTrainedTokenizerBase

from actor.engine import Engine, EngineError, Generation
from actor.prompts import TagPrompts
from actor.scoring import Scoring, ScoringError
from common import wire
from common.config import Config
from common.process import FatalError, Stopwatch

log = logging.getLogger("actor")

_HEARTBEAT_S = 2.0


class Actor:
    """Keeps up to ``groups_in_flight`` groups between lease and acknowledgement.

    Args:
        config: the whole configuration.
        name: unique in the run.
        engine: ready to generate.
        socket: DEALER to the learner.
        scoring: client of the reward service.
        tokenizer: of the policy; only prompts are encoded and only finished answers decoded.
    """

    def __init__(
        self,
        config: Config,
        name: str,
        engine: Engine,
        socket: zmq.asyncio.Socket,
        scoring: Scoring,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self._config, self.name, self._engine, self._socket, self._scoring = config, name, engine, socket, scoring
        self._tokenizer = tokenizer
        self._prompt = TagPrompts(tokenizer, config.run.languages)
        self._stop_ids = _stop_ids(tokenizer)
        self._groups: dict[str, asyncio.Task[None]] = {}
        self._acknowledged: dict[str, asyncio.Event] = {}
        self._inbox: asyncio.Queue[wire.Join | wire.Pause | wire.Receive] = asyncio.Queue()
        self._heard = time.monotonic()
        self._weight_group = ""
        self._tokens = 0
        self._watch = Stopwatch()
        self._generating, self._syncing, self._since = 0, False, time.monotonic()
        self._finished = asyncio.Event()
        self._stop_reason = ""

    async def run(self) -> None:
        """Returns when the learner ends the run.

        Raises:
            FatalError: the learner is silent, gave this actor up, or the engine failed a weight update.
        """
        tasks = [
            asyncio.create_task(work)
            for work in (self._receive(), self._beat(), self._weights(), self._scoring.listen(), self._finished.wait())
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in [*tasks, *self._groups.values()]:
                task.cancel()
        if self._stop_reason:
            raise FatalError(f"the learner gave this actor up: {self._stop_reason}")
        log.info("the run is over: generated %d tokens; %s", self._tokens, _shares(self._seconds()))

    # -- talking to the learner ----------------------------------------------------------------------------------

    async def _send(self, message: wire.AnyMessage) -> None:
        await self._socket.send(wire.encode(message))

    async def _receive(self) -> None:
        await self._hello()
        while True:
            data = await self._socket.recv()
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
                    if message.id in self._acknowledged:
                        self._acknowledged[message.id].set()
                case wire.Join() | wire.Pause() | wire.Receive():
                    await self._inbox.put(message)
                case wire.Stop():
                    self._stop_reason = message.error
                    self._finished.set()
                case wire.Welcome() | wire.Alive():
                    pass
                case _:
                    log.warning("dropped a %s of the learner: not for an actor", message.kind)

    async def _hello(self) -> None:
        ranks = int(self._config.actor.engine_args.get("tp", 1))
        slots = self._config.actor.groups_in_flight
        await self._send(wire.Hello(protocol=wire.PROTOCOL, engine_ranks=ranks, slots=slots))

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
                raise FatalError(f"no word from the learner at {self._config.learner.address} for {silence:.0f} s")
            if silence > self._config.learner.lease_timeout_s:
                await self._start_over()
            beat = wire.Heartbeat(holding=list(self._groups), seconds=self._seconds())
            await self._send(beat)

    # -- a group's way -------------------------------------------------------------------------------------------

    async def _answer(self, work: wire.Work) -> None:
        try:
            await self._deliver(work, await self._make(work))
        finally:
            self._switch()
            if self._groups.pop(work.id, None) is not None:
                await self._send(wire.Lease(slots=1))

    async def _make(self, work: wire.Work) -> wire.Submit | wire.Release:
        problem = ""
        for attempt in range(self._config.actor.attempts):
            try:
                return wire.Submit(id=work.id, rollouts=await self._rollouts(work))
            except (EngineError, ScoringError) as error:
                problem = str(error)
                log.warning("group %s, attempt %d: %s", work.id, attempt + 1, problem)
                await asyncio.sleep(2.0**attempt)
            except Exception as error:  # a question nobody foresaw must be reported, not leased for ever
                log.exception("group %s", work.id)
                problem = repr(error)
                break
        return wire.Release(id=work.id, reason=problem)

    async def _rollouts(self, work: wire.Work) -> list[wire.Rollout]:
        prompts = [self._prompt(work.question, language) for language in work.languages]
        sampling = {
            "temperature": 0.0 if work.greedy else self._config.sampling.temperature,
            "max_new_tokens": self._config.sampling.max_new_tokens,
            "stop_token_ids": self._stop_ids,
        }
        self._switch(generating=1)
        try:
            generations = await self._engine.generate(prompts, sampling)
        finally:
            self._switch(generating=-1)
        self._tokens += sum(len(generation.ids) for generation in generations)
        texts = [str(self._tokenizer.decode(answer.ids, skip_special_tokens=True)) for answer in generations]
        truncated = [generation.truncated for generation in generations]
        scores = await self._scoring.score(work.question, texts, work.languages, truncated)
        return [_rollout(*parts) for parts in zip(work.languages, prompts, generations, texts, scores, strict=True)]

    async def _deliver(self, work: wire.Work, message: wire.Submit | wire.Release) -> None:
        """Sends until acknowledged; the learner recognises what it has already."""
        self._acknowledged[work.id] = asyncio.Event()
        try:
            while not self._acknowledged[work.id].is_set():
                await self._send(message)
                try:
                    await asyncio.wait_for(self._acknowledged[work.id].wait(), self._config.learner.lease_timeout_s)
                except TimeoutError:
                    log.warning("group %s is not acknowledged yet: sending it again", work.id)
        finally:
            del self._acknowledged[work.id]

    # -- new weights -----------------------------------------------------------------------------------------------

    async def _weights(self) -> None:
        """Weight updates, one after another. An engine that failed one has unknown weights: the actor ends with it."""
        while True:
            message = await self._inbox.get()
            try:
                if isinstance(message, wire.Join):
                    await self._join(message)
                elif isinstance(message, wire.Pause):
                    await self._update(message)
                else:
                    log.warning("dropped the weights of version %d: they came too late", message.version)
            except EngineError as error:
                if isinstance(message, wire.Join):
                    await self._send(wire.Joined(group=message.group, error=str(error)))
                else:
                    failed = wire.Synced(version=message.version, stage="failed", error=str(error), pause_s=0.0)
                    await self._send(failed)
                    raise FatalError(f"weight update to version {message.version} failed: {error}") from None

    async def _join(self, join: wire.Join) -> None:
        if self._weight_group:
            await self._engine.leave(self._weight_group, join.timeout_s)
            self._weight_group = ""
        await self._engine.join(join)
        self._weight_group = join.group
        await self._send(wire.Joined(group=join.group, error=""))

    async def _update(self, order: wire.Pause) -> None:
        """From the pause to the new version. Requests in flight wait inside the engine and go on afterwards."""
        begin = time.monotonic()
        self._switch(syncing=True)
        try:
            await self._engine.pause(order.timeout_s)
            await self._send(wire.Synced(version=order.version, stage="ready", error="", pause_s=0.0))
            receive = await self._awaited(order)
            if receive is not None:
                await self._engine.receive(receive)
            await self._engine.resume(order.timeout_s)
        finally:
            self._switch(syncing=False)
        if receive is not None:
            pause = time.monotonic() - begin
            await self._send(wire.Synced(version=receive.version, stage="done", error="", pause_s=pause))

    async def _awaited(self, order: wire.Pause) -> wire.Receive | None:
        """The weights announced by a pause; joining another group may come first. None if they never come."""
        deadline = time.monotonic() + order.timeout_s
        while True:
            try:
                message = await asyncio.wait_for(self._inbox.get(), max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                log.error("version %d was announced and did not come: going on with the old weights", order.version)
                return None
            if isinstance(message, wire.Receive) and message.version == order.version:
                return message
            if isinstance(message, wire.Pause):  # of a learner that started again
                order, deadline = message, time.monotonic() + message.timeout_s
                await self._send(wire.Synced(version=order.version, stage="ready", error="", pause_s=0.0))
            if isinstance(message, wire.Join):
                try:
                    await self._join(message)
                except EngineError as error:
                    await self._send(wire.Joined(group=message.group, error=str(error)))

    # -- where the time goes -------------------------------------------------------------------------------------

    def _switch(self, *, generating: int = 0, syncing: bool | None = None) -> None:
        """Enters the time since the last change under the state the actor was in."""
        now = time.monotonic()
        self._watch.add(self._state(), now - self._since)
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


def _rollout(language: str, prompt: list[int], generation: Generation, text: str, score: wire.Score) -> wire.Rollout:
    return wire.Rollout(
        language=language,
        prompt_ids=np.array(prompt, np.int32),
        response_ids=generation.ids,
        logprobs=generation.logprobs,
        versions=generation.versions,
        truncated=generation.truncated,
        text=text,
        score=score,
    )


def _stop_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The end-of-sequence token, and the end of a chat turn where that is another one."""
    candidates = [tokenizer.eos_token, "<|im_end|>", "<|eot_id|>"]
    vocabulary = tokenizer.get_vocab()
    return sorted({vocabulary[token] for token in candidates if token in vocabulary})


def _shares(seconds: dict[str, float]) -> str:
    own = {state: spent for state, spent in seconds.items() if not state.startswith("reward_")}
    total = sum(own.values()) or 1.0
    return ", ".join(f"{state} {spent / total:.0%}" for state, spent in sorted(own.items()))
