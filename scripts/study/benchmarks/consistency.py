"""Language consistency of a benchmark's responses exactly as the code of those who publish on it computes it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import fasttext
import numpy as np

from common import diagnostics
from common.process import FatalError
from common.wire import PartLanguages
from reward.detectors import ADAMAME_MGSM, ADAMAME_MSVAMP, Langdetect, Lingua
from reward.gate import shipped_model
from scripts.study.benchmarks.scoring import Response

_CLOSE = "</think>"
_ADAMAME: Mapping[str, Sequence[str]] = {
    "mgsm": ADAMAME_MGSM, "mgsm-rev2": ADAMAME_MGSM, "msvamp": ADAMAME_MSVAMP,
}  # fmt: skip


def published_consistency(name: str, responses: Sequence[Sequence[Response]]) -> dict[str, float]:
    """What is published on a benchmark, by source and detector; what needs a package that is missing is left out.

    Args:
        name: of the benchmark; only on mathematics is there any.
        responses: [questions][responses].
    """
    flat = [one for some in responses for one in some]
    found: dict[str, float] = {}
    if name == "mmath":
        found |= _lcr_mmath(flat)
    try:
        if name in ("mmath", "polymath"):
            found |= _mthinker(flat, Langdetect())
        if name in _ADAMAME:
            found |= _adamame(responses, Lingua(_ADAMAME[name]))
    except FatalError:  # an extra that is not installed
        pass
    return found


def _lcr_mmath(responses: Sequence[Response]) -> dict[str, float]:
    """MMATH's LCR; its code loads lid.176.bin, here it is the compressed file that the gate reads."""
    model = fasttext.load_model(str(shipped_model()))

    def best(text: str) -> str:
        labels, _ = model.predict([text.replace("\n", " ")], k=1)
        return str(labels[0][0]).removeprefix("__label__") if labels[0] else ""

    parts = [(one.row.language, *diagnostics.parts_mmath(one.raw)) for one in responses]
    thinking, answering = diagnostics.lcr_mmath([(code, best(a), best(b)) for code, a, b in parts])
    return {"MMATH LCR, thinking (lid.176)": thinking, "MMATH LCR, answering (lid.176)": answering}


def _mthinker(responses: Sequence[Response], detector: Langdetect) -> dict[str, float]:
    """M-Thinker's LC: a mean over languages of means over sources or levels, of the languages that langdetect knows."""
    kept: defaultdict[tuple[str, str], list[bool]] = defaultdict(list)
    for one in responses:
        if detector.knows(one.row.language):
            consistent = diagnostics.consistent_mthinker(one.raw, one.row.language, detector.languages)
            kept[one.row.language, one.row.group].append(consistent)
    by_language: defaultdict[str, list[float]] = defaultdict(list)
    for (language, _), some in kept.items():
        by_language[language].append(float(np.mean(some)))
    if not by_language:
        return {}
    return {"M-Thinker LC (langdetect)": float(np.mean([np.mean(some) for some in by_language.values()]))}


def _adamame(responses: Sequence[Sequence[Response]], detector: Lingua) -> dict[str, float]:
    """AdaMame's figures of the thoughts, means over languages. A language that is not in its list is never consistent.

    A response without ``</think>`` has an empty thought, which passes by lines and by words.
    """
    by_language: defaultdict[str, list[list[PartLanguages]]] = defaultdict(list)
    for some in responses:
        thoughts = [before if found else "" for before, found, _ in (one.raw.partition(_CLOSE) for one in some)]
        language = some[0].row.language
        by_language[language].append(
            [
                diagnostics.part_adamame(
                    text.replace("<think>", "").strip(), language, detector.best, detector.languages
                )
                for text in thoughts
            ]
        )
    consistent, lcpr, switches = [], [], []
    for by_question in by_language.values():
        parts = [part for some in by_question for part in some]
        consistent.append(np.mean([part.consistent for part in parts]))
        lcpr.append(diagnostics.harmonic_mean(*diagnostics.pass_rates_adamame(by_question)))
        switches.append(np.mean([part.switches for part in parts]))
    return {
        "AdaMame language_consistency (lingua)": float(np.mean(consistent)),
        "AdaMame LCPR (lingua)": float(np.mean(lcpr)),
        "AdaMame code_switch_rate (lingua)": float(np.mean(switches)),
    }
