"""The facts of the offline world, with their questions and right answers in every language.

Names of countries, cities, currencies, days and months come from CLDR (babel), number words from unicode-rbnf.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from babel import Locale
from babel.numbers import get_currency_name
from unicode_rbnf import RbnfEngine

from reward.gate import LanguageGate
from scripts.world.templates import CAPITALS, LANGUAGES, SKIPPED, TEMPLATES

TOPICS = {
    "capital": "Regional Knowledge",
    "currency": "Regional Knowledge",
    "continent": "General Knowledge",
    "weekday": "General Knowledge",
    "month": "General Knowledge",
    "sum": "Reasoning / Logic",
}
# Languages in which a fact is surely known, by its region and by its topic.
REGION_AFFINITY = {
    "Africa": ("en", "fr"),
    "Anglosphere": ("en", "es"),
    "Arab World": ("ar", "fr"),
    "Asia": ("ja", "ko", "zh"),
    "Europe": ("de", "fr", "ru"),
    "Latin America": ("es", "pt"),
}
TOPIC_AFFINITY = {"General Knowledge": ("de", "ko", "pt"), "Reasoning / Logic": ("ar", "ja", "ru", "zh")}
_CONTINENTS = {"AF": "002", "AS": "142", "EU": "150", "NA": "003", "SA": "005", "OC": "009"}  # UN M.49, as in CLDR
_LATIN_SCRIPT = frozenset({"de", "en", "es", "fr", "pt"})
Names = dict[str, str]  # by language


@dataclasses.dataclass(frozen=True)
class Fact:
    """One fact, with its question and its answer in every language."""

    id: str  # "capital-JP"
    kind: str  # a key of TOPICS
    region: str | None
    questions: Names
    references: Names  # full sentences
    answers: Names  # what a right answer must contain

    @property
    def topic(self) -> str:
        return TOPICS[self.kind]

    @property
    def strong(self) -> set[str]:
        """The languages in which it is surely known."""
        return {*REGION_AFFINITY.get(self.region or "", ()), *TOPIC_AFFINITY.get(self.topic, ())}


def facts(countries: Mapping[str, Mapping[str, Any]], gate: LanguageGate) -> list[Fact]:
    """Every fact whose references are all taken for exactly their languages, each as a whole.

    This is not the rule by which the gate judges an answer, which also takes near languages and allows names; another
    rule would make other worlds of the same seeds.

    Args:
        countries: by ISO code, as the package ``countries-list`` has them.
    """
    locales = {language: Locale.parse(language) for language in LANGUAGES}
    made = [*_country_facts(countries, locales), *_calendar_facts(locales), *_sum_facts()]
    return [fact for fact in made if gate.detect(list(fact.references.values())) == list(fact.references)]


def region_of(country: Mapping[str, Any]) -> str | None:
    """The region of a country, by its continent and its languages, the main one first; None where no region fits."""
    continent, languages = country["continent"], country["languages"]
    if languages[0] == "ar":
        return "Arab World"
    if continent in ("NA", "SA") and languages[0] in ("es", "pt"):
        return "Latin America"
    if "en" in languages and continent not in ("AF", "AS"):
        return "Anglosphere"
    if "EU" in country.get("continents", [continent]):
        return "Europe"
    return {"AF": "Africa", "AS": "Asia"}.get(continent)


def _country_facts(countries: Mapping[str, Mapping[str, Any]], locales: Mapping[str, Locale]) -> Iterable[Fact]:
    cities = _city_names(locales)
    for code, country in sorted(countries.items()):
        region = region_of(country) if country["languages"] else None
        if region is None or "partOf" in country or code in SKIPPED:
            continue
        capital = cities.get(_plain_name(country["capital"]))
        if code in CAPITALS:
            capital = dict(zip(LANGUAGES, CAPITALS[code].split("|"), strict=True))
        if capital is None:
            continue
        names = {lang: locales[lang].territories[code] for lang in LANGUAGES}
        if capital["en"] != names["en"]:  # the capital of Monaco would answer itself
            yield _make_fact("capital", code, region, capital, c=names)
        if len(country["currency"]) == 1:
            currency = {lang: get_currency_name(country["currency"][0], locale=lang) for lang in LANGUAGES}
            yield _make_fact("currency", code, region, currency, c=names)
        if "continents" not in country:
            territory = _CONTINENTS[country["continent"]]
            continent = {lang: locales[lang].territories[territory] for lang in LANGUAGES}
            yield _make_fact("continent", code, region, continent, c=names)


def _city_names(locales: Mapping[str, Locale]) -> dict[str, Names]:
    """Names of the time-zone cities that CLDR has in every language, by their plain English name."""
    cities: dict[str, Names] = {}
    for zone in sorted(locales["ar"].time_zones):
        english = zone.split("/")[-1].replace("_", " ")
        names = {lang: locales[lang].time_zones.get(zone, {}).get("city") for lang in LANGUAGES}
        named = {lang: name or english for lang, name in names.items() if name or lang in _LATIN_SCRIPT}
        if len(named) == len(LANGUAGES):
            cities[_plain_name(named["en"])] = cities[_plain_name(english)] = named
    return cities


def _plain_name(name: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFD", name) if not unicodedata.combining(c)).lower()


def _calendar_facts(locales: Mapping[str, Locale]) -> Iterable[Fact]:
    for kind, numbers in (("weekday", range(7)), ("month", range(1, 13))):
        names = {}
        for lang, locale in locales.items():
            calendar = locale.days if kind == "weekday" else locale.months
            names[lang] = calendar["stand-alone"]["wide"]
        for number, following in zip(numbers, [*numbers[1:], numbers[0]], strict=True):
            today, after = ({lang: names[lang][n] for lang in LANGUAGES} for n in (number, following))
            yield _make_fact(kind, str(number), None, after, x=today)


def _sum_facts() -> Iterable[Fact]:
    engines = {lang: RbnfEngine.for_language(lang) for lang in LANGUAGES}

    def words(number: int) -> Names:
        texts = {lang: engine.format_number(number).text for lang, engine in engines.items()}
        return {lang: text.replace("\u200b", "").replace("\u00ad", "") for lang, text in texts.items()}

    for x in range(2, 13):
        for y in range(2, 13):
            yield _make_fact("sum", f"{x}-{y}", None, words(x + y), x=words(x), y=words(y))


def _make_fact(kind: str, key: str, region: str | None, answer: Names, **slots: Names) -> Fact:
    def fill(text: str, lang: str) -> str:
        filled = text.format(a=answer[lang], **{slot: names[lang] for slot, names in slots.items()})
        return unicodedata.normalize("NFC", filled)

    templates = TEMPLATES[kind]
    questions = {lang: fill(templates[lang].question, lang) for lang in LANGUAGES}
    references = {lang: fill(templates[lang].answer, lang) for lang in LANGUAGES}
    return Fact(f"{kind}-{key}", kind, region, questions, references, answer)
