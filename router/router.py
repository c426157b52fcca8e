"""The bandit that decides in which languages a question is answered (after LRPO, arXiv 2605.25360)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from common import config as configuration
from common.languages import POLICY_CHOOSES
from router.logits import Logits
from router.observations import Array, Batch, Context, Observation
from router.posterior import COMPLIANCE, QUALITY, Beliefs, best

TRANSLATION = "Translation"  # the topic whose answers are in a language the question fixes
STATE = 2  # version of Router.state
_LOGGED = 200  # rows a line of the log has at most


class Draw(NamedTuple):
    """Answer languages of one question, with the probability each was drawn with.

    ``propensities`` are the effective ones, (1 - ε) p + ε / L, and 1 where nothing was left to chance.
    """

    languages: list[str]  # [K]
    propensities: list[float]  # [K]
    router_version: int


class Router:
    """Draws languages from ``(1 - ε) p + ε / L`` and learns p from the rewards.

    With ``credit = "posterior"``, p is the probability that a language is the best one for the question, given what is
    believed of it (:mod:`router.posterior`): Thompson sampling, with deviations scaled by the temperature τ, and never
    below ``indifference`` times that of the noise. With "pooled" and "reference", p = softmax(z / τ) of the paper's
    logits (:mod:`router.logits`). At policy step s ``τ = max(τ_min, τ_0 d^s)``, or falls linearly to τ_min over the
    first ``anneal`` of the run; ε likewise.

    Args:
        config: the run's ``router`` section.
        languages: the L arms, in the order of every array this class returns.
        seed: of the draws.
        steps: of the whole run, for ``anneal``.

    Raises:
        ValueError: no language, or one twice; a mode that needs English without ``en``; initial logits of a language
            that is no arm.

    Example:
        >>> router = Router(configuration.RouterConfig(), ["de", "en", "zh"], seed=0, steps=64)
        >>> router.draw("de", "Reasoning", None).languages[:2]
        ['de', 'de']
    """

    def __init__(self, config: configuration.RouterConfig, languages: Sequence[str], seed: int, steps: int) -> None:
        if not languages or len(set(languages)) != len(languages):
            raise ValueError(f"the router needs languages, each once, not {list(languages)}; see run.languages")
        if config.mode in ("input_dominant", "english_dominant") and "en" not in languages:
            raise ValueError(f"router.mode = {config.mode!r} answers in English: add 'en' to run.languages")
        for name, row in config.initial.items():
            if set(row) - set(languages):
                raise ValueError(
                    f"router.initial.{name!r} names {sorted(set(row) - set(languages))}, "
                    f"but run.languages are {' '.join(languages)}"
                )
        self._config, self._steps = config, steps
        self._languages = list(languages)
        self._arms = {language: arm for arm, language in enumerate(languages)}
        self._random = np.random.default_rng(seed)
        initial = {name: [row.get(one, 0.0) for one in languages] for name, row in config.initial.items()}
        arms, own = len(languages), config.question_language
        self._beliefs = Beliefs(arms, config.prior, config.ema, own, initial)
        self._logits = Logits(arms, config.ema, config.group_norm, config.region_topics, own)
        self._logits.rows.update({name: np.array(row) for name, row in initial.items()})
        self._known: dict[Context, Array] = {}  # distributions since the last step
        self._buffer: list[Batch] = []
        self._step = 0
        self._version = 0

    @property
    def step(self) -> int:
        """Policy steps observed; drives the schedules."""
        return self._step

    @property
    def version(self) -> int:
        """Updates so far."""
        return self._version

    @property
    def temperature(self) -> float:
        config = self._config
        return self._scheduled(config.temperature, config.temperature_min, config.temperature_decay)

    @property
    def exploration(self) -> float:
        config = self._config
        return self._scheduled(config.exploration, config.exploration_min, config.exploration_decay)

    def _scheduled(self, start: float, end: float, decay: float) -> float:
        if self._config.anneal:
            return start + (end - start) * min(1.0, self._step / (self._config.anneal * self._steps))
        return max(end, start * decay**self._step)

    # -- drawing ---------------------------------------------------------------------------------------------------

    def draw(
        self, question_language: str, topics: str | Sequence[str] | None, regions: str | Sequence[str] | None
    ) -> Draw:
        """Languages of a question's K rollouts: fixed ones first, each with propensity 1, then independent draws.

        A question's language need not be an arm; fixed rollouts are in it all the same. ``POLICY_CHOOSES`` is
        left to the policy.

        Raises:
            ValueError: an unknown language, or topics or regions that are no names; nothing was drawn.
        """
        return self.route([Context.of(question_language, topics, regions)])[0]

    def route(self, contexts: Sequence[Context]) -> list[Draw]:
        """As :meth:`draw`, for many questions at once; the same draws, but for rounding, as one after the other."""
        if not contexts:
            return []
        fixed = [self._fixed(context.language, context.topics) for context in contexts]
        self._find(dict.fromkeys(contexts))
        sizes = [self._config.rollouts - len(languages) for languages in fixed]
        chances = self._random.random(sum(sizes))
        weights = np.repeat(np.array([self._known[context] for context in contexts]), sizes, axis=0)
        arms = np.minimum((weights.cumsum(1) <= chances[:, None]).sum(1), len(self._languages) - 1)
        drawn = [self._languages[arm] for arm in arms.tolist()]
        propensities = weights[np.arange(len(arms)), arms].tolist()
        draws, begin = [], 0
        for languages, size in zip(fixed, sizes, strict=True):
            end = begin + size
            ones = [1.0] * len(languages)
            draws.append(Draw(languages + drawn[begin:end], ones + propensities[begin:end], self._version))
            begin = end
        return draws

    def distribution(
        self, question_language: str, topics: str | Sequence[str] | None, regions: str | Sequence[str] | None
    ) -> Array:
        """Effective propensities of a rollout that is drawn, [L] float64.

        Uniform in every mode but ``learned`` and ``hybrid``. What is fixed beforehand (``Translation`` questions for
        one) shows in :meth:`draw` alone.
        """
        context = Context.of(question_language, topics, regions)
        self._find([context])
        return self._known[context].copy()

    def drawn(self, topics: Sequence[str]) -> int:
        """How many of a question's rollouts are drawn or chosen, and come after those that are not."""
        return self._config.rollouts - sum(one != POLICY_CHOOSES for one in self._fixed("*", topics))

    def _fixed(self, own: str, topics: Sequence[str]) -> list[str]:
        """The rollouts that are not drawn, those that the policy chooses last."""
        count = self._config.rollouts
        quarter = (count + 2) // 4  # rounded, halves up
        if TRANSLATION in topics:
            return [own] * count
        match self._config.mode:
            case "learned":
                return [own] * self._config.own_language
            case "monolingual":
                return [own] * count
            case "input_dominant":
                return [own] * (count - quarter) + ["en"] * quarter
            case "english_dominant":
                return [own] * quarter + ["en"] * (count - quarter)
            case "uniform":
                return [own] * quarter
            case "policy":
                return [POLICY_CHOOSES] * count
            case "hybrid":
                free = self._config.free_rollouts
                return [own] * min(self._config.own_language, count - free) + [POLICY_CHOOSES] * free

    def _find(self, contexts: Iterable[Context]) -> None:
        missing = [context for context in contexts if context not in self._known]
        if missing:
            weights = self._explored(self._chances(missing))
            self._known.update(zip(missing, weights, strict=True))

    def _chances(self, contexts: Sequence[Context]) -> Array:
        """p before exploration, [C, L]."""
        if self._config.mode not in ("learned", "hybrid") or not contexts:
            return np.full((len(contexts), len(self._languages)), 1 / len(self._languages))
        if self._config.credit != "posterior":
            scaled = self._logits.of(contexts) / self.temperature
            weights: Array = np.exp(scaled - scaled.max(1, keepdims=True))
            weights /= weights.sum(1, keepdims=True)
            return weights
        mean, variance = self._beliefs.worth(contexts, self._config.compliance_weight)
        undecided = self._config.indifference**2 * self._beliefs.noise[QUALITY]
        return best(mean, self.temperature**2 * variance + undecided)

    def _explored(self, chances: Array) -> Array:
        return (1 - self.exploration) * chances + self.exploration / len(self._languages)

    # -- learning --------------------------------------------------------------------------------------------------

    def observe(self, observations: Sequence[Observation]) -> None:
        """All that was scored for one policy step, of whatever age; every ``interval`` steps the router learns.

        Fixed modes keep account of the languages' worth too, but draw as ever.

        Raises:
            ValueError: an observation is not possible; the router is as before.
        """
        self._buffer.append(Batch.of(observations, self._arms))
        self._step += 1
        self._known.clear()
        if self._step % self._config.interval == 0:
            self.update()

    def update(self) -> None:
        """Learns from what was observed since the last update, if anything was."""
        if not self._buffer:
            return
        batch = Batch.joined(self._buffer)
        self._buffer.clear()
        if self._config.credit == "reference":
            self._logits.reference(batch)
        elif self._config.credit == "pooled" and len(batch.arm):
            kept = batch.cells(batch.compliant.astype(np.float64), np.ones_like(batch.compliant))
            good = batch.cells(batch.reward, batch.compliant)
            weights = self._beliefs.weights(self._config.compliance_weight)
            credit = weights[QUALITY] * good.mean + weights[COMPLIANCE] * kept.mean
            self._logits.pooled(batch, credit, kept.counts, self._config.prior)
        if len(batch.arm):
            self._beliefs.update(batch)
        self._known.clear()
        self._version += 1

    # -- looking ---------------------------------------------------------------------------------------------------

    def log(self) -> dict[str, Any]:
        """One line of the log: what was learned, as JSON.

        ``probs`` has the shape of the reference's log, ``{"topic:NAME": {"softmax": {lang: p}, "effective": {lang: p}},
        "region:NAME": …}``, of each row by itself; ``combined`` the effective distribution of each topic with each
        region met, as "TOPIC | REGION"; ``counts`` the rollouts, ``quality`` and ``compliance`` what is believed of
        each row beside what the shared row says. No more than 200 of each, those with the most rollouts or met first.
        """
        beliefs = self._beliefs
        rollouts = {name: float(beliefs.counts[row].sum()) for name, row in beliefs.rows.items()}
        names = sorted((name for name in rollouts if rollouts[name]), key=lambda name: -rollouts[name])[:_LOGGED]
        seen = {name: beliefs.rows[name] for name in beliefs.rows if name in set(names)}
        alone = {name: _context(name) for name in seen if not name.startswith("shared:")}
        pairs = {
            f"{'+'.join(one.topics) or '-'} | {'+'.join(one.regions) or '-'}": one for one in beliefs.met[:_LOGGED]
        }
        chances = dict(zip([*alone, *pairs], self._chances([*alone.values(), *pairs.values()]), strict=True))

        def named(values: Array) -> dict[str, float]:
            return dict(zip(self._languages, values.tolist(), strict=True))

        return {
            "probs": {
                name: {"softmax": named(chances[name]), "effective": named(self._explored(chances[name]))}
                for name in alone
            },
            "combined": {name: named(self._explored(chances[name])) for name in pairs},
            "counts": {name: named(beliefs.counts[row]) for name, row in seen.items()},
            "quality": {name: named(beliefs.mean[QUALITY, row]) for name, row in seen.items()},
            "compliance": {name: named(beliefs.mean[COMPLIANCE, row]) for name, row in seen.items()},
            "temperature": self.temperature,
            "exploration": self.exploration,
            "version": self._version,
        }

    # -- surviving -------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything, as JSON; a router of the same configuration that loads it goes on identically."""
        return {
            "format": STATE,
            "config": self._config.model_dump(mode="json"),  # to show it by; a resumed run may have another
            "steps": self._steps,
            "languages": list(self._languages),
            "beliefs": self._beliefs.state(),
            "logits": {name: row.tolist() for name, row in self._logits.rows.items()},
            "buffer": [batch.state() for batch in self._buffer],
            "step": self._step,
            "version": self._version,
            "random": self._random.bit_generator.state,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from a :meth:`state`, also one that went through JSON; before anything was drawn or observed.

        Raises:
            ValueError: the state is of another format, of other languages, or of the same in another order.
        """
        if state.get("format") != STATE:
            raise ValueError(f"the saved router has format {state.get('format')}, this program writes {STATE}")
        if state["languages"] != self._languages:
            raise ValueError(
                f"the saved router has languages {state['languages']}, this run {self._languages}; "
                "set run.languages to the saved list, or start a new run in another run.dir"
            )
        self._beliefs.load(state["beliefs"])
        self._logits.rows = {name: np.array(row) for name, row in state["logits"].items()}
        self._buffer = [Batch.from_state(batch) for batch in state["buffer"]]
        self._step, self._version = state["step"], state["version"]
        self._random.bit_generator.state = state["random"]
        self._known.clear()


def _context(row: str) -> Context:
    """A question of which nothing is known but what one row is about."""
    kind, _, name = row.partition(":")
    if kind == "question":
        return Context(name, (), ())
    return Context("", (name,), ()) if kind == "topic" else Context("", (), (name,))
