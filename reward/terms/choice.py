"""Multiple choice: the letter of the option that an answer settles on.

Capital letters are also words: A, E, I, O and Y in languages of Latin script, А, В, И, К, О, С and У in Cyrillic. So a
letter counts by its place, in this order:

1. in ``\\boxed{}``, the last one;
2. as the whole answer;
3. after words such as "the answer is" or "Ответ:", the last one;
4. marked as an option: in bold type, brackets or quotes, alone on a line or after a colon, or at the beginning of a
   line as "B." or "B)"; the last one. Where all options are gone through one after the other, that is no decision;
5. a capital letter by itself that is no word of the sentence that it stands in; the last one.

Letters of other scripts count as the Latin ones that they look like in the first four places alone.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

USUAL_LETTERS = "ABCDEFGHIJ"  # of options, where nobody says how many there are

# Cyrillic and Greek capitals that a policy writes for the Latin ones that they look like.
_LOOK_ALIKE = dict(zip("АВСЕНΑΒΕΗ", "ABCEHABEH", strict=True))
# Options that are lettered in these alphabets: then В is the third one and no B, and the options are not ours.
_OTHER_ALPHABET = re.compile(r"(?m)^[ \t*_#>(•-]*[БГДΓΔ][).:]")
# What a lone letter may not stand beside: letters of scripts with capitals, digits, combining marks. Scripts without
# spaces may stand right beside it.
_CASED = r"A-Za-z0-9_À-ɏ\u0300-\u036fͰ-ϿЀ-ԯḀ-ỿἀ-῿"
_BEFORE = rf"(?<![{_CASED}'’°&/\\^+#@])(?<![{_CASED}][-.&/])"
_ENDING = rf"(?:[dt][ıi]r|y?[ıiae]|n[ıi]n)(?![{_CASED}])"  # of Turkish, behind an apostrophe: B'dir
_AFTER = rf"(?![{_CASED}°&/+#^])(?!['’](?!{_ENDING}))(?![-&/][{_CASED}])(?!\.[A-Za-z](?![{_CASED}]))"
_CAPITAL = "[A-ZАВСЕНΑΒΕΗ]"
_LATIN = re.compile(rf"{_BEFORE}([A-Z]){_AFTER}")
_MARK = r"[*_`\"'“”„«»‘’「」『』〈〉《》()\[\]{}$]"  # what may stand around a letter
_WORDS_BETWEEN = (  # "the answer is option B", "la respuesta es la B"
    r"(?:(?-i:the|option|choice|letter|die|der|buchstabe|la|le|l'option|lettre|opción|letra|inciso|a|o|opção|alternativa|"
    r"l'opzione|opzione|lettera|вариант|буква|под буквой|chaguo|herufi|phương án|lựa chọn|chữ|الخيار|الحرف|"
    r"alternativ|alternativet|optie|η|το|επιλογή|选项|選項|選択肢|選択肢の|보기|선택지)\s*){0,2}"
)
_ANSWER = (  # words for an answer or the right option, as they stand before the letter
    r"(?:answer|option|choice|antwort|lösung|réponse|choix|respuesta|opción|alternativa|resposta|opção|gabarito|"
    r"risposta|opzione|soluzione|cevap|yanıt|svar(?:et)?|antwoord|odpowiedź|răspuns(?:ul)?|"
    r"απάντηση|відповідь|ответ(?:ом)?|вариант(?:ом)?|решение|jibu|chaguo|"
    rf"đáp án|câu trả lời|phương án|lựa chọn|jawaban(?:nya)?|jawapan(?:nya)?)(?![{_CASED}])|"
    r"الإجابة|الاجابة|الجواب|إجابة|جواب|الخيار|"
    r"答案|正确选项|正確選項|答え|正解|解答|回答|正しい選択肢|정답|답|올바른 선택지|उत्तर|উত্তর|సమాధానం|"
    + unicodedata.normalize("NFKC", "คำตอบ")  # of two letters, as in the text
)
_LINK = (  # what stands between these words and the letter: a copula, after which a capital is no first word
    r"(?:is|would be|must be|ist|lautet|wäre|est|serait|es|sería|é|seria|è|sarebbe|är|er|jest|este|"
    r"είναι|является|будет|это|"
    rf"ni(?!\s+\S+\s+ni\b)|là|adalah|ialah)(?![{_CASED}])|"
    r"هي|هو|是|为|為|就是|应该是|應該是|は|が|은|는|이|है|হল|হলো|คือ"
)
_STATED = re.compile(
    rf"(?:(?<![{_CASED}])(?:{_ANSWER})(?P<gap>[^\n.!?。！？]{{0,60}}?)"
    rf"(?:(?<![{_CASED}])(?P<link>{_LINK})\s*(?P<colon>[:：]?)|(?P<sign>[:：=—–-]))"
    rf"|^[ \t*_]*A(?P<short>:)(?=\s))"
    rf"(?P<between>[\s*_]*{_WORDS_BETWEEN})(?P<open>{_MARK}*)\s*(?P<letter>[A-Za-zАВСЕНΑΒΕΗ]){_AFTER}(?P<close>{_MARK}*)",
    re.IGNORECASE | re.MULTILINE,
)
_DENIED_BEFORE = re.compile(r"(?:不|并非|並非)\s*$")  # and after it, in languages that deny behind the letter
_DENIED_AFTER = re.compile(
    rf"{_MARK}*\s*(?:가|이)?\s*(?:아니|아닌)|{_MARK}*\s*(?:では|じゃ)(?:な|あり)|{_MARK}*\s*değil"
)
_OR = r"or|oder|ou|o|oppure|или|либо|hoặc|hay|au|atau|veya|ya da|eller|ή|أو|或者?|または|又は|또는|혹은"
_AND_SO_ON = re.compile(  # several letters, of which none is chosen: "A or B", "A, B, C"
    rf"{_MARK}*\s*(?:(?:{_OR})\s*{_MARK}*{_CAPITAL}{_AFTER}"
    rf"|[,，、]\s*{_MARK}*{_CAPITAL}{_MARK}*\s*(?:[,，、]|(?:{_OR})\s*{_MARK}*{_CAPITAL}{_AFTER}))"
)
_CHOSEN = re.compile(  # 选B; Cevap B'dir, and without a copula where the letter ends a clause
    rf"(?:选择?|選擇?|應選|应选)\s*{_MARK}*({_CAPITAL}){_AFTER}"
    rf"|(?<![{_CASED}])(?i:cevap|yanıt|seçenek|şık)\s+{_MARK}*({_CAPITAL}){_AFTER}{_MARK}*"
    rf"(?=['’]|\s*(?:[.,;!]|$)|\s+(?:şık|seçene|veya|ya da))"
)
_BOX = re.compile(
    r"\\boxed\s*\{\s*(?:\\(?:text|textbf|mathrm|mathbf|rm|bf)\s*\{?)?\s*[(\[]?\s*"
    rf"([A-Za-zАВСЕНΑΒΕΗ])(?=\s*[\])}}.:,]|\s*\}}){_AFTER}"
)
_NUMBERED = r"[).:](?=\s|$|[^\s).:])"
_BULLET = r"^[-•#> \t]*"
_MARKED: tuple[tuple[str, re.Pattern[str]], ...] = (  # kind -> the pattern; an earlier one takes a place first
    ("alone", re.compile(rf"(?m){_BULLET}{_MARK}*[ \t]*({_CAPITAL})[ \t]*[.:。]?{_MARK}*[.:。]?[ \t]*$")),
    ("line", re.compile(rf"(?m){_BULLET}{_MARK}*(?<![(\[])({_CAPITAL}){_MARK}*{_NUMBERED}")),
    ("bold", re.compile(
        rf"(?:\*\*|__)[ \t]*\(?(?:(?i:{_ANSWER}|letter|lettre|letra|lettera|buchstabe|буква)[ \t:]*)?"
        rf"({_CAPITAL})\)?(?:[).:][^*\n]*)?[ \t]*(?:\*\*|__)"
    )),
    ("bold", re.compile(rf"(?<![{_CASED}*])[*`]({_CAPITAL})[*`](?![{_CASED}*])")),
    ("bracket", re.compile(rf"(?<![{_CASED}])\(({_CAPITAL})\)(?![{_CASED}])")),
    ("bracket", re.compile(rf"(?<![{_CASED}])\[({_CAPITAL})\](?![{_CASED}])")),
    ("quote", re.compile(rf"(?<![{_CASED}])[\"'“”„«‘「『]({_CAPITAL})[\"'“”»’」』](?![{_CASED}])")),
    ("colon", re.compile(rf"[:：][ \t]*({_CAPITAL})(?=[ \t]*(?:[).。]|$))(?!\.[ \t]*[A-Z]\.)", re.MULTILINE)),
    ("numbered", re.compile(rf"{_BEFORE}({_CAPITAL}){_AFTER}[).:](?=[ \t]*[^\s).:])")),
)  # fmt: skip
_ALIKE = {"line": "numbered", "colon": "numbered"}  # kind -> the kind that it may stand in one list with
_LISTED = re.compile(
    rf"{_BEFORE}{_CAPITAL}(?:[\s,，、;/]+(?:[^\W\d_]{{1,5}}\s+)?{_CAPITAL}{_AFTER}){{2,}}"
)  # "A, B or C"
_FIRM = re.compile(r"[ \t]*(?:[).,:;!?—–…。、，！？）」】|]|$|\n|-\s)")  # after a letter: it is no word that goes on
_NEXT_WORD = re.compile(r"[ \t]+([A-Za-zÀ-ɏḀ-ỿͰ-ϿЀ-ԯ]+)")
_WORDS = frozenset("AEIKOSUVWYZАВСΑΗ")  # capitals that are a word, where a sentence begins
# The word A, in whatever language, does not stand before these.
_NOT_AFTER_A = frozenset([
    "is", "was", "ist", "war", "est", "es", "era", "é", "è", "ni", "là", "because", "since", "weil", "denn", "porque",
    "pues", "parce", "perché", "poiché", "vì",
])  # fmt: skip
_OPTION = re.compile(r"\s*\(?(?:([A-Z])(?:[).:]|\s|$)|([a-z])(?:[).:]|\s*$))")  # what an accepted answer begins with
_OFFERED = re.compile(r"(?m)^[ \t*_(\[•-]*([A-Z])\**[).:\]]\s*\S")


@dataclass(frozen=True)
class _Marked:
    """A letter that is marked as an option: from where it stands, and how it is marked."""

    start: int
    letter: str
    kind: str


def chosen_letter(answer: str, letters: str = USUAL_LETTERS) -> str:
    """The option that an answer settles on; ``""`` where nothing decides.

    Full-width and circled letters count as the letters that they are, and so does an answer of one small letter.

    Args:
        letters: of the options that there are, "ABCD".
    """
    text = unicodedata.normalize("NFKC", answer).replace("\r\n", "\n").strip()
    if boxed := [found for one in _BOX.finditer(text) if (found := _latin(one[1].upper(), letters))]:
        return boxed[-1]
    alone = text.strip("()[].:*_`\"'“”$ \n")
    if len(alone) == 1:
        return _latin(alone.upper(), letters)
    other = _OTHER_ALPHABET.search(text) is not None
    if stated := list(_stated(text, letters, other)):
        return stated[-1]
    marked = _marked(text, letters, other)
    listed = {place for one in _LISTED.finditer(text) for place in range(one.start(), one.end())}
    passed = listed | {one.start for run in _runs(marked, min(3, len(letters))) for one in run}
    if decided := [one.letter for one in marked if one.kind != "numbered" and one.start not in passed]:
        return decided[-1]
    lone = [one for one in _LATIN.finditer(text) if one[1] in letters and one.start(1) not in passed]
    return next((one[1] for one in reversed(lone) if not _is_word(text, one.start(1), one.end(1))), "")


def choice(answer: str, accepted: list[str], letters: str = USUAL_LETTERS) -> float:
    """1 where the answer settles on the letter of an accepted one (:func:`gold_letters`); otherwise 0.

    Args:
        letters: of the options that there are; those of accepted answers are among them in any case.
    """
    golds = gold_letters(accepted)
    return float(chosen_letter(answer, letters + "".join(sorted(golds - set(letters)))) in golds)


def gold_letters(accepted: list[str]) -> set[str]:
    """The letters of accepted answers, as "B", "b)" or "(B) Paris"; none of numbers and of letters that are not Latin.

    A small letter counts where nothing but a bracket, stop or colon follows it: "a whale" is no option A.
    """
    found = (_OPTION.match(unicodedata.normalize("NFKC", one)) for one in accepted)
    return {(one[1] or one[2]).upper() for one in found if one}


def offered_letters(question: str) -> str:
    """The letters of the options of a question, at the beginnings of lines as "A." or "(A)"; else the usual ones."""
    found = "".join(one[1] for one in _OFFERED.finditer(unicodedata.normalize("NFKC", question)))
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    count = next((n for n in range(len(alphabet), 1, -1) if alphabet[:n] in found), 0)
    return alphabet[:count] or USUAL_LETTERS


def _latin(letter: str, letters: str, other_alphabet: bool = False) -> str:
    """The permitted Latin letter that a letter is, or looks like; ``""`` for none."""
    found = letter if other_alphabet else _LOOK_ALIKE.get(letter, letter)
    return found if found and found in letters else ""


def _stated(text: str, letters: str, other_alphabet: bool) -> Iterator[str]:
    """The letters that stand after "the answer is", a colon after "answer", and the like, in the order of the text.

    ``""`` stands for a place that names several.
    """
    found: list[tuple[int, str]] = []
    for one in _STATED.finditer(text):
        written, end = one["letter"], one.end("letter")
        letter = _latin(written.upper(), letters, other_alphabet)
        if not letter:
            continue
        bracketed = "(" in one["open"] and ")" in one["close"]
        if written != written.upper() and not bracketed:
            continue
        if one["link"] and not one["colon"]:  # in the middle of a sentence, where a word would be small
            word = _NEXT_WORD.match(text, end)
            if written in _WORDS and word and len(word[1]) > 1 and word[1].isupper():
                continue
        elif not one["open"].strip() and _begins_words(text, written, end):
            continue
        if _DENIED_BEFORE.search(one["gap"] or "") or _DENIED_AFTER.match(text, end):
            continue
        found.append((one.start("letter"), "" if _AND_SO_ON.match(text, end) else letter))
    for one in _CHOSEN.finditer(text):
        if letter := _latin(one[1] or one[2], letters, other_alphabet):
            found.append((one.start(), "" if _AND_SO_ON.match(text, one.end()) else letter))
    return (letter for _, letter in sorted(found))


def _marked(text: str, letters: str, other_alphabet: bool) -> list[_Marked]:
    """The letters that are marked as options, in the order of the text, each once.

    Those of the kind "numbered", as "B." in the middle of a line, decide nothing; they may be listed options.
    """
    found: dict[int, _Marked] = {}
    for kind, pattern in _MARKED:
        for one in pattern.finditer(text):
            if letter := _latin(one[1], letters, other_alphabet):
                found.setdefault(one.start(1), _Marked(one.start(1), letter, kind))
    return [found[start] for start in sorted(found)]


def _runs(marked: list[_Marked], least: int) -> Iterator[list[_Marked]]:
    """Runs of at least ``least`` letters that are marked alike and go up the alphabet: options that are listed."""
    by_kind: dict[str, list[_Marked]] = {}
    for one in marked:
        by_kind.setdefault(_ALIKE.get(one.kind, one.kind), []).append(one)
    for some in by_kind.values():
        run: list[_Marked] = []
        for one in some:
            if run and one.letter <= run[-1].letter:
                if len(run) >= least:
                    yield run
                run = []
            run.append(one)
        if len(run) >= least:
            yield run


def _is_word(text: str, start: int, end: int) -> bool:
    """Whether a lone Latin capital may be a word of its sentence, as in "A whale" or "and I know"."""
    letter, before = text[start], text[:start].rstrip(" \t*_\"'“”„«»‘(")
    if letter == "I":
        return True
    if letter not in _WORDS:
        return False
    if not before or before[-1] in "\n.!?:;…。！？)":  # a sentence may begin here
        return _begins_words(text, letter, end)
    following = _NEXT_WORD.match(text, end)
    return following is not None and following[1][0].isupper()  # a heading, as in "A Tale of A City"


def _begins_words(text: str, letter: str, end: int) -> bool:
    """Whether words go on after a letter that is one where a sentence begins."""
    if letter not in _WORDS or _FIRM.match(text, end):
        return False
    following = _NEXT_WORD.match(text, end)
    if following is None or _is_latin(letter) != _is_latin(following[1]):  # a word of one script in a text of another
        return False
    return not (letter == "A" and following[1] in _NOT_AFTER_A)


def _is_latin(text: str) -> bool:
    return text[0] < "Ͱ" or text[0] >= "Ḁ"
