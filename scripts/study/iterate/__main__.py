"""Trains in iterations, as M-Thinker and others do: filter the questions, make their anchors, train, and again.

    lrpo iterate CONFIG.toml ... --iterations 2 [--section.key value] ...
    lrpo iterate --recipe m-thinker MODEL TRAIN [HELDOUT] --iterations 2 [CONFIG.toml ...] [--section.key value] ...

run.dir gets a directory for each iteration, with the three stages in it:

* filter: the policy, which is the model of the last iteration, answers every question --samples times; those that it
  answers rightly always or never (or outside of data.pass_rate) are dropped, and filtered.jsonl has the others;
* anchors: the policy answers each of them in a strong language, and a right answer is written to the columns of
  data.columns that --anchor names, in anchored.jsonl;
* train: a run of its own, run.dir/iteration-N/run, from the model of the last iteration, with the KL penalty to it.

The same command goes on at the first stage that is not whole, and within it. iteration.json in each directory has what
it was begun with, and refuses other settings and other data; and what every stage kept and dropped. More iterations are
added by a larger --iterations.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from common.config import Config, load
from common.languages import code_of
from common.process import FatalError
from learner.run_lock import locked
from scripts.data.anchors import Part, Plan, parse_columns, parse_rounds
from scripts.data.answering import ByOption, ConsistentOption, RightOption, least_of_right, scored_by
from scripts.data.digests import digest_of_file, digest_of_model, digests_of_named
from scripts.ops.command_line import command
from scripts.ops.recipes import recipe_settings
from scripts.study.iterate.record import Record, digest_of_source
from scripts.study.iterate.stages import (
    ANCHORED_FILE,
    FILTERED_FILE,
    Filtering,
    filter_questions,
    kept_keys,
    make_anchors,
    train,
)

# What the recipes of this project compare answers with and the policy itself writes, where data.columns names it.
_OWN_ANCHORS: dict[str, Part] = {"english_thought": "thought"}
_OWN_QUESTION = "english_question"
_STAGES = ("filter", "anchors", "train")


@dataclass(frozen=True)
class Iteration:
    """One iteration, before it is begun."""

    number: int  # from 1
    directory: Path
    words: list[str]  # configuration files and flags of its training, but for its questions and its run.dir
    config: Config  # of these
    record: Record


def make_iterations(words: Sequence[str], count: int, later: Mapping[int, Sequence[str]]) -> list[Iteration]:
    """All iterations, with the settings of each.

    Args:
        words: configuration files and flags.
        later: number -> flags that hold from that iteration on.

    Raises:
        ConfigError: a setting is wrong.
        FatalError: an iteration's record cannot be read, or its number is none.
    """
    if wrong := [number for number in later if not 1 <= number <= count]:
        raise FatalError(f"--from {wrong[0]}=...: there are the iterations 1 to {count}")
    out = load(words).run.dir
    if (out / "config.json").exists():
        raise FatalError(f"run.dir = {out} holds a run that is no iteration: give another one")
    found: list[Iteration] = []
    flags = list(words)
    for number in range(1, count + 1):
        flags = [*flags, *later.get(number, [])]
        own = list(flags)
        if found:
            own += ["--model.path", str(found[-1].directory / "run" / "model")]
        directory = out / f"iteration-{number}"
        config = load([*own, "--run.dir", str(directory)])
        if config.actor.engine_url:
            raise FatalError(
                f"actor.engine_url = {config.actor.engine_url}: nobody knows which iteration's model runs there. Leave "
                "it out, and an engine is started for each"
            )
        found.append(Iteration(number, directory, own, config, Record(directory)))
    return found


def parse_later(texts: Sequence[str]) -> dict[int, list[str]]:
    """The flags of ``NUMBER=FLAGS`` words.

    Raises:
        FatalError: a word has another form.
    """
    found: dict[int, list[str]] = {}
    for text in texts:
        number, equals, flags = text.partition("=")
        if not (number.isdecimal() and equals and flags.startswith("--")):
            raise FatalError(f"--from is NUMBER=FLAGS, as '2=--sampling.max_new_tokens 21952', not {text!r}")
        found.setdefault(int(number), []).extend(shlex.split(flags))
    return found


def make_plan(
    config: Config, columns: Sequence[str], language: str, question: str | None, rounds: str, how: Filtering
) -> Plan:
    """Which anchors are made: those that are named, else those that the recipe compares answers with, if any."""
    if columns:
        wanted = {} if list(columns) == ["none"] else parse_columns(columns)
    else:
        wanted = {column: part for column, part in _OWN_ANCHORS.items() if column in config.data.columns}
    if question is None:
        question = _OWN_QUESTION if _OWN_QUESTION in config.data.columns else ""
    return Plan(wanted, code_of(language), question, parse_rounds(rounds), how.right, how.consistent, how.by)


def digests_of(iterations: Sequence[Iteration]) -> dict[str, str]:
    """Digests of the rows of all sources, by their names. Reads each once.

    Raises:
        FatalError: one cannot be read.
    """
    sources = (source for one in iterations for source in (one.config.data.train, one.config.data.heldout) if source)
    return {source: digest_of_source(source) for source in dict.fromkeys(sources)}


def begins_with(
    one: Iteration, former: Iteration | None, digests: Mapping[str, str], how: Filtering, plan: Plan
) -> dict[str, Any]:
    """All that decides what an iteration comes to, as its record has it."""
    sources = {"data.train": one.config.data.train, "data.heldout": one.config.data.heldout}
    own_model = {"model.path": digest_of_model(one.config.model.path)} if former is None else {}
    return {
        "settings": one.config.model_dump(mode="json"),
        "options": {**asdict(how), "anchors": {**asdict(plan), "rounds": list(plan.rounds)}},
        "named": {**digests_of_named(one.config), **own_model},
        "data": {key: digests[source] for key, source in sources.items() if source},
        "after": None if former is None else former.record.stages.get("train", {}).get("digest"),
    }


def check(one: Iteration, begun: Mapping[str, Any]) -> None:
    """Refuses an iteration that was begun with something else, or whose files were changed since.

    Raises:
        FatalError: this is so.
    """
    one.record.check(one.config, begun, has_own_model=one.number == 1)
    for stage, name in (("filter", FILTERED_FILE), ("anchors", ANCHORED_FILE)):
        digest = one.record.stages.get(stage, {}).get("digest")
        if digest and digest_of_file(one.directory / name) != digest:
            raise FatalError(
                f"{one.directory / name} was changed since the stage {stage} wrote it: put it back, or delete "
                f"{one.directory} to do the iteration anew"
            )


def run_iteration(one: Iteration, begun: Mapping[str, Any], how: Filtering, plan: Plan, used: frozenset[str],
                  total: int, actors: int | None) -> None:  # fmt: skip
    """Does the stages that are not whole. Blocks as long as that takes.

    Args:
        used: the keys of the questions that earlier iterations trained on.
    """
    one.record.begin(begun)
    for stage in _STAGES:
        if stage in one.record.stages:
            print(f"iteration {one.number} of {total}, {stage}: done before", flush=True)
            continue
        print(f"iteration {one.number} of {total}, {stage}: with {one.config.model.path}", flush=True)
        match stage:
            case "filter":
                result = filter_questions(one.config, one.directory, one.number, how, plan, used)
            case "anchors":
                result = make_anchors(one.config, one.directory, one.number, plan, anchored_only=how.anchored_only)
            case _:
                result = train(one.words, one.directory, one.number, actors, plan.columns)
        one.record.complete(stage, result)


def last_table(iterations: Sequence[Iteration]) -> str:
    """A line for each iteration: its questions, its anchors, and its reward before and after."""
    lines = [f"{'iteration':<10}{'questions':>10}{'anchors':>9}{'steps':>7}   reward before -> after"]
    for one in iterations:
        kept, anchors, trained = (one.record.stages[stage] for stage in _STAGES)
        before, after = (trained[f"reward_{when}"] for when in ("before", "after"))
        shown = "not evaluated" if before is None or after is None else f"{before:.3f} -> {after:.3f}"
        lines.append(f"{one.number:<10}{kept['kept']:>10}{anchors['made']:>9}{trained['steps']:>7}   {shown}")
    return "\n".join(lines)


@command(ValueError, passes_flags_on=True)
def main(
    context: typer.Context,
    *,
    iterations: Annotated[int, typer.Option(min=1, help="How many, those that are done included.")] = 2,
    recipe: Annotated[str, typer.Option(help="A published recipe: lrpo recipes lists them.")] = "",
    samples: Annotated[int, typer.Option(min=1, help="Answers to each question in each language, to filter.")] = 8,
    right: RightOption = None,
    consistent: ConsistentOption = False,
    by: ByOption = "",
    per_language: Annotated[int, typer.Option(min=0, help="Most questions of each language; 0: all.")] = 0,
    unused: Annotated[bool, typer.Option("--unused", help="Leave out what an earlier iteration trained on.")] = False,
    anchor: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN=PART", help="A column of data.columns that gets the thought, the answer or the "
                     "whole of an anchor; none: no anchors. Default: english_thought=thought, where it is named."),
    ] = None,
    anchor_language: Annotated[str, typer.Option(help="The strong language.")] = "en",
    anchor_question: Annotated[
        str | None,
        typer.Option(help="Column of data.columns with the question in it; '': the question as it is. Default: "
                     "english_question, where it is named."),
    ] = None,
    anchor_rounds: Annotated[str, typer.Option(help="Answers, round after round, until one is right.")] = "1,8,16,32",
    anchored_only: Annotated[
        bool, typer.Option("--anchored-only", help="Leave out questions that got no anchor.")
    ] = False,
    later: Annotated[
        list[str] | None,
        typer.Option("--from", metavar="NUMBER=FLAGS", help="Settings from that iteration on. May be repeated."),
    ] = None,
    actors: Annotated[int | None, typer.Option(min=1, help="Actor processes, as of lrpo train.")] = None,
) -> None:  # fmt: skip
    words = recipe_settings(recipe, context.args) if recipe else context.args
    all_of_them = make_iterations(words, iterations, parse_later(later or []))
    least = max(least_of_right(scored_by(one.config, by), right) for one in all_of_them)
    how = Filtering(samples, least, per_language, unused, consistent, by, anchored_only)
    plan = make_plan(all_of_them[0].config, anchor or [], anchor_language, anchor_question, anchor_rounds, how)
    out = all_of_them[0].directory.parent
    with locked(out):
        digests = digests_of(all_of_them)
        pairs = list(zip(all_of_them, [None, *all_of_them], strict=False))
        for one, former in pairs:  # before anything is done
            check(one, begins_with(one, former, digests, how, plan))
        used = set[str]()
        try:
            for one, former in pairs:
                begun = begins_with(one, former, digests, how, plan)  # the training before it is known now
                run_iteration(one, begun, how, plan, frozenset(used), iterations, actors)
                used |= kept_keys(one.directory)
        except KeyboardInterrupt:
            print(f"\ninterrupted; the same command goes on in {out}", file=sys.stderr)
            raise
    print(last_table(all_of_them))
    print(f"exported model: {all_of_them[-1].directory / 'run' / 'model'}")


if __name__ == "__main__":
    main()
