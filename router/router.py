"""The bandit that decides in which languages a question is answered (after LRPO, arXiv 2605.25360).

Throughout the package K is the number of rollouts of a question, L the number of languages that can be drawn (the
arms), C a number of contexts, and n a number of rollouts. Arrays over languages follow the order in which the router
was given them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from common import config as configuration
from common.languages import POLICY_CHOOSES
from router.drawing import best, independent, spread, stratified
from router.logits import Logits
from router.modes import draws_are_learned, fixed_languages, needed_language
from router.observations import Array, Batch, Context, Names, Observation
from router.posterior import COMPLIANCE, QUALITY, Beliefs
from router.schedule import exploration_schedule, temperature_schedule

STATE = 3  # the format number of Router.state
_STREAM = 2  # third part of the seed [run.seed, group, stream]: keeps draws apart from the curriculum's, which has 1
_LOGGED = 200  # the most rows that one line of the log has


class Draw(NamedTuple):
    """The answer languages of one question, with the probability that each was drawn with.

    Attributes:
        languages: [K] codes, or ``POLICY_CHOOSES``. Fixed ones come first.
        propensities: [K] the effective probabilities, (1 - epsilon) p + epsilon / L; 1 for a fixed language. With
            ``credit = "posterior"`` the draws of one question depend on each other; this is the probability of each
            draw by itself, before any of them is known.
        router_version: the router's number of updates at that time.
    """

    languages: list[str]
    propensities: list[float]
    router_version: int


class Router:
    """Draws languages from (1 - epsilon) p + epsilon / L and learns p from the rewards.

    With ``credit = "posterior"``, p is the probability that a language is the best one for the question under the
    router's beliefs (:mod:`router.posterior`), whose standard deviations are scaled by the temperature tau; this is
    Thompson sampling. ``diversity`` then makes p more even (:func:`router.drawing.spread`), and the languages of one
    question are drawn as differently as p allows (:func:`router.drawing.stratified`). With "pooled" and "reference",
    p = softmax(z / tau) of the paper's logits (:mod:`router.logits`), and draws are independent. tau and epsilon fall
    as :mod:`router.schedule` says.

    Args:
        config: the section ``router`` of the run.
        languages: the L codes that can be drawn.
        seed: of the draws.
        steps: policy steps of the whole run, which ``anneal`` refers to.

    Raises:
        ValueError: there is no language, or one occurs twice; the mode needs English and ``en`` is missing; initial
            values name a language that is not among the L.

    Examples:
        >>> router = Router(configuration.RouterConfig(), ["de", "en", "zh"], seed=0, steps=64)
        >>> router.draw("de", "Reasoning", None).languages[:2]
        ['de', 'de']
    """

    def __init__(self, config: configuration.RouterConfig, languages: Sequence[str], seed: int, steps: int) -> None:
        _check(config, languages)
        self._config, self._steps = config, steps
        self._languages = list(languages)
        self._arms = {language: arm for arm, language in enumerate(languages)}
        self._seed, self._random = seed, np.random.default_rng(seed)
        self._temperature = temperature_schedule(config, steps)
        self._exploration = exploration_schedule(config, steps)
        initial = {name: [row.get(one, 0.0) for one in languages] for name, row in config.initial.items()}
        arms, own = len(languages), config.question_language
        self._beliefs = Beliefs(languages, own, initial)
        self._logits = Logits(arms, config.ema, config.group_norm, config.region_topics, own)
        self._logits.rows.update({name: np.array(row) for name, row in initial.items()})
        self._distributions: dict[Context, Array] = {}  # effective ones, [L] each, computed since the last policy step
        self._buffer: list[Batch] = []  # observed since the last update
        # Policy steps without a rollout since the last update that had some; the beliefs fade for all of them at the
        # next one.
        self._idle = 0
        self._believes = config.credit == "posterior" and draws_are_learned(config)
        self._step = 0
        self._version = 0

    @property
    def step(self) -> int:
        """The number of policy steps observed."""
        return self._step

    @property
    def version(self) -> int:
        """The number of updates so far."""
        return self._version

    @property
    def temperature(self) -> float:
        """tau at the current policy step."""
        return self._temperature.at(self._step)

    @property
    def exploration(self) -> float:
        """epsilon at the current policy step."""
        return self._exploration.at(self._step)

    # -- drawing ---------------------------------------------------------------------------------------------------

    def draw(self, question_language: str, topics: Names, regions: Names, group: int | None = None) -> Draw:
        """Chooses the languages of a question's K rollouts: fixed ones first, then those that are drawn.

        A question's language need not be among the L languages; fixed rollouts are in it all the same.

        Args:
            question_language: a code or English name, or ``""`` where it does not matter.
            topics: a name, a list of names, or None.
            regions: likewise.
            group: number of the prompt group. Random numbers are made of the seed and it, so that a group that is
                leased again, or after a resume, gets the same ones, and no other group gets different ones for it.
                None: they are the next of the router's own generator.

        Raises:
            ValueError: the language is unknown, or topics or regions are not names. Nothing was drawn.
        """
        random = self._random if group is None else np.random.default_rng([self._seed, group, _STREAM])
        return self._route([Context.of(question_language, topics, regions)], random)[0]

    def route(self, contexts: Sequence[Context]) -> list[Draw]:
        """Draws for many questions at once. Apart from rounding, these are the same draws as one after the other."""
        return self._route(contexts, self._random) if contexts else []

    def _route(self, contexts: Sequence[Context], random: np.random.Generator) -> list[Draw]:
        fixed = [fixed_languages(self._config, context.language, context.topics) for context in contexts]
        index = {context: place for place, context in enumerate(dict.fromkeys(contexts))}
        self._compute_distributions(index)
        sizes = [self._config.rollouts - len(languages) for languages in fixed]
        numbers = np.array(sizes, np.intp)
        weights = np.array([self._distributions[context] for context in index])[[index[one] for one in contexts]]
        if self._believes:
            arms = stratified(weights, numbers, self._config.rollouts, random)
        else:
            arms = independent(weights, numbers, random)
        drawn = [self._languages[arm] for arm in arms.tolist()]
        propensities = weights[np.repeat(np.arange(len(weights)), numbers), arms].tolist()
        draws, begin = [], 0
        for languages, size in zip(fixed, sizes, strict=True):
            end = begin + size
            ones = [1.0] * len(languages)
            draws.append(Draw(languages + drawn[begin:end], ones + propensities[begin:end], self._version))
            begin = end
        return draws

    def distribution(self, question_language: str, topics: Names, regions: Names) -> Array:
        """The effective probabilities with which a rollout of the question would be drawn: float64 [L].

        They are uniform in every mode except ``learned`` and ``hybrid``. Which rollouts are fixed, as all those of a
        ``Translation`` question, shows only in :meth:`draw`. The arguments are those of :meth:`draw`.

        Raises:
            ValueError: the language is unknown, or topics or regions are not names.
        """
        context = Context.of(question_language, topics, regions)
        self._compute_distributions([context])
        return self._distributions[context].copy()

    def answer_shares(self, question_language: str, topics: Names, regions: Names) -> dict[str, float] | None:
        """How a question is routed: of its rollouts beyond the ``own_language`` first, the expected share by language.

        In mode ``learned`` this is :meth:`distribution`, in the fixed modes it follows from the languages of the mode.
        Where all K rollouts are reserved for the question's own language, it is that language. The arguments are those
        of :meth:`draw`.

        Returns:
            Language -> share; the shares add up to 1. None where the policy chooses all of these languages.

        Raises:
            ValueError: the language is unknown, or topics or regions are not names.
        """
        context = Context.of(question_language, topics, regions)
        fixed = fixed_languages(self._config, context.language, context.topics)
        drawn = self._config.rollouts - len(fixed)
        rest = [language for language in fixed[self._config.own_language :] if language != POLICY_CHOOSES]
        if not rest and not drawn:
            return None if POLICY_CHOOSES in fixed else {context.language: 1.0}
        counts = dict.fromkeys(rest, 0.0)
        for language in rest:
            counts[language] += 1.0
        if drawn:
            chances = self.distribution(question_language, topics, regions).tolist()
            for language, chance in zip(self._languages, chances, strict=True):
                counts[language] = counts.get(language, 0.0) + drawn * chance
        total = drawn + len(rest)
        return {language: count / total for language, count in counts.items()}

    def drawn(self, topics: Sequence[str]) -> int:
        """How many rollouts of a question the router draws or the policy chooses; they come after the others."""
        fixed = fixed_languages(self._config, "*", topics)
        return self._config.rollouts - sum(language != POLICY_CHOOSES for language in fixed)

    def _compute_distributions(self, contexts: Iterable[Context]) -> None:
        """Adds the effective distributions that are missing."""
        missing = [context for context in contexts if context not in self._distributions]
        if missing:
            weights = self._effective(self._chances(missing))
            self._distributions.update(zip(missing, weights, strict=True))

    def _chances(self, contexts: Sequence[Context]) -> Array:
        """p, before exploration: [C, L]."""
        if not draws_are_learned(self._config) or not contexts:
            return np.full((len(contexts), len(self._languages)), 1 / len(self._languages))
        if self._config.credit != "posterior":
            return self._softmax(self._logits.of(contexts))
        mean, variance = self._beliefs.worth(contexts, self._config.compliance_weight)
        return spread(best(mean, self.temperature**2 * variance), mean, self._config.diversity)

    def _chances_of_rows(self, names: Sequence[str]) -> Array:
        """p where nothing is known of a question but what one row is about: [rows, L].

        Of the paper's logits it is softmax(row / tau), whatever ``region_topics`` says of the questions to which the
        row of a region is applied.
        """
        if self._config.credit == "posterior" or not draws_are_learned(self._config) or not names:
            return self._chances([_context_of_row(name) for name in names])
        return self._softmax(self._logits.alone(names))

    def _softmax(self, logits: Array) -> Array:
        """softmax(z / tau): [C, L]."""
        scaled = logits / self.temperature
        weights: Array = np.exp(scaled - scaled.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        return weights

    def _effective(self, chances: Array) -> Array:
        """(1 - epsilon) p + epsilon / L: [C, L]."""
        return (1 - self.exploration) * chances + self.exploration / len(self._languages)

    # -- learning --------------------------------------------------------------------------------------------------

    def observe(self, observations: Sequence[Observation]) -> None:
        """Takes everything that was scored for one policy step, of whatever age. Learns every ``interval`` steps.

        Fixed modes keep account of what the languages are worth too, but their draws do not change.

        Raises:
            ValueError: an observation is impossible. The router is then as before.
        """
        batch = Batch.of(observations, self._arms)  # also checks what follows from it
        if self._config.value == "signal":
            batch = Batch.of([one.signal() for one in observations], self._arms)
        self._buffer.append(batch.build_columns())
        self._step += 1
        self._distributions.clear()
        if self._step % self._config.interval == 0:
            self.update()

    def update(self) -> None:
        """Learns from what was observed since the last update. Does nothing where nothing was."""
        if not self._buffer:
            return
        batch, steps = Batch.joined(self._buffer), len(self._buffer)
        self._buffer.clear()
        if self._config.credit == "reference":
            self._logits.update_as_published(batch)
        elif self._config.credit == "pooled" and len(batch.arm):
            kept = batch.cells(batch.compliant.astype(np.float64), np.ones_like(batch.compliant))
            good = batch.cells(batch.reward, batch.compliant)
            weights = self._logits.weights(self._config.compliance_weight)
            credit = weights[QUALITY] * good.mean + weights[COMPLIANCE] * kept.mean
            self._logits.pooled(batch, credit, kept.counts, self._config.prior)
        if len(batch.arm):
            self._beliefs.update(batch, self._idle + steps)
            self._idle = 0
        elif self._beliefs.has_evidence:
            self._idle += steps
        self._distributions.clear()
        self._version += 1

    # -- the log ---------------------------------------------------------------------------------------------------

    def log(self) -> dict[str, Any]:
        """What was learned, as one line of ``router.jsonl``.

        Each of the following has at most 200 rows; those with the most rollouts, or those met first, are kept.

        * ``probs`` has the shape of the reference's log, ``{"topic:NAME": {"softmax": {lang: p}, "effective": {lang:
          p}}, "region:NAME": …}``: the distribution for a question about which nothing else is known.
        * ``combined`` is the effective distribution of each topic with each region that it occurred with, as
          "TOPIC | REGION".
        * ``counts`` are the rollouts of each row.
        * ``quality`` and ``compliance`` are what is believed of each row, beyond what the shared row says.
        """
        beliefs = self._beliefs
        counts = beliefs.counts()
        most = set(sorted(counts, key=lambda name: -counts[name].sum())[:_LOGGED])
        seen = {name: row for name, row in counts.items() if name in most}
        alone = [name for name in seen if not name.startswith("shared:")]
        quality, compliance = beliefs.terms(QUALITY), beliefs.terms(COMPLIANCE)
        pairs = {
            f"{'+'.join(one.topics) or '-'} | {'+'.join(one.regions) or '-'}": one for one in beliefs.met[:_LOGGED]
        }
        chances = dict(zip(alone, self._chances_of_rows(alone), strict=True))
        chances |= zip(pairs, self._chances([*pairs.values()]), strict=True)

        def by_language(values: Array) -> dict[str, float]:
            return dict(zip(self._languages, values.tolist(), strict=True))

        return {
            "probs": {
                name: {"softmax": by_language(chances[name]), "effective": by_language(self._effective(chances[name]))}
                for name in alone
            },
            "combined": {name: by_language(self._effective(chances[name])) for name in pairs},
            "counts": {name: by_language(row) for name, row in seen.items()},
            "quality": {name: by_language(quality[name]) for name in seen if name in quality},
            "compliance": {name: by_language(compliance[name]) for name in seen if name in compliance},
            "temperature": self.temperature,
            "exploration": self.exploration,
            "version": self._version,
        }

    # -- saving and loading ----------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """The whole state, as values of JSON. A router of the same configuration that loads it continues the same."""
        return {
            "format": STATE,
            "config": self._config.model_dump(mode="json"),  # for router/show.py; a resumed run may have another one
            "steps": self._steps,
            "languages": list(self._languages),
            "beliefs": self._beliefs.state(),
            "logits": {name: row.tolist() for name, row in self._logits.rows.items()},
            "seen": self._logits.seen.tolist(),
            "buffer": [batch.state() for batch in self._buffer],
            "idle": self._idle,
            "step": self._step,
            "version": self._version,
            "random": self._random.bit_generator.state,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continues from a :meth:`state`, which may have passed through JSON. Call it before drawing or observing.

        Raises:
            ValueError: the state has another format, other languages, or the same languages in another order.
        """
        if state.get("format") != STATE:
            raise ValueError(f"the saved router has format {state.get('format')}, but this program reads {STATE}")
        if state["languages"] != self._languages:
            raise ValueError(
                f"the saved router has languages {state['languages']}, this run {self._languages}; "
                "set run.languages to the saved list, or start a new run in another run.dir"
            )
        self._beliefs.load(state["beliefs"])
        self._logits.rows = {name: np.array(row) for name, row in state["logits"].items()}
        self._logits.seen = np.array(state["seen"])
        self._buffer = [Batch.from_state(batch) for batch in state["buffer"]]
        self._idle = state.get("idle", 0)  # earlier versions did not count these steps
        self._step, self._version = state["step"], state["version"]
        self._random.bit_generator.state = state["random"]
        self._distributions.clear()


def _check(config: configuration.RouterConfig, languages: Sequence[str]) -> None:
    """Raises ValueError where the configuration does not fit the languages of the run."""
    if not languages or len(set(languages)) != len(languages):
        raise ValueError(f"the router needs languages, each once, not {list(languages)}; see run.languages")
    if (needed := needed_language(config)) and needed not in languages:
        raise ValueError(f"router.mode = {config.mode!r} answers in {needed!r}: add it to run.languages")
    for name, row in config.initial.items():
        if unknown := sorted(set(row) - set(languages)):
            raise ValueError(f"router.initial.{name!r} names {unknown}, but run.languages are {' '.join(languages)}")


def _context_of_row(row: str) -> Context:
    """The context of a question of which nothing is known except what one row is about."""
    kind, _, name = row.partition(":")
    if kind == "question":
        return Context(name, (), ())
    return Context("", (name,), ()) if kind == "topic" else Context("", (), (name,))
