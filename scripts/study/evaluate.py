"""Scores a model on the benchmarks of the paper: one table, and every answer with its score in ``--out``.

    python -m scripts.study.evaluate MODEL --out scores.json --judge MODEL@URL \\
        --care-pro care_pro.jsonl --care care.parquet --mgsm mgsm.jsonl --lm-eval global_mmlu_zh,global_mmlu_es

MODEL is a run directory, a Hugging Face directory or hub name, for which an engine is started, or NAME@URL. Each prompt
is answered once, greedily. Files are of any form that scripts.data.prepare takes; of a data set of the hub the split
test is read where it has one and none is named (``owner/name@split``).

* CARE-pro: a judge calls each answer CORRECT, CORRECT_BUT_WRONG_LANGUAGE, INCORRECT or NOT_ATTEMPTED; CORRECT alone
  counts.
* CARE: a judge's 1 to 10, times ten.
* mGSM: the last number of the answer is the reference's.
* Tasks of lm-evaluation-harness (or of your own files, with ``--include-path``) are scored on the weights. Those of
  Global-MMLU-Lite (``global_mmlu_zh``) share the column G-MMLU-Lite, where every question weighs the same. Any other
  task has a column of its own: the harness has no INCLUDE-Lite, which ``lrpo bench`` has.

Intervals are 95%, from a bootstrap over questions. A question and its translations are one question if they have the
same id; where a set that asks the same in several languages has no ids, its interval is too narrow. Answers that no
judge could label are counted and left out.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from common.endpoint import FORM, Failure
from common.languages import code_of
from common.process import FatalError
from learner.data.rows import QuestionRow, Rules
from scripts.data.endpoint import Endpoint, EndpointOption
from scripts.data.prepare import pairs
from scripts.data.sources import read_whole
from scripts.ops.command_line import command
from scripts.study.grading import Item, ask_judge_first, grade
from scripts.study.harness import find_tasks, score_tasks
from scripts.study.score_table import summary, table
from scripts.study.served_model import Asking, answers, cache_file, served, text_of, told_styles

_SEEN = "zh,ja,ar,ko,es,fr,pt,de,ru,it,nl,vi,pl,id"  # languages of the paper's training data
Questions = Annotated[str, typer.Option(metavar="FILE", help="Questions with reference answers.")]


def seen_languages(given: str, run: Path | None) -> list[str]:
    """The codes of the languages of the training data, for which scores are reported apart.

    Args:
        given: names, separated by commas; empty: those of the run.
        run: whose model it is; None: it is of no run, and the languages are those of the paper's training data.
    """
    if given or run is None:
        return [code_of(name) for name in (given or _SEEN).split(",")]
    settings = json.loads((run / "config.json").read_text(encoding="utf-8"))
    return list(settings["run"]["languages"])


@command(ValueError, OSError)
def main(
    model: Annotated[str, typer.Argument(help="Run, Hugging Face directory or hub name, or NAME@URL.")],
    *,
    out: Annotated[
        Path, typer.Option(help="JSON file to write; answers, the judge's labels and the engine's log go beside it.")
    ],
    care_pro: Questions = "",
    care: Questions = "",
    mgsm: Questions = "",
    columns: Annotated[str, typer.Option(help="OURS=THEIRS,... as for scripts.data.prepare.")] = "",
    language: Annotated[str, typer.Option(help="Language of files that do not name one.")] = "",
    judge: EndpointOption = "",
    judge_tokens: Annotated[int, typer.Option(min=1, help="Longest judgement, in tokens.")] = 512,
    lm_eval: Annotated[str, typer.Option(metavar="TASK,...", help="Tasks of lm-evaluation-harness.")] = "",
    include_path: Annotated[Path | None, typer.Option(help="Directory of tasks, instead of the harness's own.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions of each task of the harness.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 1024,
    prompt_style: Annotated[
        Literal["auto", "tag", "system", "plain"],
        typer.Option(
            help="How the language is asked for; auto: as the run was trained; of other weights by a tag where the "
            "tokenizer has it, else plain."
        ),
    ] = "auto",
    opens_thought: Annotated[
        bool, typer.Option(help="Prompts end with <think>; of a model that is no NAME@URL the template tells it.")
    ] = False,
    seen: Annotated[
        str, typer.Option(help="Languages of the training data: by default those of the run, else of the paper's data.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON instead of the table.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Read options, files and tasks, and score nothing.")] = False,
) -> None:
    own = Path(model) / "model"
    weights = str(own) if (own / "config.json").exists() else model
    codes = seen_languages(seen, own.parent if weights == str(own) else None)
    rows: dict[str, list[QuestionRow]] = {}
    for name, source in {"CARE-pro": care_pro, "CARE": care, "mGSM": mgsm}.items():
        if source:
            if name != "mGSM" and not judge:
                raise FatalError(f"{name} needs --judge: {FORM}")
            rows[name] = read_whole(source, Rules(pairs(columns), language, splits=("test", "validation", "train")))
    if not (rows or lm_eval):
        raise FatalError("nothing to evaluate: give --care-pro, --care, --mgsm or --lm-eval")
    grader = Endpoint[str | int](judge, out.with_suffix(".judge.sqlite"), max_tokens=judge_tokens) if judge else None
    # What cannot be had ends the command here, and not after hours of answering.
    tasks = find_tasks(weights, [name.strip() for name in lm_eval.split(",")], include_path) if lm_eval else None
    if check:
        return
    items: dict[str, list[Item]] = {}
    styles: dict[str, str] = {}
    refused: dict[str, int] = {}
    cache: Path | None = None
    out.parent.mkdir(parents=True, exist_ok=True)
    if rows:
        for name, some in rows.items():
            if grader is not None and name != "mGSM":
                ask_judge_first(name, some, grader)
        ask = Asking(prompt_style, weights, own.parent)
        styles = ask.styles(row for some in rows.values() for row in some)
        cache, limits = cache_file(out, weights), {name: ask.limits(some, max_tokens) for name, some in rows.items()}
        with served(weights, own.parent, out.with_suffix(".engine.log")) as endpoint:
            said = {name: answers(some, endpoint, ask, limits[name], cache) for name, some in rows.items()}
        refused = {name: sum(isinstance(one, Failure) for one in some) for name, some in said.items()}
        opened = ask.opens_thought or opens_thought
        texts = {name: [text_of(one) for one in some] for name, some in said.items()}
        items = {name: grade(name, some, texts[name], grader, opened) for name, some in rows.items()}
    if tasks is not None:
        items |= score_tasks(tasks, limit)
    sets = {name: summary(some, codes) for name, some in items.items()}
    found = {"model": model, "seen": codes, "prompt_style": styles, "refused": refused, "sets": sets}
    every = {**found, "items": {name: [asdict(item) for item in some] for name, some in items.items()}}
    out.write_text(json.dumps(every, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if cache is not None and "@" in weights:  # another model may be behind it when it is evaluated again
        cache.unlink(missing_ok=True)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        print(f"{table(model, sets)}\nseen are {', '.join(codes)}{f'; {told_styles(styles)}' if styles else ''}")


if __name__ == "__main__":
    main()
