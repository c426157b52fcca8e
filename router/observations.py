"""What the router observes: the scored rollouts of one question, and those of many questions as columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, repeat
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.languages import code_of

Array: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.intp]
Names: TypeAlias = str | Sequence[str] | None

_COLUMNS = ("context", "group", "arm", "reward", "compliant")


class Context(NamedTuple):
    """What the router knows of a question before it is answered."""

    language: str  # code of the question's language; "" where it does not matter
    topics: tuple[str, ...]
    regions: tuple[str, ...]

    @classmethod
    def of(cls, language: str, topics: Names, regions: Names) -> Context:
        """Makes a context from a language code or English name, and from single names, lists of names, or None.

        Raises:
            ValueError: the language is unknown, or topics or regions are something else.
        """
        return cls(language and code_of(language), _names("topic", topics), _names("region", regions))


def _names(what: str, given: Names) -> tuple[str, ...]:
    names = () if given is None else (given,) if isinstance(given, str) else given
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{what} = {given!r} must be a name, a list of names, or None")
    if not all(name.strip() for name in names):
        raise ValueError(f"{what} = {given!r} has an empty name; where a question has no {what}, give None or []")
    return tuple(dict.fromkeys(names))


class Observation(NamedTuple):
    """The scored rollouts of one question. However late they arrive, they count for the same languages."""

    context: Context
    languages: tuple[str, ...]  # [K] what each answer counts for: the one asked for, or the one the policy chose
    rewards: tuple[float, ...]  # [K] what the answer earned: with the gate 0 where it was in another language
    compliant: tuple[bool, ...]  # [K] whether the answer was in that language; without the gate all count as it

    def signal(self) -> Observation:
        """The same rollouts, valued by how much each teaches in place of what it earned.

        That is (r - mean r)², with the mean over the question's rollouts: up to the scale of the advantage, the square
        of what the rollout adds to the gradient. An answer in another language teaches, too, so all count as kept.
        """
        mean = sum(self.rewards) / max(len(self.rewards), 1)
        return self._replace(
            rewards=tuple((reward - mean) ** 2 for reward in self.rewards), compliant=(True,) * len(self.compliant)
        )


@dataclass(frozen=True)
class Batch:
    """The n rollouts of many questions. Only rollouts in one of the L arms are kept; others say nothing about arms."""

    contexts: list[Context]  # the C distinct ones, in the order in which they first occurred
    arms: int  # L
    context: Integers  # [n] index into contexts
    group: Integers  # [n] index of the question; it never falls
    arm: Integers  # [n] index of the language
    reward: Array  # [n]
    compliant: NDArray[np.bool_]  # [n]

    @classmethod
    def of(cls, observations: Sequence[Observation], arms: Mapping[str, int]) -> Batch:
        """Makes a batch of observations.

        Args:
            observations: of any number of questions.
            arms: the index of each language that can be drawn.

        Raises:
            ValueError: the fields of an observation differ in length, a reward is not finite, or a language is neither
                an arm nor the question's own.
        """
        asked, spoken, rewards, kept = zip(*observations, strict=True) if observations else ((), (), (), ())
        sizes = [*map(len, spoken)]
        if sizes != [*map(len, rewards)] or sizes != [*map(len, kept)]:
            raise ValueError(
                "an observation needs as many rewards and as many values of `compliant` as it has languages"
            )
        total = sum(sizes)
        index: dict[Context, int] = {}
        found = np.array([index.setdefault(context, len(index)) for context in asked], np.intp)
        group = np.repeat(np.arange(len(sizes)), sizes)
        languages = [*chain.from_iterable(spoken)]
        arm = np.fromiter(map(arms.get, languages, repeat(-1)), np.intp, total)
        reward = np.fromiter(chain.from_iterable(rewards), np.float64, total)
        compliant = np.fromiter(chain.from_iterable(kept), np.bool_, total)
        if not np.isfinite(reward).all():
            wrong = int(np.flatnonzero(~np.isfinite(reward))[0])
            raise ValueError(f"reward {reward[wrong]} of a rollout in {languages[wrong]!r} must be a finite number")
        batch = cls(list(index), len(arms), found[group], group, arm, reward, compliant)
        outside = np.flatnonzero(arm < 0)
        for other in outside:
            if languages[other] != asked[group[other]].language:
                raise ValueError(
                    f"language {languages[other]!r} of a rollout is neither its question's nor among {' '.join(arms)}"
                )
        return batch.without(outside) if len(outside) else batch

    @cached_property
    def cell(self) -> Integers:
        """[n] The index of each rollout's context and arm in a flattened [C, L]."""
        return self.context * self.arms + self.arm

    @cached_property
    def same(self) -> tuple[Array, Array]:
        """[n] and [n] The number of compliant, and of all, rollouts of the same question in the same arm."""
        pair = self.group * self.arms + self.arm
        compliant, every = np.bincount(pair, self.compliant), np.bincount(pair).astype(np.float64)
        return compliant[pair], every[pair]

    @cached_property
    def size(self) -> Integers:
        """The number of rollouts of each question that has any."""
        return np.diff(self.first, append=len(self.arm))

    @cached_property
    def first(self) -> Integers:
        """The index of each question's first rollout."""
        return np.flatnonzero(np.diff(self.group, prepend=-1))

    def build_columns(self) -> Batch:
        """Computes what is otherwise computed when it is first asked for."""
        _ = self.cell, self.same, self.size
        return self

    def without(self, rollouts: Integers) -> Batch:
        """The batch without the rollouts at these indices."""
        columns = {name: np.delete(getattr(self, name), rollouts) for name in _COLUMNS}
        return Batch(self.contexts, self.arms, **columns)

    @classmethod
    def joined(cls, batches: Sequence[Batch]) -> Batch:
        """The batch of all rollouts of at least one batch. All of them must have the same arms."""
        if len(batches) == 1:
            return batches[0]
        index: dict[Context, int] = {}
        context, group, questions = [], [], 0
        for one in batches:
            place = np.array([index.setdefault(each, len(index)) for each in one.contexts], np.intp)
            context.append(place[one.context])
            group.append(one.group + questions)
            questions += int(one.group.max(initial=-1)) + 1
        rest = (np.concatenate([getattr(one, name) for one in batches]) for name in _COLUMNS[2:])
        return cls([*index], batches[0].arms, np.concatenate(context), np.concatenate(group), *rest)

    def state(self) -> dict[str, Any]:
        """The batch as values of JSON."""
        columns = {name: getattr(self, name).tolist() for name in _COLUMNS}
        return {"contexts": [list(context) for context in self.contexts], "arms": self.arms, **columns}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Batch:
        """The batch of a :meth:`state`."""
        contexts = [Context(language, tuple(topics), tuple(regions)) for language, topics, regions in state["contexts"]]
        context, group, arm = (np.array(state[name], np.intp) for name in ("context", "group", "arm"))
        reward, compliant = np.array(state["reward"], np.float64), np.array(state["compliant"], np.bool_)
        return cls(contexts, state["arms"], context, group, arm, reward, compliant)

    def cells(self, values: Array, kept: NDArray[np.bool_]) -> Cells:
        """Sums ``values``, centred by question, over the rollouts of each context in each language.

        Args:
            values: [n] what is summed.
            kept: [n] the rollouts that count. The mean of a question is over these.
        """
        cell, group, arm = (self.context * self.arms + self.arm)[kept], self.group[kept], self.arm[kept]
        number = np.bincount(group)
        centred = values[kept] - (np.bincount(group, values[kept]) / np.maximum(number, 1))[group]
        pair = group * self.arms + arm
        compared = np.bincount(pair)[pair] < number[group]  # its question also has rollouts in another language
        shape = (len(self.contexts), self.arms)

        def by_cell(which: Integers, weights: Array | None) -> Array:
            return np.bincount(which, weights, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)

        return Cells(sums=by_cell(cell, centred), counts=by_cell(cell[compared], None))


@dataclass(frozen=True)
class Cells:
    """Sums over the rollouts of each context in each language. The residual of a rollout is its centred value.

    A rollout is compared where its question also has rollouts in another language; the others compare no languages.

    Attributes:
        sums: [C, L] the sum of the residuals.
        counts: [C, L] the number of compared rollouts.
    """

    sums: Array
    counts: Array

    @property
    def mean(self) -> Array:
        """The mean residual: [C, L]; 0 where no rollout is compared."""
        ratio: Array = self.sums / np.maximum(self.counts, 1)
        return ratio
