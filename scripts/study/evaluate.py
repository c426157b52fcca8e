"""Scores a model on the benchmarks of the paper: one table, and every answer with its score in ``--out``.

    python -m scripts.study.evaluate MODEL --out scores.json --judge MODEL@URL \\
        --care-pro care_pro.jsonl --care care.parquet --mgsm mgsm.jsonl --lm-eval global_mmlu_zh,include_base_44_chinese

MODEL is a run directory, a Hugging Face directory or hub name, for which an engine is started, or NAME@URL. Each prompt
is answered once, greedily. Files are of any form that scripts.data.prepare takes.

* CARE-pro: a judge calls each answer CORRECT, CORRECT_BUT_WRONG_LANGUAGE, INCORRECT or NOT_ATTEMPTED; CORRECT alone
  counts.
* CARE: a judge's 1 to 10, times ten.
* mGSM: the last number of the answer is the reference's.
* tasks of lm-evaluation-harness (``--include-path``: in files of your own instead of its own), on the weights.

Intervals are 95%, from a bootstrap over questions. Answers that no judge could label are counted and left out.
"""

from __future__ import annotations

import asyncio
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import aiohttp
import numpy as np

from actor.engine.client import EngineError
from actor.engine.server import EngineProcess
from actor.prompts import instructed, tagged
from common.config import load
from common.gpus import has_cuda
from common.languages import code_of, english_name, tag
from common.process import FatalError
from common.tokenizer import load_tokenizer
from reward.gate import LanguageGate
from scripts.command import parser, plain_errors
from scripts.data.calibration_report import mean_interval
from scripts.data.endpoint import FORM, Endpoint, Failure, Name, Talk, whole_number
from scripts.data.prepare import pairs
from scripts.data.sources import Report, Row, Rules, read

SEEN = "zh,ja,ar,ko,es,fr,pt,de,ru,it,nl,vi,pl,id"  # languages of the paper's training data
COLUMNS = ("CARE", "CARE-pro", "mGSM", "G-MMLU-Lite", "Include-Lite")  # in the order of the paper's table
_TASKS = {"global_mmlu": "G-MMLU-Lite", "include": "Include-Lite"}  # what the harness's tasks begin with
Questions = Annotated[str, "questions with reference answers", "FILE"]
LABELS = ("CORRECT", "CORRECT_BUT_WRONG_LANGUAGE", "INCORRECT", "NOT_ATTEMPTED")
_QUESTION = "Question:\n{question}\n\nReference answer:\n{reference}\n\nAnswer to grade:\n{answer}\n\n"
_CARE_PRO = (
    _QUESTION + "The answer was to be in {language}. Grade it by the reference, whatever you know yourself:\n"
    "CORRECT: it says what the reference says, contradicts none of it, and is in {language}.\n"
    "CORRECT_BUT_WRONG_LANGUAGE: as before, but it is not in {language}.\n"
    "INCORRECT: it contradicts the reference or leaves out what the question asks for.\n"
    "NOT_ATTEMPTED: it gives no answer, as when it does not know or refuses.\n"
    "Reply with one of the four labels and nothing else."
)
_CARE = (
    _QUESTION + "How good is the answer for somebody of the culture in question who asked in {language}? "
    "Weigh whether it is right by the reference, fits the culture, is helpful, and is in {language}. "
    "Reply with a whole number from 1 (useless) to 10 (perfect) and nothing else."
)


@dataclass(frozen=True)
class Item:
    """One answered question."""

    language: str  # "" where a task does not tell
    score: float | None  # in [0, 1]; None: the judge gave no usable label
    label: str
    answer: str
    compliant: bool | None  # the answer is in the question's language; None where it is a choice


def read_label(_: int, said: str) -> str:
    """
    Raises:
        ValueError: it names no label, or several.
    """
    found: list[str] = sorted(set(re.findall(r"\b[A-Z_]{7,}\b", said)).intersection(LABELS))
    if len(found) != 1:
        raise ValueError(f"it has to be one of {', '.join(LABELS)}")
    return found[0]


def last_number(text: str) -> float | None:
    """The last number of a text in digits of any script, with or without separators of thousands; None: no number."""
    plain = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)
    plain = plain.translate(str.maketrans("٬٫，", ",.,"))
    found = re.findall(r"[-−]?\d+(?:[., \u00a0\u202f]\d+)*", plain)
    if not found:
        return None
    number = found[-1].replace("−", "-")
    if re.fullmatch(r"-?[1-9]\d{0,2}(?:([., \u00a0\u202f])\d{3})(?:\1\d{3})*", number):
        return float(re.sub(r"[., \u00a0\u202f]", "", number))  # 1,000 or 1.000: none of the answers has three decimals
    number = number.rpartition(" ")[2].replace("\u00a0", "").replace("\u202f", "")
    whole, _, decimals = number.replace(",", ".").rpartition(".")
    return float(f"{whole.replace('.', '')}.{decimals}") if whole else float(decimals)


# -- answers ----------------------------------------------------------------------------------------------------------


