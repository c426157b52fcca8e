"""What people see of a run: TensorBoard, one line a step in the terminal, and ``summary.json`` at the end."""

from __future__ import annotations

import html
import io
import json
import logging
import math
import re
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard.summary import histogram, text

from common.config import Config
from learner.evaluate.languages import Evaluation
from learner.groups import Group, StepResult
from learner.report.events import Events
from learner.report.pages import layout
from learner.report.verdict import Seconds, Verdict, judge
from learner.report.verdict import stages as shares_of_stages
from learner.train import stages
from learner.train.trainer import outcome
from learner.weights.publisher import Published
from learner.work.actors import ActorState
from router.show import mutual_information, picture

log = logging.getLogger("learner")

_POINTS = 1000  # of a series; TensorBoard keeps no more
_RARE = 10  # texts, and heat maps, of a run; TensorBoard keeps no more
_WINDOW_S = 30.0  # the verdict is about the steps of this time: actors tell theirs every two seconds
_DRAWS = 4096  # newest ones by the router, for what region and language share
_SHUFFLES = 20
_CUT = 500  # characters of an answer in a text
_BY_LANGUAGE = ("entropy", "mismatch")


@dataclass(frozen=True)
class Pulse:
    """How the processes fared until now; ``seconds`` and ``counts`` are totals since they started."""

    seconds: Seconds
    counts: Mapping[str, int]
    peers: Mapping[str, ActorState]
    published: Published
    spent_s: float  # since the step before


