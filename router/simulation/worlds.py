"""Contextual-bandit worlds, which say what an answer in each language is worth for each kind of question.

Six topics, 24 regions and 15 languages occur in the uneven shares of real data. Half of the questions about a region
are in its home language. P is a number of questions and L the number of languages.
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
_TOPIC_COUNTS = np.array([2637, 1013, 687, 280, 210, 59])  # in the published training set, as the next
_LANGUAGE_COUNTS = np.array([2197, 890, 643, 212, 182, 167, 111, 107, 107, 93, 50, 43, 42, 41, 60])
_REGION_COUNTS = 1 / np.arange(1, 25) ** 1.2
TRANSLATION = TOPICS.index("Translation")


@dataclass
class World:
    """One world. Its quality is 0.6 plus the tables that apply to a question; they are drawn anew for each seed."""

    topic: Array = field(default_factory=lambda: np.zeros((6, 15)))
    region: Array = field(default_factory=lambda: np.zeros((24, 15)))
    later: Array | None = None  # what ``region`` has become when training ends; None: it stays the same
    own: Array = field(default_factory=lambda: np.zeros((15, 15)))  # [question's language, answer's]
    shared: Array = field(default_factory=lambda: np.zeros(15))
    compliance: Array = field(default_factory=lambda: np.full(15, 0.97))
    delay: int = 0  # rewards arrive up to this many steps late

    def expected(self, topic: Integers, region: Integers, own: Integers, done: float) -> tuple[Array, Array]:
        """The expected quality and the probability of compliance in each language: both [P, L].

        Args:
            topic: [P] indices.
            region: [P] indices, -1 for none.
            own: [P] index of the question's language.
            done: the share of the training that is over, in [0, 1].
        """
        regions = self.region if self.later is None else (1 - done) * self.region + done * self.later
        quality = (
            0.6 + self.shared + self.topic[topic] + self.own[own] + np.where((region >= 0)[:, None], regions[region], 0)
        )
        learned = self.compliance if self.later is None else self.compliance + done * (1 - self.compliance)
        return quality, np.broadcast_to(learned, quality.shape)


def _regions(random: np.random.Generator) -> Array:
    """A table [24, 15] in which each region has two languages that know it well."""
    table = random.normal(0, 0.02, (24, 15))
    for row in table:
        row[random.choice(15, 2, replace=False)] += 0.15
    return table


def make_world(name: str, random: np.random.Generator) -> World:
    """Draws the tables of a world. Raises ValueError for a name that is not in ``WORLDS``."""
    match name:
        case "equal":
            return World()
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
    raise ValueError(f"unknown world {name!r}; there are {' '.join(WORLDS)}")


# The worlds in which the best language depends on the context.
CONTEXTUAL = ("region", "topic", "question-language", "compliance", "drift", "late", "everything")
WORLDS = (*CONTEXTUAL, "one-language", "equal")


def questions(random: np.random.Generator, number: int, home: Integers) -> tuple[Integers, Integers, Integers]:
    """Draws questions.

    Args:
        random: draws them.
        number: P.
        home: [24] the index of each region's language.

    Returns:
        [P] the indices of the topic, of the region (-1 for none), and of the language of each question.
    """

    def pick(counts: Array) -> Integers:
        return random.choice(len(counts), number, p=counts / counts.sum()).astype(np.intp)

    topic, region, own = pick(_TOPIC_COUNTS), pick(_REGION_COUNTS), pick(_LANGUAGE_COUNTS)
    region = np.where((topic == 0) | (random.random(number) < 0.2), region, -1)
    return topic, region, np.where((region >= 0) & (random.random(number) < 0.5), home[region], own)
