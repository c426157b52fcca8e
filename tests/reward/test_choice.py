"""The letter of an option is read from its place, in every language alike, and never from an ordinary word."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward.terms.choice import USUAL_LETTERS, choice, chosen_letter, gold_letters, offered_letters

ROOT = Path(__file__).parents[2]
TEXTS = [ROOT / folder / "declaration.jsonl" for folder in ("tests/support/texts", "scripts/world/texts")]

# language -> ways to say which option is right, and sentences that begin with a capital that is a word, or hold one
SAID: dict[str, tuple[list[str], list[str]]] = {
    "en": (["The answer is {}.", "The correct option is {}.", "Answer: {}", "So {} is right."],
           ["I know it.", "A whale is no fish.", "As far as I can tell, I am sure."]),
    "de": (["Die richtige Antwort ist {}.", "Antwort: {}", "Die Antwort lautet {}."], ["A priori ist das klar."]),
    "fr": (["La bonne réponse est la {}.", "Réponse : {}", "La réponse correcte est {}."],
           ["A Paris il pleut.", "Y a-t-il un doute ?", "A cela rien ne change."]),
    "es": (["La respuesta correcta es la {}.", "Respuesta: {}", "La opción correcta es la {}."],
           ["A veces llueve.", "Y así es.", "E incluso nieva.", "O tal vez no."]),
    "pt": (["A resposta correta é a {}.", "Resposta: {}", "A alternativa correta é a {}."],
           ["A capital é Paris.", "O rio é longo.", "E assim é."]),
    "it": (["La risposta corretta è la {}.", "Risposta: {}", "La risposta è {}."],
           ["A Parigi piove.", "E poi nevica.", "O forse no."]),
    "ru": (["Правильный ответ — {}.", "Ответ: {}", "Правильный вариант: {}."],
           ["В Париже дождь.", "С другой стороны, нет.", "А это так.", "И это верно.",
            "К тому же, У нас так.", "О ней знают."]),
    "zh": (["答案是{}。", "正确答案：{}", "因此选{}。"], ["巴黎是法国的首都。"]),
    "ja": (["答えは{}です。", "正解：{}", "正しい答えは{}である。"], ["パリはフランスの首都です。"]),
    "ko": (["정답은 {}입니다.", "정답: {}", "답은 {}이다."], ["파리는 프랑스의 수도입니다."]),
    "ar": (["الإجابة الصحيحة هي {}.", "الإجابة: {}", "الجواب هو {}."], ["باريس عاصمة فرنسا."]),
    "sw": (["Jibu sahihi ni {}.", "Jibu: {}", "Jibu ni {}."], ["Paris ni mji mkuu.", "A ni herufi ya kwanza."]),
    "vi": (["Đáp án đúng là {}.", "Đáp án: {}", "Câu trả lời là {}."],
           ["Bậc thầy là Cấp cao nhất.", "Cộng hòa Pháp ở châu Âu.", "Ấn Độ, Đức và Anh."]),
    "tr": (["Doğru cevap {}'dir.", "Cevap: {}", "Doğru yanıt {} şıkkıdır.", "Cevap {}, çünkü B yanlış."],
           ["A noktası burada.", "O gün geldi.", "E tabii ki öyle."]),
    "sv": (["Rätt svar är {}.", "Svar: {}", "Rätt svar är alternativ {}."], ["I Paris regnar det.", "Å andra sidan."]),
    "el": (["Η σωστή απάντηση είναι {}.", "Απάντηση: {}", "Η σωστή απάντηση είναι η {}."], ["Η Γαλλία είναι χώρα."]),
    "nl": (["Het juiste antwoord is {}.", "Antwoord: {}"], ["U weet het."]),
}  # fmt: skip
ALIKE = {"A": "А", "B": "В", "C": "С", "E": "Е"}  # Latin -> Cyrillic
MARKED = ["{}", "**{}**", "({})", "“{}”", "`{}`", "$\\boxed{{{}}}$", "\\boxed{{\\text{{{}}}}}"]
AT_THE_BEGINNING = ["{}", "**{}**", "({})", "{}.", "{})", "**{}.**", "\\boxed{{{}}}", "- {}."]


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"), ("(c)", "C"), ("The answer is B.", "B"), ("答案是B。", "B"), ("A is wrong, so D", "D"),
        (r"\boxed{C} and not D", "C"), ("Ｂ", "B"), ("Ответ: В", "B"), ("Ⓐ", "A"), ("NATO", ""), ("", ""), ("42", ""),
        # words
        ("The answer is B because I know it.", "B"), ("**B**\n\nA whale is big.", "B"), ("Risposta: B. A Parigi.", "B"),
        ("Ответ: D. В Париже.", "D"), ("I think so. A whale.", ""), ("A city in France.", ""),
        ("A answer - no", ""),
        ("Answer: A city in France.", ""), ("the answer is a whale", ""), ("Правильный ответ: В Париже", ""),
        ("В Париже. С другой стороны, А потом.", ""), ("E è la risposta", ""), ("Bậc thầy Cấp", ""),
        ("R&D and Q&A in the U.S.A. of 44 B.C., N/A", ""), ("THE ANSWER IS A CITY", ""),
        # said, and then said otherwise
        ("The answer to A is B", "B"), ("The answer is A or B.", ""), ("The answer is A? No, the answer is B.", "B"),
        ("La respuesta es A o B", ""), ("The answer is not A but B", "B"),
        ("答案不是A而是B", "B"), ("답은 A가 아니라 B입니다", "B"), ("答えはAではなくBです", "B"),
        ("Answer: B is right, not C", "B"), ("Answer: B, A is wrong", "B"), ("Q: What?\nA: B", "B"),
        ("Answer: A because it is.", "A"), ("Ответ: A В Париже", "A"),
        ("A is correct", "A"), ("Option A is correct.", "A"), ("Therefore, A.", "A"),
        ("The answer is (b).", "B"), ("The answer is **B. A whale**", "B"), ("The answer is\n\n**B**", "B"),
        ("**Correct answer**: C", "C"), ("**Answer: B**", "B"), ("**Option B: Paris**", "B"), ("Answer\n\nB", "B"),
        ("The answer is 'C', as I said", "C"), ("Answer: \n\n**B. Paris**", "B"), ("'B'", "B"),
        ("A선택지는 틀리고 D가 맞습니다", "D"), ("我选择 C。", "C"), ("正确选项是C", "C"), ("ответ: **С**", "C"),
        (r"\boxed{B. Paris}", "B"), (r"\boxed{A}, no: \boxed{B}", "B"), (r"\boxed{7}, so B", "B"),
        # all options gone through
        ("A. no\nB. yes\nC. no\nD. no\n\nSo B is right.", "B"), ("A. no\nB. yes\nC. no\nD. no", ""),
        ("A. no\nB. no\nC. no\n\nD", "D"), ("B) Paris.\n\nA) wrong\nC) wrong\nD) wrong", "B"),
        ("**A.** no\n**B.** no\n**C.** yes\n**D.** no\nThe correct one is C", "C"), ("not (A) but (B)", "B"),
        ("(A) no, (B) yes, (C) no, (D) no", ""), ("Options: A, B, C, D", ""),
        ("A, B and C are wrong", ""), ("Варианты ответа: A, B, C", ""),
        ("Options: A) Paris B) London C) Rome D) Oslo", ""), ("选项：A. 巴黎 B. 伦敦 C. 罗马", ""),
        ("A. Paris B. London C. Rome D. Oslo. It is B", "B"), ("А. нет\nБ. да\nВ. нет", ""),
        ("A is wrong. B. is wrong. So it is D.", "D"),
        # other languages
        ("Cevap A'dır", "A"), ("Doğru cevap B’dir.", "B"), ("Yanıt D'dır, çünkü A yanlış.", "D"),
        ("Doğru cevap A, çünkü B yanlış.", "A"), ("Doğru cevap B'dir, A değil.", "B"), ("Cevap A veya B", ""),
        ("Rätt svar är alternativ A, eftersom B är fel", "A"), ("Rätt svar är inte A utan B", "B"),
        ("Η σωστή απάντηση είναι η Β.", "B"), ("Σωστή απάντηση είναι το A, όχι το B", "A"), ("It's A's", ""),
        ("Het juiste antwoord is C, niet D", "C"), ("B'A", ""), ("Die Antwort ist A, nicht B", "A"),
        ("Răspunsul corect este A, nu B", "A"), ("Det rigtige svar er A, fordi B er forkert", "A"),
        ("Prawidłowa odpowiedź jest A, nie B", "A"), ("সঠিক উত্তর হল A, B নয়", "A"), ("คำตอบคือ A ไม่ใช่ B", "A"),
        ("Jawaban yang benar adalah A, bukan B", "A"), ("Відповідь: A, а не B", "A"), ("सही उत्तर: A, B नहीं", "A"),
        ("సమాధానం: A, B కాదు", "A"),
    ],
)  # fmt: skip
def test_a_choice_is_the_letter_that_an_answer_settles_on(answer: str, letter: str) -> None:
    assert chosen_letter(answer, "ABCDE") == letter
    assert choice(answer, ["B. Paris"], "ABCDE") == (letter == "B")


@given(st.data())
def test_every_letter_is_read_alike_in_every_language(data: st.DataObject) -> None:
    language, letter = data.draw(st.sampled_from(sorted(SAID))), data.draw(st.sampled_from("ABCDE"))
    ways, words = SAID[language]
    written = ALIKE.get(letter, letter) if language == "ru" and data.draw(st.booleans()) else letter
    before = " ".join(data.draw(st.lists(st.sampled_from(words), max_size=3)))
    after = " ".join(data.draw(st.lists(st.sampled_from(words), max_size=3)))
    if data.draw(st.booleans()):
        told = data.draw(st.sampled_from(AT_THE_BEGINNING)).format(written)
        answer = f"{told}\n\n{after}"
    else:
        way = data.draw(st.sampled_from(ways))
        told = way.format(data.draw(st.sampled_from(MARKED)).format(written))
        if "So " in told and written != letter:
            return
        # "Answer: A I know it" can be read in two ways, so a letter at the end is followed by a stop or a new line
        ends = ["\n", ". "] if way.endswith("}") else [" ", "\n"]
        answer = f"{before} {told}{data.draw(st.sampled_from(ends))}{after}".strip()
    assert chosen_letter(answer, "ABCDE") == letter, answer


@given(st.data())
def test_words_are_no_letters(data: st.DataObject) -> None:
    words = SAID[data.draw(st.sampled_from(sorted(SAID)))][1]
    answer = data.draw(st.sampled_from([" ", "\n"])).join(data.draw(st.lists(st.sampled_from(words), min_size=1)))
    assert chosen_letter(answer, "ABCDE") == ("A" if "A ni" in answer else ""), answer


def test_real_texts_choose_nothing() -> None:
    """The Universal Declaration of Human Rights, paragraph by paragraph, in all languages that there are here."""
    rows = [json.loads(line) for path in TEXTS for line in path.read_text(encoding="utf-8").splitlines()]
    assert {"ar", "de", "en", "es", "fr", "it", "ja", "ko", "pt", "ru", "sw", "vi", "zh"} <= {
        row["language"] for row in rows
    }
    read = [(row, chosen_letter(row["text"], "ABCDE")) for row in rows]
    assert [pair for pair in read if pair[1]] == []


@pytest.mark.parametrize(
    ("question", "letters"),
    [
        ("Which?\nA. one\nB. two\nC. three", "ABC"),
        ("Which?\n(A) one\n(B) two\n(C) three\n(D) four\n(E) five", "ABCDE"),
        ("Which?\nＡ．一\nＢ．二", "AB"), ("Which of A and B?", USUAL_LETTERS), ("", USUAL_LETTERS),
        ("A. one", USUAL_LETTERS),
    ],
)  # fmt: skip
def test_a_question_tells_its_letters(question: str, letters: str) -> None:
    assert offered_letters(question) == letters


@pytest.mark.parametrize(
    "part", ["-", "*", "(", "answer ", "\n", " ", "> # - ", "A, ", "A. ", "answer is ", "$", "\\boxed{", "`\"'"]
)
def test_no_answer_takes_long(part: str) -> None:
    text = part * (20_000 // len(part))
    began = time.process_time()
    for answer in (text, f"{text}!", f"Answer{text}!"):
        chosen_letter(answer)
    assert time.process_time() - began < 3


@pytest.mark.parametrize(
    ("accepted", "letters"),
    [
        (["b"], "B"), (["b)"], "B"), (["(c) Paris"], "C"), (["B. Paris"], "B"), (["Ｂ"], "B"), (["a whale"], ""),
        (["2"], ""), (["Б"], ""), (["ข"], ""), (["甲"], ""), (["Paris", "d"], "D"), ([], ""),
    ],
)  # fmt: skip
def test_accepted_answers_tell_their_letters(accepted: list[str], letters: str) -> None:
    assert gold_letters(accepted) == {*letters}
    assert choice("The answer is B.", accepted) == (letters == "B")


def test_only_options_that_there_are_can_be_chosen() -> None:
    assert [chosen_letter("The answer is F.", letters) for letters in ("ABCD", "ABCDEF")] == ["", "F"]
    assert choice("L", ["L. twelfth"]) == 1, "the gold is an option, whatever the usual number is"
    assert choice("The answer is I.", ["(I)"]) == 1 and choice("So I know.", ["(I)"]) == 0
