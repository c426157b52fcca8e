"""Each detector finds the language of honest texts, and what is mixed in; two are compared with their packages."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from common import diagnostics
from common.answer import read_answer
from common.config import RewardConfig
from common.process import FatalError
from common.wire import PartLanguages
from reward.detectors import ADAMAME_MGSM, ADAMAME_MSVAMP, DetectorName, GateDetector, Langdetect, Lingua, make_detector
from reward.gate import ComplianceGate
from reward.scorer import Scorer
from scripts.bench.support.scoring import request
from scripts.world.sources import paragraphs

CLEAN, ELSEWHERE = PartLanguages(True, True, True, False), PartLanguages(False, False, None, False)
LANGUAGES = ("ar", "de", "en", "es", "fr", "ja", "ko", "pt", "ru", "zh")
DECLARATION = Path(__file__).parents[1] / "support" / "texts" / "declaration.jsonl"


def joined(texts: list[str]) -> list[str]:
    """A text of four paragraphs at a time."""
    return ["\n".join(texts[n : n + 4]) for n in range(0, len(texts) - 3, 4)]


@pytest.fixture(scope="module")
def texts() -> dict[str, list[str]]:
    """Texts of four paragraphs, by language."""
    by_language: defaultdict[str, list[str]] = defaultdict(list)
    for row in paragraphs():
        by_language[row["language"]].append(row["text"])
    return {code: joined(by_language[code]) for code in LANGUAGES}


@pytest.fixture(scope="module")
def gate() -> GateDetector:
    return GateDetector(ComplianceGate(RewardConfig()))


def test_honest_texts_pass_everything(gate: GateDetector, texts: dict[str, list[str]]) -> None:
    rows = [json.loads(line) for line in DECLARATION.read_text(encoding="utf-8").splitlines()]
    more: defaultdict[str, list[str]] = defaultdict(list)  # languages that the gate was not tuned on
    for row in rows:
        more[row["language"]].append(row["text"])
    every = texts | {code: joined(some) for code, some in more.items()}
    asked = [code for code, some in every.items() for _ in some]
    found = gate.parts([text for some in every.values() for text in some], asked)
    assert np.mean([part == CLEAN for part in found]) > 0.97


def test_a_sentence_of_another_language_is_seen_where_it_is_much_or_a_line(
    gate: GateDetector, texts: dict[str, list[str]], rng: np.random.Generator
) -> None:
    """As a line of its own it fails by lines; it is code switching, and not consistent, where it is a third."""
    for code in LANGUAGES:
        other = str(rng.choice([one for one in LANGUAGES if one != code]))
        own, foreign = texts[code][0][:600], texts[other][1][:300].replace("\n", " ")
        (whole, by_line, mixed) = gate.parts([foreign, f"{own}\n{foreign}", f"{own} {foreign}"], [code] * 3)
        assert whole is not None and by_line is not None and mixed is not None
        assert not whole.consistent and not whole.lines and not whole.switches, (code, other)
        assert not by_line.lines and by_line.words is None, (code, other)
        assert mixed.switches and not mixed.consistent, (code, other)


def test_what_has_no_language(gate: GateDetector) -> None:
    empty, number, formula, short, nothing_asked = gate.parts(
        ["", "42", "$$x^2 = 4$$", "OK\nSchritt 1:", "Die Hauptstadt von Japan ist Tokio."], ["de", "de", "de", "ja", ""]
    )
    assert empty == ELSEWHERE and number == CLEAN and formula is not None and formula.lines
    assert short is not None and short.lines and not short.words, "nobody can tell the language of such lines"
    assert nothing_asked == ELSEWHERE


def test_the_gate_and_its_diagnoses_agree_on_short_texts_and_on_the_languages_of_a_run() -> None:
    texts, asked = (
        ["No idea, sorry.", "Thank you!\nNo, I do not know.", "Das weiß ich nicht.", ""],
        ["sw", "sw", "de", "sw"],
    )
    for rule in ("detect", "pass", "fail"):
        for only in (False, True):
            settings = {"gate_short": rule, "gate_short_characters": 40, "gate_active_only": only}
            gate = ComplianceGate(RewardConfig.model_validate(settings), ["de", "sw"])
            decided = gate.decide(
                [read_answer(text, code) for text, code in zip(texts, asked, strict=True)], [True] * 4
            )
            parts = GateDetector(gate).parts(texts, asked)
            consistent = [part is not None and part.consistent for part in parts]
            assert consistent == [one.compliant for one in decided] == gate.in_language(texts, asked), settings
            if rule == "pass":
                assert parts == [CLEAN, CLEAN, CLEAN, ELSEWHERE]
            if rule == "fail":
                assert consistent == [False] * 4
    assert GateDetector(ComplianceGate(RewardConfig())).parts(["I do not know."], ["sw"]) == [
        PartLanguages(consistent=False, lines=True, words=True, switches=False)
    ]


def test_langdetect_is_the_packages_own_and_always_the_same(texts: dict[str, list[str]]) -> None:
    import langdetect

    detector = Langdetect()
    flat = [(text, code) for code, some in texts.items() for text in some[:2]]
    mixed = [(f"{texts['de'][0]} {texts['fr'][0]}", "de"), (r"\(x\) = $5$", "de"), ("...", "fr")]
    found = detector.parts([text for text, _ in flat + mixed], [code for _, code in flat + mixed])
    assert found == detector.parts([text for text, _ in flat + mixed], [code for _, code in flat + mixed])
    langdetect.DetectorFactory.seed = 42
    for (text, code), part in zip(flat, found, strict=False):
        one = langdetect.detect_langs(text)
        wanted = "zh-cn" if code == "zh" else code  # as in the code of PolyMath and M-Thinker
        assert part is not None and part.consistent == ([x.lang for x in one] == [wanted]), text
    assert [part.consistent for part in found[len(flat) :] if part] == [False, True, True], "short ones are in any"
    traditional = "這個問題的答案是四十二，因為我們把六乘以七，就會得到這個結果。"
    assert [one.lang for one in langdetect.detect_langs(traditional)] == ["zh-tw"]
    (part,) = detector.parts([traditional], ["zh"])
    assert part == PartLanguages(consistent=False, lines=True, words=True, switches=False)
    assert not diagnostics.consistent_mthinker(f"{traditional}</think>{traditional}", "zh", detector.languages)
    assert detector.knows("zh") and not detector.knows("ms")
    assert detector.parts(["Saya makan nasi goreng."], ["ms"]) == [None]


def test_lingua_knows_the_languages_it_is_given(texts: dict[str, list[str]]) -> None:
    detector = Lingua(ADAMAME_MGSM)
    known = [code for code in texts if detector.knows(code)]
    for code in known:
        (part,) = detector.parts([texts[code][0]], [code])
        assert part is not None and part.consistent and part.lines
        assert detector.best(texts[code][0]) == code
    (mixed,) = detector.parts([f"{texts['de'][0]}\n{texts['fr'][0]}"], ["de"])
    assert mixed is not None and not mixed.lines and mixed.switches
    trap = Lingua(ADAMAME_MSVAMP)
    assert not any(map(trap.knows, ("bn", "de", "ru", "sw")))
    assert trap.parts([texts["de"][0]], ["de"]) == [None]
    with pytest.raises(FatalError, match="two languages to choose among"):
        Lingua(["de", "mhr"])


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    names: tuple[DetectorName, ...] = ("langdetect", "lingua")
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(FatalError, match=rf"{name}.*pip install \"lrpo\[detectors\]\""):
            make_detector(name, ComplianceGate(RewardConfig()))


@pytest.mark.parametrize("detector", ["off", "gate", "langdetect"])
def test_scores_say_which_languages_thought_and_answer_are_in(detector: str, texts: dict[str, list[str]]) -> None:
    german, english = texts["de"][0], texts["en"][0]
    answers = [f"<think>{english}</think>{german}", german, f"<think>{english}"]
    config = RewardConfig(terms={"default": {"exact": 1.0}}, diagnostics=detector, gate_span="answer")
    scorer = Scorer(config, ["de", "en"])
    try:
        (scores,) = scorer.score([request(answers, ["de"] * 3)])
    finally:
        scorer.close()
    parts = [(score.thought_languages, score.final_languages) for score in scores]
    if detector == "off":
        assert parts == [(None, None)] * 3
        return
    consistent = [tuple(part and part.consistent for part in pair) for pair in parts]
    unended = detector == "langdetect"  # PolyMath's rule accepts an empty answer
    assert consistent == [(False, True), (None, True), (False, unended)]
    samples = [diagnostics.Sample(s.thought_languages, s.final_languages, s.quality >= 0.5, 1) for s in scores]
    assert diagnostics.summarise(samples)["lc"] == pytest.approx(1 / 3)
