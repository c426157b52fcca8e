"""Sums told as stories, with thoughts that solve them in two steps, in each language.

``{a}``, ``{b}`` and ``{c}`` are numbers in words, of which the first two are added and the third is taken away. In a
thought ``{s}`` is the sum and ``{r}`` the result. The sentences are built so that nothing has to be inflected, for
numbers from 2 to 6 in questions, and long enough for a language identifier.
"""

from __future__ import annotations

from dataclasses import dataclass

from scripts.world.reasoning.number_words import number_word

LANGUAGES = ("ar", "de", "en", "es", "fr", "it", "ja", "ru", "tr", "zh")
SMALLEST, LARGEST = 2, 6  # numbers in questions; sums and results may be others

STORIES: dict[str, dict[str, str]] = {
    "apples": {
        "ar": (
            "عدد التفاحات عند آنا: {a}. عدد التفاحات التي اشترتها: {b}. عدد التفاحات التي أعطتها: {c}. "
            "كم عدد التفاحات عندها الآن؟"
        ),
        "de": "Anna hat {a} Äpfel. Sie kauft {b} dazu und verschenkt dann {c}. Wie viele Äpfel hat sie jetzt?",
        "en": "Anna has {a} apples. She buys {b} more and then gives away {c}. How many apples does she have now?",
        "es": "Ana tiene {a} manzanas. Compra {b} más y después regala {c}. ¿Cuántas manzanas tiene ahora?",
        "fr": (
            "Anna a {a} pommes. Elle en achète encore {b}, puis elle en donne {c}. "
            "Combien de pommes a-t-elle maintenant ?"
        ),
        "it": "Anna ha {a} mele. Ne compra altre {b} e poi ne regala {c}. Quante mele ha adesso?",
        "ja": (
            "アンナはりんごを{a}個持っています。さらに{b}個買って、そのあと{c}個あげました。今、りんごは何個ありますか。"
        ),
        "ru": "У Анны было яблок: {a}. Потом она купила ещё {b}, а затем отдала {c}. Сколько яблок у неё теперь?",
        "tr": "Anna'nın {a} elması var. Önce {b} elma daha alıyor, sonra {c} elma veriyor. Şimdi kaç elması var?",
        "zh": "安娜有{a}个苹果。她又买了{b}个，然后送出了{c}个。她现在有多少个苹果？",
    },
    "bus": {
        "ar": "عدد الركاب في الحافلة: {a}. عدد الذين صعدوا: {b}. عدد الذين نزلوا: {c}. كم عدد الركاب في الحافلة الآن؟",
        "de": (
            "In einem Bus sitzen {a} Personen. Dann steigen {b} ein, und danach steigen {c} aus. "
            "Wie viele Personen sind jetzt im Bus?"
        ),
        "en": (
            "There are {a} people on a bus. Then {b} get on, and after that {c} get off. "
            "How many people are on the bus now?"
        ),
        "es": (
            "En un autobús hay {a} personas. Luego suben {b} y después bajan {c}. "
            "¿Cuántas personas hay ahora en el autobús?"
        ),
        "fr": (
            "Dans un bus, il y a {a} personnes. Ensuite {b} personnes montent, puis {c} personnes descendent. "
            "Combien de personnes y a-t-il maintenant dans le bus ?"
        ),
        "it": (
            "Su un autobus ci sono {a} persone. Poi ne salgono {b} e dopo ne scendono {c}. "
            "Quante persone ci sono adesso?"
        ),
        "ja": "バスに{a}人乗っています。次に{b}人が乗って、そのあと{c}人が降りました。今、バスには何人いますか。",
        "ru": (
            "В автобусе было пассажиров: {a}. Потом вошло ещё {b}, а затем вышло {c}. "
            "Сколько пассажиров теперь в автобусе?"
        ),
        "tr": "Otobüste {a} kişi var. Sonra {b} kişi biniyor ve {c} kişi iniyor. Şimdi otobüste kaç kişi var?",
        "zh": "公交车上有{a}个人。后来上来了{b}个人，然后下去了{c}个人。现在车上有多少个人？",
    },
}

THOUGHTS: dict[str, str] = {
    "ar": "أولا، {a} زائد {b} يساوي {s}. ثم {s} ناقص {c} يساوي {r}. إذن الجواب هو {r}.",
    "de": "Zuerst ist {a} plus {b} gleich {s}. Dann ist {s} minus {c} gleich {r}. Also ist die Antwort {r}.",
    "en": "First, {a} plus {b} is {s}. Then {s} minus {c} is {r}. So the answer is {r}.",
    "es": "Primero, {a} más {b} son {s}. Después, {s} menos {c} son {r}. Entonces la respuesta es {r}.",
    "fr": "D'abord, {a} plus {b}, cela fait {s}. Ensuite, {s} moins {c}, cela fait {r}. La réponse est donc {r}.",
    "it": "Prima di tutto, {a} più {b} fa {s}. Poi {s} meno {c} fa {r}. Quindi la risposta è {r}.",
    "ja": "まず、{a}足す{b}は{s}です。次に、{s}引く{c}は{r}です。ですから答えは{r}です。",
    "ru": "Сначала {a} плюс {b} равно {s}. Потом {s} минус {c} равно {r}. Значит, ответ: {r}.",
    "tr": "Önce {a} artı {b} eşittir {s}. Sonra {s} eksi {c} eşittir {r}. Öyleyse cevap {r}.",
    "zh": "首先，{a}加{b}等于{s}。然后，{s}减{c}等于{r}。所以答案是{r}。",
}

_COUNTED = {("zh", 2): "两"}  # before a measure word


@dataclass(frozen=True, order=True)
class Sum:
    """``first + second - third``, told as a story."""

    story: str  # a key of STORIES
    first: int
    second: int
    third: int

    @property
    def total(self) -> int:
        """What is there before something is taken away."""
        return self.first + self.second

    @property
    def result(self) -> int:
        return self.total - self.third

    def question(self, language: str) -> str:
        """The story in a language."""
        numbers = {"a": self.first, "b": self.second, "c": self.third}
        words = {
            slot: _COUNTED.get((language, number)) or number_word(number, language) for slot, number in numbers.items()
        }
        return STORIES[self.story][language].format(**words)

    def thought(self, language: str, slip: int = 0, second_slip: int = 0) -> tuple[str, int]:
        """The two steps in words, and the number that they lead to.

        Args:
            slip: by how much the first step is wrong; the second step goes on from there.
            second_slip: by how much the second step is wrong.
        """
        total = self.total + slip
        result = total - self.third + second_slip
        numbers = {"a": self.first, "b": self.second, "c": self.third, "s": total, "r": result}
        words = {slot: number_word(number, language) for slot, number in numbers.items()}
        return THOUGHTS[language].format(**words), result


def every_sum() -> list[Sum]:
    """All sums of the world, in order; their results are at least 1."""
    numbers = range(SMALLEST, LARGEST + 1)
    return [
        Sum(story, first, second, third)
        for story in STORIES
        for first in numbers
        for second in numbers
        for third in numbers
        if first + second > third
    ]
