"""Contextual-bandit worlds, which say what an answer in each language is worth for each kind of question.

Six topics, 24 regions and 15 languages occur in uneven shares. Half of the questions about a region are in its home
language. P is a number of questions and L the number of languages.

There are three families. The worlds without a prefix have Gaussian rewards, and the shares of the published training
set. Those named "beta-…" have Pareto-tailed shares, and Beta rewards whose spread depends on language and topic. In
"random" every parameter of such a world, and which of its parts exist, is drawn anew for each seed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from common.languages import CODES
from router.observations import Array, Integers

LANGUAGES = CODES[:15]
TOPICS = ("Regional Knowledge", "General Knowledge", "Chat / Conversational", "Reasoning / Logic", "Translation",
          "Safety / Ethics")  # fmt: skip
REGIONS = tuple(f"region {number}" for number in range(24))
_TOPIC_COUNTS = np.array([2637, 1013, 687, 280, 210, 59], np.float64)  # in the published training set, as the next
_LANGUAGE_COUNTS = np.array([2197, 890, 643, 212, 182, 167, 111, 107, 107, 93, 50, 43, 42, 41, 60], np.float64)
_REGION_COUNTS = 1 / np.arange(1, 25) ** 1.2
_PLAIN_TOPICS = tuple(f"topic {number}" for number in range(6))  # all of them are routed


@dataclass
class World:
    """One world. Its quality is ``level`` plus the tables that apply to a question; they are drawn anew for each seed.

    Attributes:
        level: the quality of an answer to which no table applies.
        topic, region, own, shared: what is added for the topic [6, L], the region [24, L], the question's language
            [15, L], and to every answer [L].
        pair: what is added for a topic with a region, [6, 24, L].
        later: what ``region`` has become when training ends; None: it stays the same.
        abrupt: whether it becomes so all at once, in the middle of the training, or bit by bit.
        compliance: the probability of an answer in the language asked for [L], or by topic [6, L].
        delay: rewards arrive up to this many steps late.
        spread: the concentration of the Beta distribution of rewards, [6, L]; None: they are Gaussian.
        difficulty: standard deviation of quality between questions.
        topics: the names of the topics.
        counts: the shares of topics [6], regions [24] and languages [15].
        regional: the share of the questions about a region, by topic [6].
    """

    level: float = 0.6
    topic: Array = field(default_factory=lambda: np.zeros((6, 15)))
    region: Array = field(default_factory=lambda: np.zeros((24, 15)))
    own: Array = field(default_factory=lambda: np.zeros((15, 15)))
    shared: Array = field(default_factory=lambda: np.zeros(15))
    pair: Array | None = None
    later: Array | None = None
    abrupt: bool = False
    compliance: Array = field(default_factory=lambda: np.full(15, 0.97))
    delay: int = 0
    spread: Array | None = None
    difficulty: float = 0.2
    topics: tuple[str, ...] = TOPICS
    counts: tuple[Array, Array, Array] = (_TOPIC_COUNTS, _REGION_COUNTS, _LANGUAGE_COUNTS)
    regional: Array = field(default_factory=lambda: np.array([1, 0.2, 0.2, 0.2, 0.2, 0.2]))

    def expected(self, topic: Integers, region: Integers, own: Integers, done: float) -> tuple[Array, Array]:
        """The expected quality and the probability of compliance in each language: both [P, L].

        Args:
            topic: [P] indices.
            region: [P] indices, -1 for none.
            own: [P] index of the question's language.
            done: the share of the training that is over, in [0, 1].
        """
        moved = float(done >= 0.5) if self.abrupt else done
        regions = self.region if self.later is None else (1 - moved) * self.region + moved * self.later
        about = regions[region] if self.pair is None else regions[region] + self.pair[topic, region]
        quality = (
            self.level + self.shared + self.topic[topic] + self.own[own] + np.where((region >= 0)[:, None], about, 0)
        )
        if self.spread is not None:
            quality = quality.clip(0.02, 0.98)
        learned = self.compliance if self.later is None else self.compliance + done * (1 - self.compliance)
        return quality, learned[topic] if learned.ndim == 2 else np.broadcast_to(learned, quality.shape)

    def rewards(self, random: np.random.Generator, topic: Integers, arms: Integers, quality: Array) -> Array:
        """Draws the qualities of answers: [P, K], within [0, 1].

        Args:
            topic: [P] indices.
            arms: [P, K] the languages of the answers.
            quality: [P, L] what is expected.
        """
        expected = np.take_along_axis(quality, arms, 1) + random.normal(0, self.difficulty, (len(arms), 1))
        if self.spread is None:
            drawn: Array = np.clip(expected + random.normal(0, _NOISE, arms.shape), 0, 1)
            return drawn
        concentration, expected = self.spread[topic[:, None], arms], expected.clip(0.01, 0.99)
        return random.beta(expected * concentration, (1 - expected) * concentration)


_NOISE = 0.12  # standard deviation of Gaussian rewards between the answers to one question


def _regions(random: np.random.Generator, gain: float = 0.15) -> Array:
    """A table [24, 15] in which each region has two languages that know it well."""
    table = random.normal(0, 0.02, (24, 15))
    for row in table:
        row[random.choice(15, 2, replace=False)] += gain
    return table


def make_world(name: str, random: np.random.Generator) -> World:
    """Draws the tables of a world. Raises ValueError for a name that is not in ``WORLDS``."""
    if name not in WORLDS:
        raise ValueError(f"unknown world {name!r}; there are {' '.join(WORLDS)}")
    if name == "random":
        return _random_world(random)
    return _beta_world(name, random) if name.startswith("beta-") else _gaussian_world(name, random)


def _gaussian_world(name: str, random: np.random.Generator) -> World:
    match name:
        case "one-language":
            return World(shared=np.linspace(-0.1, 0.1, 15)[random.permutation(15)])
        case "topic":
            return World(topic=random.normal(0, 0.08, (6, 15)))
        case "question-language":
            return World(own=random.normal(0, 0.08, (15, 15)))
        case "region":
            return World(topic=random.normal(0, 0.03, (6, 15)), region=_regions(random))
        case "compliance":
            return World(region=_regions(random), compliance=random.uniform(0.6, 1, 15))
        case "drift":
            return World(region=_regions(random), later=_regions(random), compliance=random.uniform(0.8, 1, 15))
        case "late":
            return World(topic=random.normal(0, 0.03, (6, 15)), region=_regions(random), delay=8)
        case "everything":
            return World(
                topic=random.normal(0, 0.03, (6, 15)), region=_regions(random), later=_regions(random),
                own=random.normal(0, 0.05, (15, 15)), shared=random.normal(0, 0.03, 15),
                compliance=random.uniform(0.8, 1, 15), delay=8,
            )  # fmt: skip
    return World()  # "equal"


def _beta_world(name: str, random: np.random.Generator) -> World:
    shares = (1 + random.pareto(1.2, 6), 1 + random.pareto(1.2, 24), 1 + random.pareto(1.2, 15))
    world = World(
        spread=np.exp(random.uniform(np.log(4), np.log(40), (6, 15))), difficulty=0.0, topics=_PLAIN_TOPICS,
        counts=shares, regional=np.full(6, 0.7),
    )  # fmt: skip
    match name.removeprefix("beta-"):
        case "one-language":
            world.shared = random.normal(0, 0.08, 15)
        case "region":
            world.topic, world.region = random.normal(0, 0.03, (6, 15)), _regions(random)
        case "topic-region":
            world.topic, world.pair = random.normal(0, 0.03, (6, 15)), random.normal(0, 0.1, (6, 24, 15))
        case "mostly-wrong":
            world.level, world.region = 0.08, _regions(random)
        case "failures":
            world.topic, world.region = random.normal(0, 0.03, (6, 15)), _regions(random)
            world.compliance = random.uniform(0.5, 1, (6, 15))
        case "drift":
            world.region, world.later = _regions(random), _regions(random)
            world.compliance = random.uniform(0.8, 1, 15)
        case "own":
            world.topic, world.region = random.normal(0, 0.03, (6, 15)), random.normal(0, 0.05, (24, 15))
            world.own = np.diag(random.uniform(0.1, 0.25, 15))
        case "late":
            world.topic, world.region, world.delay = random.normal(0, 0.03, (6, 15)), _regions(random), 8
        case "everything":
            world.topic, world.shared = random.normal(0, 0.03, (6, 15)), random.normal(0, 0.03, 15)
            world.region, world.later = _regions(random), _regions(random)
            world.pair, world.own = random.normal(0, 0.04, (6, 24, 15)), np.diag(random.uniform(0, 0.15, 15))
            world.compliance, world.difficulty, world.delay = random.uniform(0.7, 1, (6, 15)), 0.1, 8
    return world


def _random_world(random: np.random.Generator) -> World:
    """A world whose every part exists or not, in a size between a hundredth and a sixth, by chance."""

    def table(chance: float, *shape: int) -> Array:
        if random.random() > chance:
            return np.zeros(shape)
        size = np.exp(random.uniform(np.log(0.01), np.log(0.15)))
        if random.random() < 0.5:
            return random.normal(0, size, shape)
        few = random.random(shape) < random.uniform(0.05, 0.3)
        return few * random.exponential(2 * size, shape)

    tail = random.uniform(0.8, 2.5)
    kinds = (6, 15) if random.random() < 0.5 else (15,)
    world = World(
        level=random.uniform(0.1, 0.7), topic=table(0.6, 6, 15), region=table(0.7, 24, 15), own=table(0.3, 15, 15),
        shared=table(0.5, 15), pair=table(0.4, 6, 24, 15),
        compliance=random.uniform(random.choice([0.4, 0.7, 0.9]), 1, kinds),
        delay=int(random.choice([0, 0, 2, 8])), difficulty=float(random.choice([0.0, 0.05, 0.2])),
        spread=np.exp(random.uniform(np.log(2), np.log(random.uniform(4, 60)), (6, 15))), topics=_PLAIN_TOPICS,
        counts=(1 + random.pareto(tail, 6), 1 + random.pareto(tail, 24), 1 + random.pareto(tail, 15)),
        regional=random.uniform(0.2, 1, 6),
    )  # fmt: skip
    if random.random() < 0.4:
        world.own = world.own + np.eye(15) * random.uniform(0.02, 0.25)
    if random.random() < 0.4:
        world.later, world.abrupt = random.permutation(world.region), bool(random.random() < 0.5)
    return world


# The worlds in which the best language depends on the context.
CONTEXTUAL = (
    "region", "topic", "question-language", "compliance", "drift", "late", "everything",
    "beta-region", "beta-topic-region", "beta-mostly-wrong", "beta-failures", "beta-drift", "beta-own", "beta-late",
    "beta-everything",
)  # fmt: skip
EQUAL = ("equal", "beta-equal")
WORLDS = (*CONTEXTUAL, "one-language", "beta-one-language", "random", *EQUAL)


def questions(
    world: World, random: np.random.Generator, number: int, home: Integers
) -> tuple[Integers, Integers, Integers]:
    """Draws questions.

    Args:
        world: has the shares.
        random: draws them.
        number: P.
        home: [24] the index of each region's language.

    Returns:
        [P] the indices of the topic, of the region (-1 for none), and of the language of each question.
    """

    def pick(counts: Array) -> Integers:
        return random.choice(len(counts), number, p=counts / counts.sum()).astype(np.intp)

    topic, region, own = (pick(counts) for counts in world.counts)
    region = np.where(random.random(number) < world.regional[topic], region, -1)
    return topic, region, np.where((region >= 0) & (random.random(number) < 0.5), home[region], own)
