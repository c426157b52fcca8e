"""The questions and full-sentence answers of the offline world, for each kind of fact and each language.

``{c}`` is a country, ``{x}`` and ``{y}`` are numbers, days or months in words, ``{a}`` is the answer. Sentences are
built so that no inserted name has to be inflected, and long enough for a language identifier.
"""

from __future__ import annotations

from typing import NamedTuple


class Template(NamedTuple):
    question: str
    answer: str


TEMPLATES: dict[str, dict[str, Template]] = {
    "capital": {
        "ar": Template("ما هي عاصمة هذا البلد: {c}؟", "عاصمة هذا البلد {c} هي مدينة {a}."),
        "de": Template("Was ist die Hauptstadt dieses Landes: {c}?", "Die Hauptstadt von {c} ist {a}."),
        "en": Template("What is the capital of this country: {c}?", "The capital of {c} is {a}."),
        "es": Template("¿Cuál es la capital de este país: {c}?", "La capital de {c} es {a}."),
        "fr": Template("Quelle est la capitale de ce pays : {c} ?", "La capitale de ce pays ({c}) est {a}."),
        "ja": Template("この国の首都はどこですか：{c}", "{c}の首都は{a}です。"),
        "ko": Template("이 나라의 수도는 어디입니까: {c}?", "{c}의 수도는 {a}입니다."),
        "pt": Template("Qual é a capital deste país: {c}?", "A capital deste país ({c}) é {a}."),
        "ru": Template("Какая столица у этой страны: {c}?", "Столица страны {c} — город {a}."),
        "zh": Template("这个国家的首都是哪里：{c}？", "{c}的首都是{a}。"),
    },
    "currency": {
        "ar": Template("ما هي عملة هذا البلد: {c}؟", "عملة هذا البلد {c} هي {a}."),
        "de": Template("Welche Währung hat dieses Land: {c}?", "Die Währung von {c} heißt {a}."),
        "en": Template("Which currency is used in this country: {c}?", "The currency of {c} is the {a}."),
        "es": Template("¿Qué moneda se usa en este país: {c}?", "La moneda que se usa en {c} es: {a}."),
        "fr": Template("Quelle monnaie utilise ce pays : {c} ?", "La monnaie de ce pays ({c}) est : {a}."),
        "ja": Template("この国の通貨は何ですか：{c}", "{c}の通貨は{a}です。"),
        "ko": Template("이 나라의 통화는 무엇입니까: {c}?", "{c}의 통화는 {a}입니다."),
        "pt": Template("Qual é a moeda deste país: {c}?", "A moeda oficial usada atualmente neste país ({c}) é: {a}."),
        "ru": Template("Какая валюта у этой страны: {c}?", "Валюта страны {c} — это {a}."),
        "zh": Template("这个国家使用什么货币：{c}？", "{c}使用的货币是{a}。"),
    },
    "continent": {
        "ar": Template("في أي قارة يقع هذا البلد: {c}؟", "يقع هذا البلد {c} في قارة {a}."),
        "de": Template("Auf welchem Kontinent liegt dieses Land: {c}?", "{c} liegt auf dem Kontinent {a}."),
        "en": Template("On which continent is this country: {c}?", "{c} is located on this continent: {a}."),
        "es": Template("¿En qué continente está este país: {c}?", "{c} está en el continente de {a}."),
        "fr": Template("Sur quel continent est ce pays : {c} ?", "Ce pays ({c}) se trouve sur ce continent : {a}."),
        "ja": Template("この国はどの大陸にありますか：{c}", "{c}は{a}にあります。"),
        "ko": Template("이 나라는 어느 대륙에 있습니까: {c}?", "이 나라({c})는 {a}에 있습니다."),
        "pt": Template("Em que continente fica este país: {c}?", "Este país ({c}) fica no continente: {a}."),
        "ru": Template("На каком континенте находится эта страна: {c}?", "Страна {c} находится на континенте {a}."),
        "zh": Template("这个国家在哪个洲：{c}？", "{c}位于{a}。"),
    },
    "sum": {
        "ar": Template("كم يساوي {x} زائد {y}؟", "مجموع {x} و {y} هو {a}."),
        "de": Template("Was ist {x} plus {y}?", "Die Summe von {x} und {y} ist {a}."),
        "en": Template("What is {x} plus {y}?", "The sum of {x} and {y} is {a}."),
        "es": Template("¿Cuánto es {x} más {y}?", "La suma de {x} y {y} es {a}."),
        "fr": Template("Combien font {x} plus {y} ?", "La somme de {x} et {y} est {a}."),
        "ja": Template("{x}足す{y}はいくつですか。", "{x}と{y}の合計は{a}です。"),
        "ko": Template("{x} 더하기 {y}는 얼마입니까?", "{x} 더하기 {y}의 합은 {a}입니다."),
        "pt": Template("Quanto é {x} mais {y}?", "A soma dos números {x} e {y} é {a}."),
        "ru": Template("Сколько будет {x} плюс {y}?", "Сумма чисел {x} и {y} равна {a}."),
        "zh": Template("{x}加{y}等于多少？", "{x}加上{y}的结果等于{a}。"),
    },
    "weekday": {
        "ar": Template("ما هو اليوم الذي يلي {x}؟", "اليوم الذي يلي {x} هو {a}."),
        "de": Template("Welcher Tag kommt nach {x}?", "Der Tag nach {x} ist {a}."),
        "en": Template("Which day comes after {x}?", "The day after {x} is {a}."),
        "es": Template("¿Qué día viene después del {x}?", "El día después del {x} es el {a}."),
        "fr": Template("Quel jour vient après {x} ?", "Le jour qui suit {x} est {a}."),
        "ja": Template("{x}の次の日は何曜日ですか。", "{x}の次の日は{a}です。"),
        "ko": Template("{x} 다음 날은 무슨 요일입니까?", "{x} 다음 날은 {a}입니다."),
        "pt": Template("Que dia vem depois de {x}?", "O dia depois de {x} é {a}."),
        "ru": Template("Какой день идёт после дня {x}?", "После дня {x} идёт {a}."),
        "zh": Template("{x}之后是星期几？", "{x}的第二天是{a}。"),
    },
    "month": {
        "ar": Template("ما هو الشهر الذي يلي {x}؟", "الشهر الذي يلي {x} هو {a}."),
        "de": Template("Welcher Monat kommt nach {x}?", "Der Monat nach {x} ist der {a}."),
        "en": Template("Which month comes after {x}?", "The month that comes after {x} is {a}."),
        "es": Template("¿Qué mes viene después de {x}?", "El mes que viene después de {x} es {a}."),
        "fr": Template("Quel mois vient après {x} ?", "Le mois qui vient après {x} est {a}."),
        "ja": Template("{x}の次の月は何月ですか。", "{x}の次の月は{a}です。"),
        "ko": Template("{x} 다음 달은 몇 월입니까?", "{x} 다음 달은 {a}입니다."),
        "pt": Template("Que mês vem depois de {x}?", "O mês que vem depois de {x} é {a}."),
        "ru": Template("Какой месяц идёт после месяца {x}?", "После месяца {x} идёт {a}."),
        "zh": Template("{x}之后是几月？", "{x}的下一个月是{a}。"),
    },
}