@contextmanager
def served(model: str, run: Path, log: Path) -> Iterator[str]:
    """The model's name as ``NAME@URL``; of a directory or hub name while an engine of its own, as the run's, serves it.

    Raises:
        FatalError: the engine does not start.
    """
    if "@" in model:
        yield model
        return
    try:
        told = json.loads((run / "config.json").read_text()) if model == str(run / "model") else None
        config = load(["--model.path", model, "--actor.engine_args.skip_tokenizer_init", "false"], told)
        engine = EngineProcess(config, "evaluation", log)

        async def ready() -> None:
            async with aiohttp.ClientSession() as session:
                await engine.ready(session, config.actor.start_timeout_s)

        try:
            asyncio.run(ready())
            yield f"{model.replace('@', '-')}@{engine.url}/v1"
        finally:
            engine.stop()
    except EngineError as error:
        raise FatalError(f"no engine for {model}: {error}") from None


def styler(style: str, model: str) -> Callable[[Row], Talk]:
    """How a question is put: ``tag``, ``system``, ``plain``; ``auto`` is tag where the tokenizer has it, else plain."""
    encode = load_tokenizer(model).encode if style == "auto" and "@" not in model else None

    def ask(row: Row) -> Talk:
        known = encode is not None and len(encode(tag(row.language), add_special_tokens=False)) == 1
        if style == "tag" or known:
            return tagged(row.messages, row.language)
        return instructed(row.messages, row.language) if style == "system" else row.messages

    return ask


def answers(rows: Sequence[Row], endpoint: str, ask: Callable[[Row], Talk], max_tokens: int) -> list[str]:
    said = Endpoint[str](endpoint, max_tokens=max_tokens).ask([ask(row) for row in rows], lambda _, answer: answer)
    if refused := [one.reason for one in said if isinstance(one, Failure)]:
        print(f"{len(refused)} of {len(rows)} questions were refused, and count as not answered: {refused[0]}")
    return ["" if isinstance(one, Failure) else one for one in said]


def judged(name: str, rows: Sequence[Row], said: Sequence[str], judge: Endpoint[str | int] | None) -> list[Item]:
    spoken = LanguageGate().detect(list(said))
    labels: Sequence[str | int | Failure]
    if name == "mGSM":
        right = [last_number(answer) == last_number(row.reference) for row, answer in zip(rows, said, strict=True)]
        labels = ["CORRECT" if one else "INCORRECT" for one in right]
    else:
        assert judge is not None
        form, reading = (_CARE_PRO, read_label) if name == "CARE-pro" else (_CARE, whole_number(1, 10))
        talks = []
        for row, answer in zip(rows, said, strict=True):
            language = english_name(row.language).capitalize()
            shown = form.format(question=row.prompt, reference=row.reference, answer=answer, language=language)
            talks.append([{"role": "user", "content": shown}])
        labels = judge.ask(talks, reading)

    def score(label: str | int | Failure) -> float | None:
        if isinstance(label, Failure):
            return None
        return label / 10 if isinstance(label, int) else float(label == "CORRECT")

    return [
        Item(row.language, score(label), str(label), answer, compliant=language == row.language)
        for row, label, answer, language in zip(rows, labels, said, spoken, strict=True)
    ]


def harness(model: str, tasks: Sequence[str], include: Path | None, limit: int | None) -> dict[str, list[Item]]:
    """Items by column, of lm-evaluation-harness on the weights.

    Raises:
        FatalError: the model is no directory, or a task is not known.
    """
    if "@" in model:
        raise FatalError("--lm-eval compares the log-probabilities of choices: it needs the weights, not an endpoint")
    import lm_eval  # slow to import, and needed only here
    from lm_eval.tasks import TaskManager

    # Reading the thousands of tasks that come with it takes it a quarter of a minute.
    manager = TaskManager(include_path=str(include) if include else None, include_defaults=include is None)
    if unknown := [task for task in tasks if task not in manager.all_tasks]:
        raise FatalError(f"--lm-eval: no task {unknown[0]!r}; --include-path names a directory with others")
    found = lm_eval.simple_evaluate(
        "hf",
        {"pretrained": model},
        list(tasks),
        limit=limit,
        task_manager=manager,
        bootstrap_iters=0,
        batch_size=8,
        device="cuda" if has_cuda() else "cpu",
    )
    items: dict[str, list[Item]] = {}
    for task, samples in (found or {})["samples"].items():
        column = next((name for prefix, name in _TASKS.items() if task.startswith(prefix)), task)
        for sample in samples:
            score = next(float(sample[metric]) for metric in ("acc", "exact_match") if metric in sample)
            item = Item(_language(task), score, str(score), str(sample["filtered_resps"])[:200], None)
            items.setdefault(column, []).append(item)
    return items


def _language(task: str) -> str:
    for part in task.split("_"):
        with suppress(ValueError):
            return code_of(part)
    return ""


# -- results ----------------------------------------------------------------------------------------------------------