def token_lags(batch: list[Group], version: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Policy updates between each response token and the step that trains on it, at ``version``: [tokens]."""
    return version - np.concatenate([rollout.versions for group in batch for rollout in group.rollouts])


def time_spent(learner: dict[str, float], peers: Mapping[str, ActorState]) -> Seconds:
    """Seconds in each state since it started, of every process that has told so far."""
    seconds = {"learner": learner}
    for name, peer in peers.items():
        if not peer.seconds:
            continue
        seconds[f"actor {name}"] = {s: v for s, v in peer.seconds.items() if not s.startswith("reward_")}
        reward = {s.removeprefix("reward_"): v for s, v in peer.seconds.items() if s.startswith("reward_")}
        if sum(reward.values()) > sum(seconds.get("reward", {}).values()):
            seconds["reward"] = reward
    return seconds


def _since(before: Seconds, now: Seconds) -> Seconds:
    """What was spent meanwhile; one whose total fell has started again."""
    spent: Seconds = {}
    for process, states in now.items():
        old = before.get(process, {})
        old = old if sum(states.values()) >= sum(old.values()) else {}
        spent[process] = {state: max(0.0, value - old.get(state, 0.0)) for state, value in states.items()}
    return spent


def per_step(before: Seconds, now: Seconds, steps: int) -> Seconds:
    """What one of the ``steps`` between took, on average."""
    return {process: {s: v / steps for s, v in spent.items()} for process, spent in _since(before, now).items()}


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except json.JSONDecodeError:  # cut off when the process was killed
        return math.inf


class Report:
    """Writes TensorBoard events to ``run.dir/tensorboard``; docs/metrics.md lists the metrics.

    A long run has a point for several steps: the mean of them, of names ending in ``_max`` the largest.

    Args:
        bound: of the staleness.
        begin: the step a resumed run goes on from; what was written of later ones is undone with them.
    """

    def __init__(self, config: Config, bound: int, begin: int) -> None:
        self._config, self._bound, self._number = config, bound, begin
        self._steps = config.learner.steps
        self._every, self._rarely = math.ceil(self._steps / _POINTS), math.ceil(self._steps / _RARE)
        self._events = Events(config.run.dir / "tensorboard", begin, layout())
        self._values: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        self._first: Seconds = {}
        self._past: deque[tuple[float, Seconds, Counter[str]]] = deque()  # when, totals, tokens by actor
        self._tokens: Counter[str] = Counter()
        self._draws: deque[tuple[str, str]] = deque(maxlen=_DRAWS)  # region, language
        self._told: set[Path] = set()  # files that cannot be written
        self._router_log = config.run.dir / "router.jsonl"
        lines = self._router_log.read_text(encoding="utf-8").splitlines() if self._router_log.exists() else []
        settings = config.run.dir / "config.json"
        with self._spared(settings):
            settings.write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
        with self._spared(self._router_log):
            kept = [line + "\n" for line in lines if _step_of(line) <= begin]
            self._router_log.write_text("".join(kept), encoding="utf-8")

    def begin(self, seconds: Seconds) -> None:
        """The first step begins; what the processes did before is not its."""
        self._first = seconds
        self._past.append((time.monotonic(), seconds, Counter()))

    def overall(self) -> Verdict:
        """About all steps together."""
        last = self._past[-1][1] if self._past else self._first
        return judge(_since(self._first, last), self._config, {}, {})

    def step(self, number: int, batch: list[Group], result: StepResult, pulse: Pulse) -> tuple[str, dict[str, float]]:
        """Step ``number`` (from 1) trained ``batch``; the line about it, and tokens/s of each actor."""
        self._number = number
        lags = token_lags(batch, number - 1)
        scores = [rollout.score for group in batch for rollout in group.rollouts]
        reward = float(np.mean([score.reward for score in scores]))
        compliance = float(np.mean([score.compliant for score in scores]))
        rate = len(lags) / max(pulse.spent_s, 1e-9)
        means = dict(result.means)
        fates = Counter(outcome(group, self._config.learner) for group in batch)
        p50, p99 = np.percentile(lags, [50, 99], method="inverted_cdf")
        self._note("health", lag_mean=lags.mean(), lag_p50=p50, lag_p99=p99, lag_max=lags.max(), lag_bound=self._bound)
        self._note("health", {name: means.pop(name) for name in ("mismatch",) if name in means})
        self._note("health", masked=fates["masked"] / len(batch), skipped_steps=bool(result.problem))
        self._note("health", calibration_drift=max(score.drift for score in scores))
        self._note("health", {f"groups_{name}": pulse.counts[name] for name in ("failed", "retried", "orphaned")})
        self._note("health", sync_seconds=pulse.published.seconds, pause_seconds=pulse.published.pause_s)
        self._note("learning", means, reward=reward, compliance=compliance, grad_norm=result.grad_norm, lr=result.lr)
        self._note("learning", zero_variance=fates["zero_variance"] / len(batch))
        self._note("flow", tokens_per_second=rate, batch_fill=result.fill)
        self._note("flow", {f"groups_{name}": pulse.counts[name] for name in ("leased", "finished")})
        terms = defaultdict(list)
        for score in scores:
            for term, value in score.terms.items():
                terms[term].append(value)
        self._note("terms", {term: np.mean(values) for term, values in terms.items()})
        self._note("selection", stages.metrics(batch))
        self._languages(number, batch, result)
        verdict, rates = self._flow(batch, pulse)
        if number % self._every == 0 or number == self._steps:
            self._events.write(number, histogram("health/lag", lags, bins=np.arange(lags.min(), lags.max() + 2) - 0.5))
            self._flush()
        if number % self._rarely == 1 % self._rarely:
            diverse = max(batch, key=lambda group: len({rollout.language for rollout in group.rollouts}))
            self._events.write(number, text("sample", sample(diverse)))
        line = (
            f"step {number}/{self._steps}  reward {reward:.3f}  compliance {compliance:.2f}  "
            f"lag {lags.mean():.1f}/{self._bound}  {rate:.0f} tokens/s  {verdict}"
        )
        log.info("%s", line)
        return line, rates

    def _flow(self, batch: list[Group], pulse: Pulse) -> tuple[str, dict[str, float]]:
        """Notes who worked and who waited; the verdict, and tokens/s of each actor."""
        now = time.monotonic()
        for group in batch:
            self._tokens[group.actor] += sum(len(rollout.response_ids) for rollout in group.rollouts)
        while len(self._past) > 1 and self._past[1][0] < now - _WINDOW_S:
            self._past.popleft()
        began, before, tokens = self._past[0]
        self._past.append((now, pulse.seconds, self._tokens.copy()))
        passed, trained = max(now - began, 1e-9), self._tokens - tokens
        rates = {name: trained[name] / passed for name in sorted(pulse.published.members)}
        pools: defaultdict[str, float] = defaultdict(float)
        for name, rate in rates.items():
            pools[pool_of(name)] += rate
        gauges = {name: peer.gauges for name, peer in pulse.peers.items() if peer.gauges}
        spent = _since(before, pulse.seconds)
        verdict = judge(spent, self._config, rates, gauges)
        for stage, states in shares_of_stages(spent).items():
            self._note(f"flow/{stage}", states)
        self._note("flow", lost=verdict.lost, gain=verdict.gain)
        self._note("flow/demand", verdict.demand)
        self._note("flow/actor_tokens", rates)
        self._note("flow/pool_tokens", pools)
        self._note("flow/kv_use", {name: told["usage"] for name, told in gauges.items() if "usage" in told})
        if errors := [told["probe_error"] for told in gauges.values() if "probe_error" in told]:
            self._note("health", probe_error=max(errors))
        return str(verdict), rates

    def _languages(self, number: int, batch: list[Group], result: StepResult) -> None:
        by_language = defaultdict(list)
        for group in batch:
            routed = [p < 1 for p in group.work.propensities]
            for rollout, drawn in zip(group.rollouts, routed, strict=True):
                by_language[rollout.language or "none"].append(rollout)
                self._draws.extend(
                    (region, rollout.language) for region in group.work.question.regions if drawn and rollout.language
                )
        total = sum(map(len, by_language.values()))
        for language, rollouts in by_language.items():
            values = {
                "reward": np.mean([rollout.score.reward for rollout in rollouts]),
                "quality": np.mean([rollout.score.quality for rollout in rollouts]),
                "compliance": np.mean([rollout.score.compliant for rollout in rollouts]),
                "length": np.mean([len(rollout.response_ids) for rollout in rollouts]),
                "truncated": np.mean([rollout.truncated for rollout in rollouts]),
                "share": len(rollouts) / total,
                "lag": number - 1 - np.concatenate([rollout.versions for rollout in rollouts]).mean(),
            }
            self._note("languages", values, run=language)
        for metric in _BY_LANGUAGE:
            for language, value in result.by_language.get(metric, {}).items():  # of those that carry gradient
                self._note("languages", {metric: value}, run=language)

    def router(self, number: int, learned: dict[str, Any]) -> None:
        """What the router has learned: as one line of ``router.jsonl``, and from time to time as heat maps."""
        shared, chance = mutual_information(list(self._draws), _SHUFFLES)
        self._note("router", region_language_bits=shared, region_language_bits_by_chance=chance)
        line = {"step": number, **learned}
        with self._spared(self._router_log), self._router_log.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")
        if learned["probs"] and number // self._rarely > (number - self._config.router.interval) // self._rarely:
            png = io.BytesIO()
            picture(line, png)
            image = Summary.Image(encoded_image_string=png.getvalue(), colorspace=4)
            self._events.write(number, Summary(value=[Summary.Value(tag="router/probabilities", image=image)]))

    def evaluation(self, number: int, name: str, evaluation: Evaluation) -> None:
        self._number = number
        numbers = {key: value for key, value in evaluation.as_dict().items() if isinstance(value, float)}
        self._note(f"evaluation_{name}", numbers)
        self._flush()
        english = "not asked" if evaluation.english is None else f"{evaluation.english:.3f}"
        log.info(
            "%s after %d steps: greedy reward in the question's own language %.3f (compliance %.2f); "
            "oracle %.3f, routed %.3f, best fixed language (%s) %.3f, English %s, uniform %.3f",
            name, number, evaluation.own, evaluation.compliance, evaluation.oracle, evaluation.routed,
            evaluation.best_fixed_language, evaluation.best_fixed, english, evaluation.uniform,
        )  # fmt: skip

    def settings(self, number: int, name: str, told: dict[str, float]) -> None:
        """What sampled answers of a question set came to in each setting."""
        self._number = number
        self._note(f"evaluation_{name}", told)
        self._flush()

    def summary(self, summary: dict[str, Any]) -> None:
        path = self._config.run.dir / "summary.json"
        with self._spared(path):
            path.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def close(self) -> None:
        self._flush()
        self._events.close()

    def _note(self, page: str, values: Mapping[Any, Any] | None = None, run: str = "", **more: Any) -> None:
        for name, value in {**(values or {}), **more}.items():
            self._values[run, f"{page}/{name}"].append(float(value))

    def _flush(self) -> None:
        """Writes a point of every series noted since the last one."""
        points: defaultdict[str, Summary] = defaultdict(Summary)
        for (run, tag), values in self._values.items():
            value = max(values) if tag.endswith("_max") else sum(values) / len(values)
            points[run].value.add(tag=tag, simple_value=value)
        self._values.clear()
        for run, summary in points.items():
            self._events.write(self._number, summary, run=run)

    @contextmanager
    def _spared(self, path: Path) -> Iterator[None]:
        """A run goes on when a file about it cannot be written, and says so once."""
        try:
            yield
        except OSError as error:
            if path not in self._told:
                log.warning("cannot write %s: %s; the run goes on without", path, error)
            self._told.add(path)


def pool_of(actor: str) -> str:
    """Actors named ``l40s-0`` and ``l40s-1`` are the pool ``l40s``."""
    return re.sub(r"[-_.]?\d+$", "", actor) or actor


def sample(group: Group) -> str:
    """A group as Markdown."""
    asked = group.work.question
    about = ", ".join([asked.language, *asked.topics, *asked.regions])
    lines = [f"**{name}** {_quoted(said)}\n" for name, said in [
        (f"Question ({about})", asked.messages[-1].content), ("Reference", asked.reference),
    ]]  # fmt: skip
    lines += ["| language | answer | heard as | quality | reward | tokens |", "|---|---|---|---|---|---|"]
    for rollout in group.rollouts:
        score = rollout.score
        cells = [rollout.language, _quoted(rollout.text), score.detected, f"{score.quality:.3f}", f"{score.reward:.3f}"]
        lines.append("| " + " | ".join([*cells, f"{len(rollout.response_ids)}{' (cut)' * rollout.truncated}"]) + " |")
    return "\n".join([f"{group.work.id}, answered by {_quoted(group.actor)}\n", *lines])


def _quoted(words: str) -> str:
    """Literal in Markdown, and isolated: text that runs from right to left does not reorder what is around it."""
    flat = " ".join(words.split())
    flat = flat if len(flat) <= _CUT else flat[:_CUT] + "…"
    return "\u2068" + re.sub(r"([\\`*_{}\[\]()#+!|~-])", r"\\\1", html.escape(flat, quote=False)) + "\u2069"
