"""The labels under which an actor gives weights to its engine, so that it recognises its own in every answer.

An engine says of each token under which label it got the weights that made it. A label holds the policy version, a
random id of this life of the actor, and the number of the update: ``17@3fa9c21b-4``. An engine that its own supervisor
has started again answers with another label, and so does one to which somebody else has given weights.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


class ForeignWeights(ValueError):
    """An engine has weights other than those that this actor gave it."""


class WeightLabels:
    """The labels of one life of an actor. The engines behind one router share them.

    Attributes:
        newest: the label of the newest update; empty before the first.
        arrived: the number of the newest update that the engine has completed, counted from 1; 0 before the first.
    """

    def __init__(self) -> None:
        self.newest = ""
        self.arrived = 0
        self._life = secrets.token_hex(4)
        self._updates: dict[str, tuple[int, int]] = {}  # number of the update and policy version, by label

    def make(self, version: int) -> str:
        """The label for weights of this policy version that are about to be sent to the engine."""
        number = len(self._updates) + 1
        self.newest = f"{version}@{self._life}-{number}"
        self._updates[self.newest] = number, version
        return self.newest

    def complete(self) -> None:
        """The engine has the weights of the newest label."""
        self.arrived = len(self._updates)

    def version_of(self, label: str, oldest: int) -> int | None:
        """The policy version of the weights with this label; None where it cannot be known and does not matter.

        Args:
            label: as the engine says it.
            oldest: number of the oldest update that is right. Where it is 0, before the first update, any label is.

        Raises:
            ForeignWeights: the label is not one of this actor's, or is of an older update.
        """
        number, version = self._updates.get(label, (0, None))
        if number >= oldest:
            return version
        if version is None:
            raise ForeignWeights(
                f"has weights {label!r}, which this actor has not given it; its newest are {self.newest!r}. Somebody "
                "has started the engine again, or another actor uses it"
            )
        raise ForeignWeights(f"has the weights {label!r} again, although newer ones had arrived")

    def read_versions(self, meta: Mapping[str, Any], count: int, version: int, oldest: int) -> NDArray[np.int32]:
        """The policy versions of the tokens of an answer.

        Args:
            meta: ``meta_info`` of the answer. Before SGLang 0.5.19 it has no spans. There all tokens count as of
                ``version``, the oldest possible, and only the label at the end of the answer is checked.
            count: number of tokens.
            version: policy version of the engine at the time of the request.
            oldest: ``arrived`` at the time of the request.

        Returns:
            [count] versions.

        Raises:
            ForeignWeights: see ``version_of``; or the engine does not say of every token which weights made it, or says
                it of tokens that are not there.
        """
        if "weight_version" in meta:
            self.version_of(str(meta["weight_version"]), oldest)
        spans = meta.get("weight_versions")
        versions = np.full(count, version, np.int32)
        if not spans:
            return versions
        covered = np.zeros(count, bool)
        for span in spans:
            label, first, end = str(span["version"]), int(span["start"]), int(span["end"])
            if not 0 <= first <= end <= count:
                raise ForeignWeights(f"says which weights made the tokens {first} to {end} of an answer of {count}")
            tokens = slice(first, end)
            known = self.version_of(label, oldest)
            versions[tokens] = _leading_number(label, version) if known is None else known
            covered[tokens] = True
        if not covered.all():
            raise ForeignWeights(f"does not say of {int((~covered).sum())} of {count} tokens which weights made them")
        return versions


def _leading_number(label: str, otherwise: int) -> int:
    number = label.partition("@")[0]
    return int(number) if number.isdecimal() and len(number) < 10 else otherwise
