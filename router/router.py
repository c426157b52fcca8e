"""The bandit that decides in which languages a question is answered (LRPO, arXiv 2605.25360)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from common import config as configuration
from router.credit import Array, Observation, targets

TRANSLATION = "Translation"  # the topic whose answers are in a language the question fixes


@dataclass(frozen=True)
class Draw:
    """Answer languages of one question, with the probability each was drawn with.

    ``propensities`` are the effective ones, (1 - ε) p + ε / L, and 1 where nothing was left to chance.
    """

    languages: list[str]  # [K]
    propensities: list[float]  # [K]
    router_version: int


class Router:
    """Logits A[topic, language] and B[region, language], sampled with temperature τ and exploration ε.

    For a question with topics t and regions g the language is drawn from ``(1 - ε) softmax(z / τ) + ε / L`` where
    ``z = Σ A[t] + 1[has region] Σ B[g]``, with ``τ = max(τ_min, τ_0 d^s)``, and ε likewise, at policy step s. Rows
    start at zero and exist once something was learned about them.

    Args:
        config: the run's ``router`` section.
        languages: the L arms, in the order of every array this class returns.
        seed: of the draws.

    Raises:
        ValueError: no language, or one twice; a mode that needs English without ``en``.
    """

    def __init__(self, config: configuration.Router, languages: Sequence[str], seed: int) -> None:
        if not languages or len(set(languages)) != len(languages):
            raise ValueError(f"the router needs languages, each once, not {list(languages)}; see run.languages")
        if config.mode in ("input_dominant", "english_dominant") and "en" not in languages:
            raise ValueError(f"router.mode = {config.mode!r} answers in English: add 'en' to run.languages")
        self._config = config
        self._languages = list(languages)
        self._random = np.random.default_rng(seed)
        self._rows: dict[str, dict[str, Array]] = {"topic": {}, "region": {}}  # name -> [L]
        self._buffer: list[Observation] = []
        self._step = 0
        self._version = 0

    @property
    def step(self) -> int:
        """Policy steps observed; drives the schedules."""
        return self._step

    @property
    def version(self) -> int:
        """Updates of the logits so far."""
        return self._version

    @property
    def temperature(self) -> float:
        return max(self._config.temperature_min, self._config.temperature * self._config.temperature_decay**self._step)

    @property
    def exploration(self) -> float:
        return max(self._config.exploration_min, self._config.exploration * self._config.exploration_decay**self._step)

    # -- drawing ---------------------------------------------------------------------------------------------------

    def draw(self, question_language: str, topics: Sequence[str], regions: Sequence[str]) -> Draw:
        """Languages of a question's K rollouts: fixed ones first, each with propensity 1, then independent draws.

        A question's language need not be an arm; fixed rollouts are in it all the same.
        """
        fixed = self._fixed(question_language, topics)
        weights = self.distribution(topics, regions)
        arms = self._random.choice(len(weights), size=self._config.rollouts - len(fixed), p=weights)
        return Draw(
            languages=fixed + [self._languages[arm] for arm in arms],
            propensities=[1.0] * len(fixed) + [float(weights[arm]) for arm in arms],
            router_version=self._version,
        )

    def distribution(self, topics: Sequence[str], regions: Sequence[str]) -> Array:
        """Effective propensities of a rollout that is drawn, [L] float64.

        Uniform in every mode but ``learned``. What is fixed beforehand (``Translation`` questions for one) shows in
        :meth:`draw` alone.
        """
        if self._config.mode != "learned":
            return np.full(len(self._languages), 1 / len(self._languages))
        return self._explored(self._softmax(self._logits(topics, regions)))

    def _fixed(self, own: str, topics: Sequence[str]) -> list[str]:
        """The rollouts that are not drawn."""
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

    def _logits(self, topics: Sequence[str], regions: Sequence[str]) -> Array:
        logits = np.zeros(len(self._languages))
        for topic in dict.fromkeys(topics):
            logits += self._rows["topic"].get(topic, 0.0)
        counted = self._config.region_topics
        if not counted or set(counted) & set(topics):
            for region in dict.fromkeys(regions):
                logits += self._rows["region"].get(region, 0.0)
        return logits

    def _softmax(self, logits: Array) -> Array:
        scaled = logits / self.temperature
        weights: Array = np.exp(scaled - scaled.max())
        weights /= weights.sum()
        return weights

    def _explored(self, probabilities: Array) -> Array:
        return (1 - self.exploration) * probabilities + self.exploration / len(self._languages)

    # -- learning --------------------------------------------------------------------------------------------------

    def observe(self, observations: Sequence[Observation]) -> None:
        """All rollouts of one policy step; every ``interval`` steps the logits move towards what they were worth.

        ``A[t, l] ← (1 - α) A[t, l] + α v``, and B likewise, with v from :func:`router.credit.targets`; arms that were
        not drawn keep their value. Fixed modes count steps and learn nothing.
        """
        self._step += 1
        if self._config.mode != "learned":
            return
        self._buffer.extend(observations)
        if self._step % self._config.interval == 0:
            self._update()
            self._buffer.clear()

    def _update(self) -> None:
        found = targets(
            self._buffer,
            self._languages,
            center_by_question=self._config.center_by_question,
            group_norm=self._config.group_norm,
        )
        for (kind, name), target in found.items():
            row = self._rows[kind].setdefault(name, np.zeros(len(self._languages)))
            row += self._config.ema * (target.values - row) * target.present
        self._version += 1

    # -- looking ---------------------------------------------------------------------------------------------------

    def probabilities(self) -> dict[str, dict[str, dict[str, float]]]:
        """Of each row by itself: ``{"topic:NAME": {"softmax": {lang: p}, "effective": {lang: p}}, "region:NAME": …}``.

        The shape that the LRPO reference logs.
        """
        result = {}
        for kind, rows in self._rows.items():
            for name, row in rows.items():
                softmax = self._softmax(row)
                result[f"{kind}:{name}"] = {
                    "softmax": dict(zip(self._languages, softmax.tolist(), strict=True)),
                    "effective": dict(zip(self._languages, self._explored(softmax).tolist(), strict=True)),
                }
        return result

    def top_by_topic(self) -> dict[str, str]:
        """The language with the highest logit of each topic learned about; the first of several."""
        return {topic: self._languages[int(row.argmax())] for topic, row in self._rows["topic"].items()}

    # -- surviving -------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything that is not configuration, as JSON; a router that loads it goes on identically."""
        return {
            "languages": list(self._languages),
            "rows": {kind: {name: row.tolist() for name, row in rows.items()} for kind, rows in self._rows.items()},
            "buffer": [asdict(observation) for observation in self._buffer],
            "step": self._step,
            "version": self._version,
            "random": self._random.bit_generator.state,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Goes on from a :meth:`state`, also one that went through JSON.

        Raises:
            ValueError: the state is of other languages, or of the same in another order.
        """
        if state["languages"] != self._languages:
            raise ValueError(
                f"the saved router has languages {state['languages']}, this run {self._languages}; "
                "set run.languages to the saved list, or start a new run in another run.dir"
            )
        self._rows = {
            kind: {name: np.array(row, np.float64) for name, row in rows.items()}
            for kind, rows in state["rows"].items()
        }
        self._buffer = [
            Observation(**{**item, "topics": tuple(item["topics"]), "regions": tuple(item["regions"])})
            for item in state["buffer"]
        ]
        self._step, self._version = state["step"], state["version"]
        self._random.bit_generator.state = state["random"]