def summary(items: Sequence[Item], seen: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Percentages: mean with its interval, of seen and unseen languages, by language, and in the right language."""
    scored = [item for item in items if item.score is not None]

    def mean(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return 100 * float(np.mean(known)) if known else None

    interval = mean_interval(np.array([100 * (i.score or 0) for i in scored]), np.random.default_rng(seed))
    languages = sorted({item.language for item in scored})
    return {
        **dict(zip(("mean", "low", "high"), interval, strict=True)),
        "questions": len(items),
        "unjudged": len(items) - len(scored),
        "seen": mean(item.score for item in scored if item.language in seen),
        "unseen": mean(item.score for item in scored if item.language not in seen),
        "by_language": {one: mean(item.score for item in scored if item.language == one) for one in languages},
        "compliance": mean(item.compliant for item in items),
    }


def table(model: str, sets: dict[str, dict[str, Any]]) -> str:
    """A row in the order of the paper's table; overall and seen are means over the sets that were run."""
    lines = [model]
    for name, one in sorted(sets.items(), key=lambda pair: (*COLUMNS, pair[0]).index(pair[0])):
        parts = [f"{one['mean']:6.2f} [{one['low']:.2f}, {one['high']:.2f}]", f"{one['questions']} questions"]
        told = {"seen": "seen", "unseen": "unseen", "compliance": "in the question's language"}
        parts += [f"{words} {one[part]:.2f}" for part, words in told.items() if one[part] is not None]
        parts += [f"{one['unjudged']} not judged"] * bool(one["unjudged"])
        lines.append(f"  {name:<12} " + "  ".join(parts))
    for name, key in (("overall", "mean"), ("seen", "seen")):
        values = [one[key] for one in sets.values() if one[key] is not None]
        lines += [f"  {name:<12} {np.mean(values):6.2f}  mean of {len(values)} sets"] if values else []
    return "\n".join(lines)


def evaluate(
    model: Annotated[str, "run, Hugging Face directory or hub name, or NAME@URL"],
    *,
    out: Annotated[Path, "JSON; judge's answers and the engine's log go beside it"],
    care_pro: Questions = "",
    care: Questions = "",
    mgsm: Questions = "",
    columns: Annotated[str, "ours=theirs,... as for scripts.data.prepare"] = "",
    language: Annotated[str, "of files that do not tell"] = "",
    judge: Name = "",
    judge_tokens: Annotated[int, "longest judgement"] = 512,
    lm_eval: Annotated[str, "tasks of lm-evaluation-harness", "TASK,..."] = "",
    include_path: Annotated[Path | None, "directory of tasks, instead of the harness's own"] = None,
    limit: Annotated[int | None, "questions of each task"] = None,
    max_tokens: Annotated[int, "longest answer"] = 1024,
    prompt_style: Literal["auto", "tag", "system", "plain"] = "auto",
    seen: Annotated[str, "languages of the training data"] = SEEN,
) -> dict[str, Any]:
    """Writes every answer with its score to ``out``; the scores.

    Raises:
        FatalError: model, data, judge or task is of no use.
    """
    own = Path(model) / "model"
    weights = str(own) if (own / "config.json").exists() else model
    rows: dict[str, list[Row]] = {}
    for name, source in {"CARE-pro": care_pro, "CARE": care, "mGSM": mgsm}.items():
        if source:
            if name != "mGSM" and not judge:
                raise FatalError(f"{name} needs --judge: {FORM}")
            report = Report()
            rows[name] = read([source], Rules(pairs(columns), language, numbers=name == "mGSM"), report)
            if not rows[name] or report.counts["broken"]:
                raise FatalError(f"{name}: {len(rows[name])} good rows; {report.problems[:1] or source}")
    grader = Endpoint[str | int](judge, out.with_suffix(".judge.jsonl"), max_tokens=judge_tokens) if judge else None
    items: dict[str, list[Item]] = {}
    if rows:
        ask = styler(prompt_style, weights)
        with served(weights, own.parent, out.with_suffix(".engine.log")) as endpoint:
            said = {name: answers(some, endpoint, ask, max_tokens) for name, some in rows.items()}
        items = {name: judged(name, some, said[name], grader) for name, some in rows.items()}
    if lm_eval:
        items |= harness(weights, lm_eval.split(","), include_path, limit)
    if not items:
        raise FatalError("nothing to evaluate: give --care-pro, --care, --mgsm or --lm-eval")
    codes = [code_of(name) for name in seen.split(",")]
    found = {"model": model, "sets": {name: summary(some, codes) for name, some in items.items()}}
    every = {**found, "items": {name: [asdict(item) for item in some] for name, some in items.items()}}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(every, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return found


def main(arguments: list[str] | None = None) -> None:
    options = parser(evaluate, __doc__)
    options.add_argument("--json", action="store_true", help="one line of JSON instead of the table")
    flags = vars(options.parse_args(arguments))
    as_json = flags.pop("json")
    with plain_errors(ValueError, OSError):
        found = evaluate(**flags)
    print(json.dumps(found, ensure_ascii=False) if as_json else table(found["model"], found["sets"]))


if __name__ == "__main__":
    main()
