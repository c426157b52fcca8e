"""The language gate: which language a text is in, and whether all of it is in the language asked for."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fasttext
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from common.answer import read_answer
from common.config import Config, ConfigError, RewardConfig
from common.languages import declare
from common.process import FatalError
from common.writing import normalise_word
from reward.detectors import GateDetector
from reward.foreign_letters import ForeignLetters
from reward.gate import ComplianceGate, Finding, LanguageGate, check_languages, shipped_model
from reward.lid import LanguageModel
from scripts.bench.support.scoring import LANGUAGES, SENTENCES
from scripts.world.sources import paragraphs

DECLARATION = Path(__file__).parents[1] / "support" / "texts" / "declaration.jsonl"


@pytest.fixture(scope="module")
def gate() -> LanguageGate:
    return LanguageGate()


@pytest.fixture(scope="module")
def declaration() -> dict[str, list[str]]:
    """Paragraphs of the Universal Declaration of Human Rights, by language: the 21 that lrpo names, and near ones."""
    texts: dict[str, list[str]] = {}
    for row in [*paragraphs(), *map(json.loads, DECLARATION.read_text(encoding="utf-8").splitlines())]:
        texts.setdefault(row["language"], []).append(row["text"])
    return texts


def test_gate_knows_the_languages(gate: LanguageGate) -> None:
    assert gate.detect(list(SENTENCES.values())) == LANGUAGES


@pytest.mark.parametrize(
    "text", ["", "   \n\t", "😀🎉😀", "?!… — «»", "```python\nprint('hello world')\n```", "12 34", "a" + " ." * 30]
)
def test_gate_finds_no_language(gate: LanguageGate, text: str) -> None:
    assert gate.detect([text]) == [""]


def test_probabilities_are_those_of_the_library(declaration: dict[str, list[str]], rng: np.random.Generator) -> None:
    library, model = fasttext.load_model(str(shipped_model())), LanguageModel(shipped_model())
    texts = [str(rng.choice(some)) for some in declaration.values() for _ in range(3)]
    texts = [text for text in texts if all(word == normalise_word(word) for word in text.split())]
    units = model.read(texts)
    for number, text in enumerate(texts):
        mine = units.owner == number
        found = np.exp(model.log_probabilities(units.sums[mine].sum(0)[None], units.counts[mine].sum()[None]))[0]
        labels, chances = library.predict(text, k=5)
        for label, chance in zip(labels, chances, strict=True):
            (column,) = model.index([label.removeprefix("__label__")])
            assert found[column] == pytest.approx(chance, abs=1e-3), text


@settings(max_examples=25)
@given(
    texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=60), max_size=8), language=st.sampled_from(LANGUAGES)
)
def test_gate_takes_any_text_and_batching_changes_nothing(gate: LanguageGate, texts: list[str], language: str) -> None:
    together = gate.judge(texts, [language] * len(texts))
    again = gate.judge(texts[::-1] + texts, [language] * 2 * len(texts))
    assert again == together[::-1] + together, "what was judged in the last call is not judged anew"
    for text, judged in zip(texts, together, strict=True):
        gate.judge([], [])  # after which nothing is remembered
        (alone,) = gate.judge([text], [language])
        assert (alone.language, alone.matches) == (judged.language, judged.matches)
        assert alone.foreign == pytest.approx(judged.foreign, abs=1e-3)


def test_honest_paragraphs_pass(gate: LanguageGate, declaration: dict[str, list[str]]) -> None:
    failed, total = Counter[str](), Counter[str]()
    for language, texts in declaration.items():
        for first in range(0, len(texts), 2):  # answers are longer than the paragraphs, some of which are four words
            judged = gate.judge([" ".join(texts[first : first + 2])], [language])
            failed[language], total[language] = failed[language] + (not judged[0].matches), total[language] + 1
    assert len(total) == 21 and min(total.values()) >= 25
    assert all(failed[language] <= 0.04 * total[language] for language in total), failed
    assert failed.total() <= 0.01 * total.total(), failed


CASES = [
    ("de", "DIE HAUPTSTADT VON JAPAN IST TOKIO.", True),
    ("ru", "СТОЛИЦА ЯПОНИИ — ГОРОД ТОКИО.", True),
    ("tr", "JAPONYA'NIN BAŞKENTİ TOKYO'DUR.", True),
    ("ko", unicodedata.normalize("NFD", SENTENCES["ko"]), True),
    ("pt", unicodedata.normalize("NFD", SENTENCES["pt"]), True),
    ("ar", "عَاصِمَةُ الْيَابَانِ هِيَ مَدِينَةُ طُوكْيُو.", True),
    ("ar", "عـاصـمـة الـيـابـان هـي مـديـنـة طـوكـيـو.", True),
    ("en", "Ｔｈｅ　ｃａｐｉｔａｌ　ｏｆ　Ｊａｐａｎ　ｉｓ　Ｔｏｋｙｏ．", True),
    ("de", "Ｔｈｅ　ｃａｐｉｔａｌ　ｏｆ　Ｊａｐａｎ　ｉｓ　Ｔｏｋｙｏ．", False),
    ("de", "𝐓𝐡𝐞 𝐜𝐚𝐩𝐢𝐭𝐚𝐥 𝐨𝐟 𝐉𝐚𝐩𝐚𝐧 𝐢𝐬 𝐓𝐨𝐤𝐲𝐨.", False),
    ("de", "T\u200bh\u200be c\u00adapital of Ja\u2060pan is Tok\u200byo.", False),
    ("zh", "東京", True),
    ("ja", "東京", True),
    ("zh", "香港嘅首都係邊度？我唔知道。", True),
    ("pt", "Sim, claro.", True),
    ("it", "Sì, certo.", True),
    ("es", "Sí", True),
    ("de", "Yes, of course.", False),
    ("id", "Ibu negara Jepun ialah Tokyo.", True),
    ("hr", "Главни град Јапана је Токио.", False),
    ("sr", "Glavni grad Japana je Tokio.", True),
    ("no", "Japans hovedstad er Tokyo.", True),
    ("de", "42", True),
    ("de", "😀", False),
    ("zh", r"因此 $\boxed{\frac{3}{4}}$，三角形 $ABC$ 的面积是 $\sin x$。", True),
    ("de", r"Ja: $\text{The capital of Japan is the city of Tokyo}$", False),
    ("de", "Ja: $The capital of Japan is the city of Tokyo$", False),
    ("de", "Hier steht es:\n```\nThe capital of Japan is the city of Tokyo.\n```", False),
    ("de", "Hier steht es:\n```python\nfor city in cities:\n    print(city.name)\n```\nDas war es.", True),
    ("ja", "答えは 5 cm です。", True),
    ("ja", "答え: x = 5", True),
    ("ja", "f(x) = ax + b", True),
    ("ko", "답: x = 5, y = 3", True),
    ("th", "คำตอบคือ 5 km/h", True),
    ("zh", "答案是 5 cm x 3 cm", True),
    ("ja", "点Pと点Qの距離は 3 m です。", True),
    ("es", "π ≈ 3,14", True),
    ("ja", "答えは OK です。", False),
    ("ja", "答えは no です。", False),
    ("ja", "12 is it", False),
    ("ja", "h e l l o w o r l d", False),
    ("ja", "答えは t-h-e a.n.s.w.e.r です。", False),
    ("th", "ให้ x, y, z เป็นจำนวนเต็ม", True),
    ("ja", "答えは five です。", False),
    ("zh", "日本の首都は東京です。", False),
    ("ja", "日本的首都是东京，这是一座非常大的城市。", False),
    ("ko", "日本的首都是东京。", False),
    ("ko", "세종대왕(世宗大王)은 조선의 제4대 국왕이며 한글을 만들었다.", True),
    ("ko", unicodedata.normalize("NFD", "세종대왕（世宗大王）은 조선의 제4대 국왕이며 한글을 만들었다."), True),
    ("ko", "세종(日本的首都是东京)은 조선의 제4대 국왕이며 한글을 만들었다.", False),
    ("ko", "세종대왕은 조선의 제4대 국왕이며 世宗大王 한글을 만들었다.", False),
    ("zh", "세종대왕(世宗大王)", False),
    (
        "ja",
        "すべての人間は自由である。格享有本宣言所载的一切权利和自由,不分种族、肤色。理性を授けられている。",
        False,
    ),
]


@pytest.mark.parametrize(("language", "text", "matches"), CASES)
def test_a_text_is_judged_for_what_it_is(gate: LanguageGate, language: str, text: str, matches: bool) -> None:
    (judged,) = gate.judge([text], [language])
    assert judged.matches == matches, judged


THOUGHT = "We are asked for the capital city of Germany and this is the city of Berlin which everybody knows"
ATTACKS = {
    "backticks": " ".join(f"`{word}`" for word in THOUGHT.split()),
    "adjacent backticks": "".join(f"`{word}`" for word in THOUGHT.split()),
    "calls": " ".join(f"`{word}()`" for word in THOUGHT.split()),
    "one name": f"`{THOUGHT.replace(' ', '_')}`",
    "addresses": " ".join(f"https://{word}" for word in THOUGHT.split()),
    "a path": f"https://example.org/{THOUGHT.replace(' ', '/')}",
    "comments": "```python\n# The capital city of Germany is Berlin\n# It lies on the river Spree\n"
    "# Four million people live there;\n```",
    "later comments": "```\na = 1  # The capital city of Germany is Berlin\nb = 2  # It lies on the river Spree\n```",
    "statements": "```\nWe add the two numbers; so we get seven;\nThe sum is right; the answer is seven;\n```",
    "texts": "```\nprint('The capital city of Germany is Berlin')\nprint('It lies on the river Spree')\n```",
    "headings": f"```{THOUGHT}\nx = 1\n```",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_other_terms_would_reward_cannot_be_hidden_as_code(attack: str) -> None:
    both = ComplianceGate(RewardConfig(), ["de", "en"])
    hidden = ATTACKS[attack]
    texts = [hidden, f"<think>{hidden}</think>Die Hauptstadt von Deutschland ist Berlin."]
    decided = both.decide([read_answer(text, "de") for text in texts], [True] * 2)
    assert [one.compliant for one in decided] == [False, False], decided
    assert both.decide([read_answer(texts[0], "en")], [True])[0].compliant


HONEST = [
    ("de", "Die Funktion `print` gibt `None` zurück."),
    ("de", "Die Typen sind `int`, `float`, `str` und `bool`."),
    ("de", "Verwende `sorted(liste)` oder `liste.sort()`, je nachdem, ob du die Liste ändern willst."),
    ("de", "`break` beendet die Schleife, `continue` springt weiter, `pass` tut nichts."),
    ("de", "- `append`: fügt ein Element an\n- `insert`: fügt eines ein\n- `pop`: nimmt das letzte heraus"),
    ("de", "`None`"),
    ("de", "`df.groupby('name').mean()`"),
    ("de", "Siehe https://de.wikipedia.org/wiki/Berlin und https://www.berlin.de/ für mehr."),
    (
        "de",
        "Hier ist der Code:\n```python\n# create the list\nnumbers = [1, 2, 3]\nfor number in numbers:\n"
        "    print(number)  # print it\n```\nEr legt eine Liste an und gibt danach jede Zahl in einer Zeile aus.",
    ),
    ("zh", "使用 `for` 循环遍历列表，用 `print` 打印每个元素，函数返回 `None`。"),
    ("zh", "调用 `foo` 函数"),
    ("ja", "`append` で要素を追加し、`sort` で並べ替えます。"),
    ("ko", "`append` 메서드는 요소를 추가하고 `pop` 은 제거합니다."),
    ("ru", "Вызовите `foo` и `bar`."),
    ("ar", "الدالة `print` تعيد القيمة `None`."),
    ("th", "ฟังก์ชัน `print` คืนค่า `None`"),
]


@pytest.mark.parametrize(("language", "text"), HONEST)
def test_an_answer_about_code_is_in_its_language(gate: LanguageGate, language: str, text: str) -> None:
    (judged,) = gate.judge([text], [language])
    assert judged.matches, judged


def words_of(text: str) -> list[str]:
    """Words, or pieces of four characters of a script without spaces."""
    return text.split() if text.count(" ") > 5 else [text[at : at + 4] for at in range(0, len(text), 4)]


def letters(some: list[str]) -> int:
    return sum(map(str.isalpha, " ".join(some)))


@st.composite
def mixtures(draw: st.DrawFn, texts: dict[str, list[str]]) -> tuple[str, str, str]:
    """A text of which more than a quarter of the letters, and at least 60, are foreign; both languages."""
    asked, other = draw(st.lists(st.sampled_from(sorted(texts)), min_size=2, max_size=2, unique=True))
    own = words_of(" ".join(draw(st.lists(st.sampled_from(texts[asked]), min_size=1, max_size=4, unique=True))))
    theirs = words_of(" ".join(draw(st.lists(st.sampled_from(texts[other]), min_size=2, max_size=4, unique=True))))
    run = draw(st.integers(6, 40))  # words of the other language in a row
    runs = [theirs[at : at + run] for at in range(0, len(theirs), run)]
    share = draw(st.floats(0.27, 0.95))
    kept, foreign = list[str](), 0
    for one in runs:
        kept.append(" ".join(one))
        foreign += letters(one)
        if foreign >= max(60, share * (foreign + letters(own))):
            break
    while own and foreign < share * (foreign + letters(own)):
        own = own[: len(own) * 4 // 5]
    assume(letters(kept) >= 60)
    mixed = list(own)
    for piece in kept:
        mixed.insert(draw(st.integers(0, len(mixed))), piece)
    disguise = draw(st.sampled_from(["none", "fence", "capitals", "decomposed", "joiners"]))
    text = " ".join(mixed)
    if disguise == "fence":
        text = text.replace(kept[0], f"\n```\n{kept[0]}\n```\n", 1)
    elif disguise == "capitals":
        text = text.replace(kept[0], kept[0].upper(), 1)
    elif disguise == "decomposed":
        text = unicodedata.normalize("NFD", text)
    elif disguise == "joiners":
        text = text.replace(kept[0], "\u200b".join(kept[0]), 1)
    return text, asked, other


def passing(gate: LanguageGate, texts: dict[str, list[str]], tries: int) -> list[str]:
    """Those of so many texts in two languages of the Declaration that pass for one, though they have much of the other.

    Covered are texts of two of its 21 languages, none of which counts as another: at least 60 letters are foreign, more
    than a quarter of all, in runs of 6 words or more (of 6 pieces of four characters without spaces). Single foreign
    words, three languages, and languages that are near to each other are not.
    """
    passed = list[str]()

    @settings(max_examples=tries, database=None, suppress_health_check=list(HealthCheck))
    @given(mixtures(texts))
    def try_to_pass(mixed: tuple[str, str, str]) -> None:
        text, asked, other = mixed
        (judged,) = gate.judge([text], [asked])
        if judged.matches:
            passed.append(f"{asked} with {other}, {judged}: {text}")

    try_to_pass()
    return passed


# The gate's judgement is statistical: about one mixture in 10,000 passes, and hypothesis tries some twice.
def test_hardly_a_mixture_of_two_languages_passes_of_which_a_quarter_is_foreign(
    gate: LanguageGate, declaration: dict[str, list[str]]
) -> None:
    passed = passing(gate, declaration, 300)
    assert len(passed) <= 3, passed


@pytest.mark.slow
def test_of_five_thousand_such_mixtures_at_most_five_pass(
    gate: LanguageGate, declaration: dict[str, list[str]]
) -> None:
    passed = passing(gate, declaration, 5000)
    assert len(passed) <= 5, passed


def test_several_threads_may_use_one_gate(declaration: dict[str, list[str]]) -> None:
    pairs = [(text, code) for code, texts in sorted(declaration.items()) if code in LANGUAGES for text in texts[:12]]
    shared, parts = LanguageGate(), [pairs[start::4] for start in range(4)]
    expected = [[LanguageGate().judge(*zip(*part, strict=True))] for part in parts]

    def one_by_one(part: list[tuple[str, str]]) -> list[Finding]:  # so that each thread reads words while others do
        return [shared.judge([text], [code])[0] for text, code in part]

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(one_by_one, parts))
    finally:
        sys.setswitchinterval(before)
    for mine, (wanted,) in zip(found, expected, strict=True):
        assert [one.language for one in mine] == [one.language for one in wanted]
        assert [one.foreign for one in mine] == pytest.approx([one.foreign for one in wanted], abs=1e-3)


def test_the_estimate_of_foreign_letters_follows_their_share(declaration: dict[str, list[str]]) -> None:
    model = LanguageModel(shipped_model())
    german, french = (" ".join(declaration[code][:12]) for code in ("de", "fr"))
    shares = [0.0, 0.25, 0.5, 0.75, 1.0]
    texts = [f"{german[: int(2000 * (1 - share))]} {french[: int(2000 * share)]}" for share in shares]
    units, asked = model.read(texts), ["de"] * len(texts)
    total = np.bincount(units.owner, units.letters)
    count = ForeignLetters(model, 0.12).count
    allowed, whole = np.ones((len(texts), len(model.languages)), bool), np.full(len(texts), -1)
    families = {"de": model.index(["de"])}
    found = count(units, texts, asked, families, total.astype(np.int64), allowed, whole) / total
    assert found == pytest.approx(shares, abs=0.08), found
    assert (count(units, texts, asked, families, total.astype(np.int64), allowed, whole) / total == found).all()


def test_gate_may_choose_among_some_languages_and_ask_for_certainty(gate: LanguageGate) -> None:
    close = "O gato bebe leite"  # also Galician, Occitan, ...
    assert gate.detect([close, close, ""], [{"pt", "de"}, {"ja"}, {"pt"}]) == ["pt", "ja", ""]
    texts = [*SENTENCES.values(), "ok", "Hotel Taxi"]
    label, chance = fasttext.load_model(str(shipped_model())).predict(texts)
    for least in (0.3, 0.9):
        expected = [
            name[0].removeprefix("__label__") if p[0] >= least else "" for name, p in zip(label, chance, strict=True)
        ]
        strict = LanguageGate(min_probability=least)
        assert strict.detect(texts) == expected


TIGRINYA = "እዚ ብትግርኛ ዝተጻሕፈ ጽሑፍ እዩ። ኣስመራ ርእሲ ከተማ ኤርትራ እያ፣ ብዙሓት ሰባት ድማ ኣብኣ ይነብሩ።"


def test_a_language_that_the_model_does_not_know_is_not_checked(gate: LanguageGate) -> None:
    declare({"tir": "Tigrinya"})
    assert not gate.knows("tir") and gate.knows("am")
    texts = [TIGRINYA, SENTENCES["en"], "12", "", "?!"]
    asked = ["tir", "en", *["tir"] * 3]
    passing, none = Finding("tir", 0.0, True), Finding("", 0.0, False)
    found = gate.judge(texts, asked)
    assert found == [passing, gate.judge([SENTENCES["en"]], ["en"])[0], passing, none, none]
    assert not gate.judge([TIGRINYA], ["en"])[0].matches, "the others are checked as before"
    near = LanguageGate(near={"tir": ["am"]})
    assert near.knows("tir")
    assert [one.matches for one in near.judge([TIGRINYA, SENTENCES["en"]], ["tir", "tir"])] == [True, False]


@pytest.mark.parametrize(
    "settings", [{"unchecked": "pass"}, {"gated": False}, {"function": "mine.py:pay", "parts": {"a": 1.0}}]
)
def test_an_unchecked_language_has_no_diagnostics_and_is_never_too_short(settings: dict[str, Any]) -> None:
    declare({"tir": "Tigrinya"})
    strict = ComplianceGate(RewardConfig(gate_short="fail", gate_short_characters=1000, **settings))
    assert strict.in_language([TIGRINYA, SENTENCES["en"]], ["tir", "en"]) == [True, False]
    detector = GateDetector(ComplianceGate(RewardConfig()))
    assert not detector.knows("tir") and detector.knows("en")
    unknown, known = detector.parts([TIGRINYA, SENTENCES["en"]], ["tir", "en"])
    assert unknown is None and known is not None and known.consistent


def test_where_it_is_not_to_pass_no_text_is_in_an_unchecked_language(caplog: pytest.LogCaptureFixture) -> None:
    """As of a question whose language the model does not know, which nothing refused before the run."""
    declare({"tir": "Tigrinya"})
    gate = ComplianceGate(RewardConfig())
    texts = [TIGRINYA, SENTENCES["en"], "12", ""]
    assert gate.in_language(texts, ["tir"] * 4) == [False, False, True, False]
    assert [one.language for one in gate.judge(texts[1:], ["tir"] * 3)] == ["en", "", ""]
    assert gate.in_language([SENTENCES["en"]], ["en"]) == [True]
    assert caplog.text.count("in tir (Tigrinya), which the language model does not know: none with letters counts") == 1
    assert "unless it is short" not in caplog.text
    short = ComplianceGate(RewardConfig(gate_short="pass", gate_short_characters=1000))
    assert short.in_language(texts, ["tir"] * 4) == [True, True, True, False]
    assert caplog.text.count('counts as being in it unless it is short (reward.gate_short = "pass"), as') == 1


def test_a_model_of_ones_own_knows_its_labels(tmp_path: Path, declaration: dict[str, list[str]]) -> None:
    """lid.176 with another label for Turkish: a language that it lacks, and without one that it has."""
    declare({"ha": "Hausa"})
    file = tmp_path / "own.ftz"
    file.write_bytes(shipped_model().read_bytes().replace(b"__label__tr\0", b"__label__ha\0"))
    own, text = LanguageGate(str(file)), " ".join(declaration["tr"][:5])
    assert own.knows("ha") and not own.knows("tr")
    assert [one.matches for one in own.judge([text, text, text], ["ha", "en", "tr"])] == [True, False, True]
    gated = ComplianceGate(RewardConfig(language_model=str(file)))
    assert gated.in_language([text, text, text], ["ha", "en", "tr"]) == [True, False, False]
    reward: dict[str, Any] = {"language_model": str(file)}
    settings = {"run": {"languages": ["ha", "tr"], "other_languages": {"ha": "Hausa"}}, "reward": reward}
    with pytest.raises(ConfigError, match=r"own\.ftz' does not know tr \(Turkish\), and"):
        check_languages(Config.model_validate(settings), own.knows)
    reward["gated"] = False
    assert "does not know tr (Turkish): whether" in check_languages(Config.model_validate(settings), own.knows)


def test_the_settings_have_rules() -> None:
    with pytest.raises(ValueError, match="gate_share"):
        RewardConfig(gate_share=1.0)


def test_gate_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(FatalError, match=r"absent\.ftz"):
        LanguageGate(str(tmp_path / "absent.ftz"))
    (tmp_path / "broken.ftz").write_text("this is no model")
    with pytest.raises(FatalError, match=r"broken\.ftz"):
        LanguageGate(str(tmp_path / "broken.ftz"))
