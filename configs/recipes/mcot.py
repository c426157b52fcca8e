"""The reward of budget alignment for multilingual chains of thought (github.com/Betswish/mCoT-XReasoning)."""

from __future__ import annotations

from reward.terms.custom import Group, Parts
from reward.terms.math import last_box
from reward.terms.tools import Tools

_CLOSE = "</think>"


async def score(group: Group, tools: Tools) -> Parts:
    """``acc``; ``format``: a ``</think>`` and a box; ``language``: the share of the letters that are in it.

    An answer without a word, thought included, has no letters and so a share of 0: it must not pay to leave the thought
    out.
    """
    right = await tools.verify_all([(one.final, group.accepted, one.detected or one.asked) for one in group.answers])
    shares = tools.language_shares(_texts(group), [one.asked for one in group.answers])
    return _parts(group, right, shares)


class AsPublished:
    """``language`` is langdetect's probability of the language for the whole text, without a seed.

    Raises:
        ImportError: langdetect is not installed.
    """

    def __init__(self) -> None:
        import langdetect

        self._detector = langdetect

    async def __call__(self, group: Group, tools: Tools) -> Parts:
        right = await tools.verify_all([(one.text, group.accepted, group.language) for one in group.answers])
        return _parts(group, right, [self._probability(one.text, group.language) for one in group.answers])

    def _probability(self, text: str, language: str) -> float:
        try:
            found = self._detector.detect_langs(text)
        except self._detector.LangDetectException:
            return 0.0
        return next((float(one.prob) for one in found if one.lang.partition("-")[0] == language), 0.0)


def _texts(group: Group) -> list[str]:
    return [f"{one.thinking}\n{one.final}" for one in group.answers]


def _parts(group: Group, right: list[float | None], shares: list[float]) -> Parts:
    whole = [_CLOSE in one.text and last_box(one.text) is not None for one in group.answers]
    return [
        {"acc": acc, "format": float(ok), "language": share}
        for acc, ok, share in zip(right, whole, shares, strict=True)
    ]
