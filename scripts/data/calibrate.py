"""Measures how similar an embedder finds texts in each pair of languages: the file ``reward.calibration`` names.

    python -m scripts.data.calibrate --parallel texts.parquet --out pairs.csv [--columns id,article,language,text]
    python -m scripts.data.calibrate --references train.parquet --translate URL --model NAME --languages de,en --out ...

``texts.parquet`` has the columns ``id``, ``article``, ``language`` (code or English name) and ``text``, or those that
``--columns`` names in this order. Texts of one id mean the same; texts of different articles do not. The second form
translates the references of a data set (questions of any form that scripts.data.prepare takes, with its ``--columns``
and ``--language``) through an OpenAI-compatible endpoint, and keeps the texts in ``*.parallel.parquet``; a text that is
not in its language is left out.

Of each unordered pair of languages it takes three kinds of text pairs: *equivalent* (one id), *mismatched* (a text and
10 random ones of other articles) and *hard* (a text and the 2 most similar ones of other ids). It writes

* the CSV of the LRPO reference, from the equivalent pairs;
* ``*.quantiles.json``: quantiles of each kind, and of the three pooled in the proportions 1 : 10 : 2;
* ``*.json``: mean calibrated similarity of equivalent and mismatched texts, which help to choose
  ``reward.similarity_range``, how well each calibration mode does on texts that it was not measured on, and the
  dtype that the embedder computed in, which the reward process compares with its own;
* ``*.html``: the same with plots and bootstrap intervals, and the pairs with too few texts.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from common.languages import code_of
from common.process import FatalError
from learner.data.rows import Rules
from reward.calibration.files import KINDS, MEASURED_IN, quantile_path, summary_path
from reward.calibration.formulas import Calibration
from reward.embedder import Embedder, EmbedderDtype
from scripts.data.calibration_modes import calibrated, judge
from scripts.data.calibration_report import report
from scripts.data.parallel_texts import Texts, halves, read_parallel, translate_references
from scripts.data.prepare import pairs
from scripts.data.similarity_samples import pair_statistics, quantiles, sample_pairs
from scripts.data.tables import name_problem
from scripts.ops.command_line import command

_LEAST = 20  # equivalent texts below which a pair is said to have too little data
_COLUMNS = "id,article,language,text"


def calibrate(parallel: dict[str, Texts], embedder: Embedder, out: Path, seed: int) -> None:
    """Measures the text pairs of all pairs of languages, judges the calibration modes, and writes all files."""
    parallel = {code: replace(texts, vectors=embedder.embed(texts.texts)) for code, texts in parallel.items()}
    samples = sample_pairs(parallel, seed)
    statistics, tables = pair_statistics(samples), quantiles(samples)
    measured, held = (sample_pairs(half, seed) for half in halves(parallel, seed))
    modes = judge(held, measured, seed)
    mean = Calibration("mean", statistics)
    level = {
        kind: float(np.mean(np.concatenate([calibrated(s.similarities[kind], p, mean) for p, s in samples.items()])))
        for kind in KINDS
    }
    scanty = [pair for pair, level in statistics.levels.items() if level.count < _LEAST]
    missing = [p for p in combinations_with_replacement(sorted(parallel), 2) if p not in samples]
    out.parent.mkdir(parents=True, exist_ok=True)
    statistics.write(out)
    tables.write(quantile_path(out))
    found: dict[str, Any] = {kind: 2 * value - 1 for kind, value in level.items()} | {"retained pairs": len(samples)}
    found[MEASURED_IN] = embedder.dtype
    found["modes"] = {mode: asdict(result) for mode, result in modes.items()}
    summary_path(out).write_text(json.dumps(found, indent=2) + "\n")
    equivalent = {pair: (sample.similarities["equivalent"], tables.tables[pair]) for pair, sample in samples.items()}
    html = report(equivalent, modes, [*scanty, *missing], _LEAST, seed)
    out.with_suffix(".html").write_text(html, encoding="utf-8")
    print(f"{out}: {len(samples)} pairs of {len(parallel)} languages, mean {statistics.mean:.4f}")
    print(f"calibrated similarity: equivalent {found['equivalent']:.3f}, mismatched {found['mismatched']:.3f}")
    for mode, result in modes.items():
        print(f"  {mode:<9} {result}")
    if scanty or missing:
        print(f"too little data (fewer than {_LEAST} texts): " + ", ".join("-".join(p) for p in [*scanty, *missing]))


@command(ValueError)
def main(
    *,
    parallel: Annotated[Path | None, typer.Option(help="Parquet file of parallel texts.")] = None,
    references: Annotated[str, typer.Option(help="Training questions, whose references are translated.")] = "",
    columns: Annotated[
        str,
        typer.Option(
            help=f"Columns of --parallel in this order, {_COLUMNS} by default; of --references OURS=THEIRS,... as for "
            "scripts.data.prepare."
        ),
    ] = "",
    language: Annotated[str, typer.Option(help="Language of the --references that do not name one.")] = "",
    translate: Annotated[
        str, typer.Option(metavar="URL", help="OpenAI-compatible endpoint, up to /v1; key in OPENAI_API_KEY.")
    ] = "",
    model: Annotated[str, typer.Option(help="Name of the endpoint's model: 'default' unless given.")] = "",
    languages: Annotated[str, typer.Option(help="Languages to translate into, separated by commas.")] = "",
    out: Annotated[Path, typer.Option(help="CSV file to write; the other files go beside it.")],
    embedder: Annotated[str, typer.Option(help="As reward.embedder.")] = "use",
    device: Annotated[str, typer.Option(help="As reward.device.")] = "auto",
    dtype: Annotated[EmbedderDtype, typer.Option(help="As reward.embedder_dtype.")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Seed of mismatched pairs, halves and resamples.")] = 0,
) -> None:
    if problem := name_problem(out, ".csv"):
        raise FatalError(f"--out: {problem}")
    if embedder == "use" and dtype == "bfloat16":
        raise FatalError('--dtype bfloat16: the embedder "use" computes in float32; leave it out or name another one')
    if parallel is not None and not references:
        of_references = {"--language": language, "--languages": languages, "--translate": translate, "--model": model}
        if useless := [flag for flag, value in of_references.items() if value]:
            raise FatalError(
                f"{', '.join(useless)}: of --references, whose texts are translated. --parallel has a column of "
                "languages, and all of them are measured"
            )
        texts = read_parallel(parallel, columns or _COLUMNS)
    elif references and parallel is None:
        if not (translate and languages):
            raise FatalError("--references needs --translate URL and --languages")
        path = out.with_suffix(".parallel.parquet")
        codes = [code_of(name) for name in languages.split(",")]
        rules = Rules(pairs(columns), language)
        translate_references(references, rules, translate, model or "default", codes, path)
        texts = read_parallel(path, _COLUMNS)
    else:
        raise FatalError("give either --parallel or --references")
    calibrate(texts, Embedder(embedder, device, dtype=dtype), out, seed)


if __name__ == "__main__":
    main()
