"""Makes the examples of a warm start: prompts with answers in random languages, to be taught with scripts.data.sft.

    python -m scripts.data.warm_start_data PROMPTS --teacher MODEL@URL --languages en,zh,ja,... --out warm_start.parquet
    python -m scripts.data.warm_start_data PARALLEL --parallel --languages en,zh,ja,... --out warm_start.parquet

Each prompt gets ``--answers`` answers, each in another language, drawn with the seed. A teacher is asked in that
language, and what it answers in another one is asked for again and at last listed and left out. PROMPTS are of any form
that scripts.data.prepare takes; ``--without FILE`` leaves out those of the training data, which should not be taught.
PARALLEL has the columns id, language, question and answer, where rows of one id mean the same.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actor.prompts import instructed
from common.languages import code_of
from common.process import FatalError
from learner.work.tables import read_table
from scripts.command import plain_errors
from scripts.data.endpoint import FORM, Endpoint, Failure, in_languages
from scripts.data.prepare import write
from scripts.data.sources import Report, Rules, read


def taught(sources: Sequence[str], args: argparse.Namespace, languages: Sequence[str]) -> list[dict[str, Any]]:
    report, rng = Report(), random.Random(args.seed)
    known = {row.prompt for row in read([args.without], Rules(), Report())} if args.without else set()
    rows = [row for row in read(sources, Rules(), report) if row.prompt not in known][: args.prompts]
    wanted = [(row.messages, language) for row in rows for language in rng.sample(languages, args.answers)]
    teacher = Endpoint[str](args.teacher, args.out.with_suffix(".answers.jsonl"))
    talks = [instructed(messages, language) for messages, language in wanted]
    answers = teacher.ask(talks, in_languages([language for _, language in wanted]))
    failed = [one.reason for one in answers if isinstance(one, Failure)]
    for reason in failed:
        print(f"left out: {reason}")
    print(f"{len(rows)} prompts ({sum(report.counts.values())} rows of no use), {len(failed)} answers of no use")
    return [
        {"messages": messages, "language": language, "answer": answer}
        for (messages, language), answer in zip(wanted, answers, strict=True)
        if isinstance(answer, str)
    ]


def parallel(source: str, args: argparse.Namespace, languages: Sequence[str]) -> list[dict[str, Any]]:
    rng, by_id = random.Random(args.seed), defaultdict[Any, dict[str, dict[str, Any]]](dict)
    try:
        for row in read_table(source).to_pylist():
            by_id[row["id"]][code_of(row["language"])] = row
        made = []
        for known in by_id.values():
            targets = [language for language in languages if language in known]
            for row in known.values():
                for language in rng.sample(targets, min(args.answers, len(targets))):
                    messages = [{"role": "user", "content": row["question"]}]
                    made.append({"messages": messages, "language": language, "answer": known[language]["answer"]})
    except (KeyError, ValueError) as error:
        raise FatalError(f"{source} is no parallel data of id, language, question and answer: {error}") from None
    return made[: args.prompts and args.prompts * args.answers]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.data.warm_start_data", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("source", nargs="+", help="prompts; with --parallel one parquet file")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--languages", required=True, help="to answer in, with commas")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--teacher", default="", metavar="MODEL@URL", help=FORM)
    kind.add_argument("--parallel", action="store_true")
    parser.add_argument("--answers", type=int, default=2, help="of each prompt")
    parser.add_argument("--prompts", type=int, help="at most this many; LRPO took 420")
    parser.add_argument("--without", default="", help="training data, whose prompts are left out")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    with plain_errors(ValueError):
        languages = [code_of(name) for name in args.languages.split(",")]
        if args.answers > len(languages):
            raise FatalError(f"--answers {args.answers} in different languages need as many --languages")
        rows = parallel(args.source[0], args, languages) if args.parallel else taught(args.source, args, languages)
        if not rows:
            raise FatalError(f"no example came of {', '.join(args.source)}")
    write(rows, args.out)
    print(f"{args.out}: {len(rows)} examples in {len({row['language'] for row in rows})} languages")


if __name__ == "__main__":
    main()
