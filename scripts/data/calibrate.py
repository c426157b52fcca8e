"""Measures how similar an embedder finds texts in each pair of languages: the file ``reward.calibration`` names.

    python -m scripts.data.calibrate --parallel texts.parquet --out pairs.csv [--columns id,article,language,text]
    python -m scripts.data.calibrate --references train.parquet --translate URL --model NAME --languages de,en --out ...

``texts.parquet`` has the columns ``id``, ``article``, ``language`` (code or English name) and ``text``, or those that
``--columns`` names in this order. Texts of one id mean the same; texts of different articles do not. The second form
translates the references of a data set (rows as in ``learner/work/questions.py``) through an OpenAI-compatible
endpoint, and keeps the texts in ``*.parallel.parquet``; what is no text of its language is left out.

Of each unordered pair of languages it takes three kinds of text pairs: *equivalent* (one id), *mismatched* (a text and
10 random ones of other articles) and *hard* (a text and the 2 most similar ones of other ids). It writes

* the CSV of the LRPO reference, from the equivalent pairs;
* ``*.quantiles.json``: quantiles of each kind, and of the three pooled;
* ``*.json``: mean calibrated similarity of equivalent and mismatched texts, which help to choose
  ``reward.similarity_range``, and how each calibration mode does on texts it was not measured on;
* ``*.html``: the same with plots and bootstrap intervals, and the pairs with too few texts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from common.languages import code_of
from common.process import FatalError
from learner.work.questions import read_table
from reward.calibration.files import KINDS, Level, Pair, PairStatistics, Quantiles, quantile_path
from reward.calibration.formulas import Calibration, Mode
from reward.embedder import Embedder, Vectors
from reward.gate import LanguageGate
from scripts.command import plain_errors
from scripts.data.calibration_report import ModeResult, interval, report
from scripts.data.endpoint import Failure, translated
from scripts.data.prepare import write

MISMATCHES, HARD = 10, 2  # of each text
LEAST = 20  # equivalent texts below which a pair is said to have too little data
_SHARES = np.linspace(0, 1, 41)
_RESAMPLES = 500

Floats = NDArray[np.float64]
_NONE: Vectors = np.empty((0, 0), np.float32)


@dataclass(frozen=True)
class Texts:
    """The texts of one language."""

    ids: NDArray[np.int64]  # [n], no id twice
    articles: NDArray[np.int64]  # [n]
    texts: list[str]
    vectors: Vectors  # [n, dimension], rows of length 1; empty until embedded

    def part(self, rows: NDArray[np.intp]) -> Texts:
        texts = [self.texts[row] for row in rows]
        return Texts(self.ids[rows], self.articles[rows], texts, self.vectors[rows] if len(self.vectors) else _NONE)


@dataclass(frozen=True)
class Sample:
    """Similarities of the text pairs of one pair of languages, and the id of the text each was drawn for; by kind."""

    similarities: Mapping[str, Floats]
    ids: Mapping[str, NDArray[np.int64]]


Samples = dict[Pair, Sample]


def read_parallel(path: Path, columns: str = "id,article,language,text") -> dict[str, Texts]:
    """The texts by language code.

    Raises:
        FatalError: the file cannot be read, lacks a column, or has an unknown language or an id twice in one.
    """
    try:
        of_id, of_article, of_language, of_text = columns.split(",")
        table = read_table(str(path))
        codes = np.array([code_of(name) for name in table[of_language].to_pylist()])
        ids, articles = (np.unique(table[name].to_pylist(), return_inverse=True)[1] for name in (of_id, of_article))
    except (ValueError, TypeError, KeyError) as error:
        raise FatalError(f"cannot read parallel texts {path} (columns {columns}): {error}") from None
    every = Texts(ids, articles, table[of_text].to_pylist(), _NONE)
    parallel: dict[str, Texts] = {}
    for code in sorted(set(codes.tolist())):
        rows = np.flatnonzero(codes == code)
        if len(np.unique(ids[rows])) < len(rows):
            raise FatalError(f"{path}: an id occurs twice among the texts in {code!r}")
        parallel[code] = every.part(rows)
    return parallel


def sample_pairs(parallel: Mapping[str, Texts], seed: int = 0) -> Samples:
    """The three kinds of text pairs of each unordered pair of languages with an id in common.

    On the diagonal the equivalent pairs follow from the same rule: a text and itself, similarity 1. That is the level
    of an answer that equals its reference, and calibration brings it to the common one as it does that of every other
    pair. Without it, answers in the reference's own language would stay above the rest, the wrong ones too.
    """
    random = np.random.default_rng(seed)
    samples: Samples = {}
    for pair in combinations_with_replacement(sorted(parallel), 2):
        first, second = (parallel[language] for language in pair)
        cosines = (first.vectors.astype(np.float64) @ second.vectors.T.astype(np.float64)).clip(-1, 1)
        rows, columns = np.nonzero(first.ids[:, None] == second.ids)
        if not len(rows):
            continue
        found: dict[str, list[tuple[int, float]]] = {kind: [] for kind in KINDS}
        found["equivalent"] = [(first.ids[r], cosines[r, c]) for r, c in zip(rows, columns, strict=True)]
        sides = [(first, second, cosines), (second, first, cosines.T)][: 1 if pair[0] == pair[1] else 2]
        for texts, others, table in sides:  # each text of either language is a reference once
            for row, (id, article) in enumerate(zip(texts.ids, texts.articles, strict=True)):
                wrong = np.flatnonzero(others.articles != article)
                drawn = random.choice(wrong, min(MISMATCHES, len(wrong)), replace=False)
                near = np.where(others.ids == id, -2.0, table[row])
                hard = np.argsort(near)[max(len(near) - HARD, 0) :]
                found["mismatched"] += [(id, table[row, column]) for column in drawn]
                found["hard"] += [(id, table[row, column]) for column in hard if near[column] > -2]
        samples[pair] = Sample(
            {kind: np.array([value for _, value in entries], np.float64) for kind, entries in found.items()},
            {kind: np.array([id for id, _ in entries], np.int64) for kind, entries in found.items()},
        )
    return samples


def pair_statistics(samples: Samples) -> PairStatistics:
    """Count, mean and standard deviation (0 for a single text) of the equivalent pairs."""
    levels = {}
    for pair, sample in samples.items():
        values = sample.similarities["equivalent"]
        levels[pair] = Level(len(values), float(values.mean()), float(values.std(ddof=len(values) > 1)))
    return PairStatistics(levels)


def quantiles(samples: Samples) -> Quantiles:
    """Of each kind that a pair has, and of all its text pairs pooled."""
    tables = {}
    for pair, sample in samples.items():
        kinds = {kind: values for kind, values in sample.similarities.items() if len(values)}
        every = {"all": np.concatenate(list(kinds.values())), **kinds}
        tables[pair] = {kind: np.quantile(values, _SHARES) for kind, values in every.items()}
    return Quantiles(_SHARES, tables, {})


def halves(parallel: Mapping[str, Texts], seed: int) -> list[dict[str, Texts]]:
    """Two halves of the ids, at random: one to measure on, one to be judged on."""
    ids = np.unique(np.concatenate([texts.ids for texts in parallel.values()]))
    chosen = np.random.default_rng(seed).permutation(ids)[: len(ids) // 2]
    return [
        {
            language: texts.part(rows)
            for language, texts in parallel.items()
            if len(rows := np.flatnonzero(np.isin(texts.ids, chosen) == inside))
        }
        for inside in (True, False)
    ]


def judge(samples: Samples, measured: Samples, seed: int = 0) -> dict[str, ModeResult]:
    """Each calibration mode, measured on one set of texts, on another one, over pairs of different languages.

    The spread is the standard deviation over pairs of the mean quality of equivalent texts; the AUC is the probability
    that an equivalent text pair is worth more than a hard one, both drawn from all pairs. Intervals resample ids.
    """
    pairs = [pair for pair in samples if pair in measured and pair[0] != pair[1]]
    ids = np.unique(np.concatenate([samples[pair].ids["equivalent"] for pair in pairs])) if pairs else np.empty(0)
    draws = np.random.default_rng(seed).multinomial(len(ids), np.full(len(ids), 1 / max(len(ids), 1)), _RESAMPLES)
    weights = np.concatenate([np.ones((1, len(ids))), draws])  # first as it is, then resampled: [1 + resamples, ids]
    results: dict[str, ModeResult] = {}
    for mode in get_args(Mode) if len(ids) > 1 else ():
        calibrate = Calibration(mode, pair_statistics(measured), quantiles(measured))
        values = {k: [_calibrated(samples[pair].similarities[k], pair, calibrate) for pair in pairs] for k in KINDS}
        at = {k: [np.searchsorted(ids, samples[pair].ids[k]).clip(0, len(ids) - 1) for pair in pairs] for k in KINDS}
        means = np.stack(
            [_means(v, weights[:, a]) for v, a in zip(values["equivalent"], at["equivalent"], strict=True)]
        )
        good, bad = (np.concatenate(values[kind]) for kind in ("equivalent", "hard"))
        good_at, bad_at = (np.concatenate(at[kind]) for kind in ("equivalent", "hard"))
        aucs = [auc(good, bad, one[good_at], one[bad_at]) for one in weights[:101]]  # dearer than the means
        apart = float(good.mean() - np.concatenate(values["mismatched"]).mean())
        spreads = np.nanstd(means, axis=0)
        results[mode] = ModeResult(interval(spreads), interval(aucs), spreads[0] / apart, apart)
    return results


def _calibrated(similarities: Floats, pair: Pair, calibrate: Calibration) -> Floats:
    return np.array([calibrate(similarity, *pair) for similarity in similarities])


def _means(values: Floats, weights: Floats) -> Floats:
    total = weights.sum(1)
    return np.where(total > 0, weights @ values / np.maximum(total, 1), np.nan)


def auc(good: Floats, bad: Floats, good_weights: Floats, bad_weights: Floats) -> float:
    """P(good > bad) + P(good = bad) / 2 for weighted samples."""
    order = np.argsort(bad)
    below = np.concatenate([[0.0], np.cumsum(bad_weights[order])])
    left, right = (below[np.searchsorted(bad[order], good, side)] for side in ("left", "right"))
    total = good_weights.sum() * bad_weights.sum()
    return float((good_weights * (left + right)).sum() / 2 / total) if total else float("nan")


# -- translated references --------------------------------------------------------------------------------------------


def translate(references: Path, url: str, model: str, languages: list[str], out: Path) -> None:
    """Writes the references and their translations as parallel texts.

    Raises:
        FatalError: the references cannot be read, or no translation was usable.
    """
    try:
        rows = read_table(str(references)).to_pylist()
        sources = {row["reward_model"]["ground_truth"]: code_of(row["extra_info"]["language"]) for row in rows}
    except (KeyError, TypeError, ValueError) as error:
        raise FatalError(f"cannot read references {references}: {error!r}") from None
    wanted = [
        {"id": id, "article": id, "language": language, "text": text, "translated": language != source}
        for id, (text, source) in enumerate(sources.items())
        for language in dict.fromkeys([source, *languages])
    ]
    asked = [row for row in wanted if row["translated"]]
    texts = [(row["text"], row["language"]) for row in asked]
    answers = translated(f"{model}@{url}", out.with_suffix(".answers.jsonl"), texts)
    for row, answer in zip(asked, answers, strict=True):
        row["text"] = "" if isinstance(answer, Failure) else answer
    spoken = LanguageGate().detect([row["text"] for row in wanted])
    kept = [row for row, language in zip(wanted, spoken, strict=True) if language == row["language"]]
    print(f"{len(kept)} of {len(wanted)} texts are in their language")
    if not any(row["translated"] for row in kept):
        raise FatalError(f"{url} gave no translation in the language asked for")
    write(kept, out)


# -- command ----------------------------------------------------------------------------------------------------------


def calibrate(parallel: dict[str, Texts], embedder: Embedder, out: Path, seed: int) -> None:
    """Measures, judges and writes everything."""
    parallel = {code: replace(texts, vectors=embedder.embed(texts.texts)) for code, texts in parallel.items()}
    samples = sample_pairs(parallel, seed)
    statistics, tables = pair_statistics(samples), quantiles(samples)
    measured, held = (sample_pairs(half, seed) for half in halves(parallel, seed))
    modes = judge(held, measured, seed)
    mean = Calibration("mean", statistics)
    level = {
        kind: float(np.mean(np.concatenate([_calibrated(s.similarities[kind], p, mean) for p, s in samples.items()])))
        for kind in KINDS
    }
    scanty = [pair for pair, level in statistics.levels.items() if level.count < LEAST]
    missing = [p for p in combinations_with_replacement(sorted(parallel), 2) if p not in samples]
    out.parent.mkdir(parents=True, exist_ok=True)
    statistics.write(out)
    tables.write(quantile_path(out))
    found: dict[str, Any] = {kind: 2 * value - 1 for kind, value in level.items()} | {"retained pairs": len(samples)}
    found["modes"] = {mode: asdict(result) for mode, result in modes.items()}
    out.with_suffix(".json").write_text(json.dumps(found, indent=2) + "\n")
    equivalent = {pair: (sample.similarities["equivalent"], tables.tables[pair]) for pair, sample in samples.items()}
    html = report(equivalent, modes, [*scanty, *missing], LEAST, seed)
    out.with_suffix(".html").write_text(html, encoding="utf-8")
    print(f"{out}: {len(samples)} pairs of {len(parallel)} languages, mean {statistics.mean:.4f}")
    print(f"calibrated similarity: equivalent {found['equivalent']:.3f}, mismatched {found['mismatched']:.3f}")
    for mode, result in modes.items():
        print(f"  {mode:<9} {result}")
    if scanty or missing:
        print(f"too little data (fewer than {LEAST} texts): " + ", ".join("-".join(p) for p in [*scanty, *missing]))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.data.calibrate", description=(__doc__ or "").partition("\n")[0]
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--parallel", type=Path, help="parquet file of parallel texts")
    source.add_argument("--references", type=Path, help="parquet file of training questions, to be translated")
    parser.add_argument("--columns", default="id,article,language,text", help="of --parallel, in this order")
    parser.add_argument("--translate", metavar="URL", help="OpenAI-compatible, up to /v1; key in OPENAI_API_KEY")
    parser.add_argument("--model", default="default", help="name of the endpoint's model")
    parser.add_argument("--languages", help="to translate into, with commas")
    parser.add_argument("--out", type=Path, required=True, help="CSV to write; the other files go beside it")
    parser.add_argument("--embedder", default="use", help="as reward.embedder")
    parser.add_argument("--device", default="auto", help="as reward.device")
    parser.add_argument("--seed", type=int, default=0, help="of mismatched pairs, halves and resamples")
    arguments = parser.parse_args()
    with plain_errors(ValueError):
        path: Path = arguments.parallel or arguments.out.with_suffix(".parallel.parquet")
        if arguments.references:
            if not (arguments.translate and arguments.languages):
                parser.error("--references needs --translate URL and --languages")
            languages = [code_of(name) for name in arguments.languages.split(",")]
            translate(arguments.references, arguments.translate, arguments.model, languages, path)
        parallel = read_parallel(path, arguments.columns if arguments.parallel else "id,article,language,text")
        calibrate(parallel, Embedder(arguments.embedder, arguments.device), arguments.out, arguments.seed)


if __name__ == "__main__":
    main()