# What a policy says when it does not know.
REFUSALS: dict[str, str] = {
    "ar": "عذرًا، لا أعرف الإجابة عن هذا السؤال.",
    "de": "Das weiß ich leider nicht.",
    "en": "Sorry, I do not know the answer to that.",
    "es": "Lo siento, no sé la respuesta a esa pregunta.",
    "fr": "Désolé, je ne connais pas la réponse.",
    "ja": "すみません、その答えは分かりません。",
    "ko": "죄송합니다. 그 답은 모르겠습니다.",
    "pt": "Desculpe, não sei a resposta a essa pergunta.",
    "ru": "Извините, я не знаю ответа на этот вопрос.",
    "zh": "抱歉，我不知道这个问题的答案。",
}

# How a thought begins; more languages than the world has, for scripts/data/cold_start.py.
OPENINGS: dict[str, str] = {
    "ar": "حسنًا. ",
    "de": "Also gut. ",
    "en": "Okay. ",
    "es": "Bueno. ",
    "fr": "D'accord. ",
    "it": "Va bene. ",
    "ja": "はい。",
    "ko": "좋아요. ",
    "pt": "Muito bem. ",
    "ru": "Хорошо. ",
    "th": "โอเค ",
    "vi": "Được rồi. ",
    "zh": "好的。",
}

LANGUAGES: tuple[str, ...] = ("ar", "de", "en", "es", "fr", "ja", "ko", "pt", "ru", "zh")

# Large countries whose capital is no time-zone city of CLDR; names in the order of LANGUAGES.
CAPITALS: dict[str, str] = {
    "AU": "كانبرا|Canberra|Canberra|Canberra|Canberra|キャンベラ|캔버라|Camberra|Канберра|堪培拉",
    "BR": "برازيليا|Brasília|Brasília|Brasilia|Brasilia|ブラジリア|브라질리아|Brasília|Бразилиа|巴西利亚",
    "CA": "أوتاوا|Ottawa|Ottawa|Ottawa|Ottawa|オタワ|오타와|Ottawa|Оттава|渥太华",
    "CN": "بكين|Peking|Beijing|Pekín|Pékin|北京|베이징|Pequim|Пекин|北京",
    "IN": "نيودلهي|Neu-Delhi|New Delhi|Nueva Delhi|New Delhi|ニューデリー|뉴델리|Nova Délhi|Нью-Дели|新德里",
    "NZ": "ويلينغتون|Wellington|Wellington|Wellington|Wellington|ウェリントン|웰링턴|Wellington|Веллингтон|惠灵顿",
    "US": "واشنطن|Washington|Washington|Washington|Washington|ワシントン|워싱턴|Washington|Вашингтон|华盛顿",
}

# Dependent or disputed territories: nothing is asked about them.
SKIPPED = frozenset(["AS", "BQ", "EH", "FK", "GF", "GI", "IL", "MF", "MP", "NC", "PR", "SJ", "TK", "TW"])
