"""What would these answers earn, and why? Scores the rows of a file as the reward process does, without a run.

    python -m reward.score CONFIG.toml ... FILE.jsonl [--section.key value ...] [--json]

A row has ``language`` (asked for), ``answer`` or ``answers`` (K to one question) and ``reference`` or ``accepted`` (a
list). It may have ``question``, ``topic``, ``truncated``, and ``reference_language``, which is identified otherwise.
Further columns of text go to a reward function. ``language`` may be a list, one for each answer. For each answer this
prints, and with ``--json`` writes as a line of JSON, its detected language, the share of it in other languages, whether
it is compliant, each term or part, the pair of languages whose calibration was used, quality and reward.

Rows that cannot be read or scored are listed with their number and the reason, the others are scored, and the exit code
is then 1.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from common.config import Config, ConfigError, load
from common.languages import code_of
from common.process import FatalError
from common.wire import Chat, ScoreRequest
from reward.gate import LanguageGate
from reward.scored import ScoredAnswer
from reward.scorer import Scorer

_DEADLINE_S = 3600.0  # for one row; nobody waits behind it
_BATCH = 32  # rows
_KNOWN = {"question", "messages", "reference", "accepted", "topic", "language", "answer", "answers",
          "reference_language", "truncated", "thinking_opened"}  # fmt: skip


def read_row(number: int, line: str, gate: LanguageGate) -> ScoreRequest:
    """The request that a line of the file stands for.

    Raises:
        ValueError: a key is missing or of the wrong kind; the message names it.
    """
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"it is no JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"it is a {type(row).__name__}; an object with keys is needed")
    if ("answer" in row) == ("answers" in row):
        raise ValueError("it needs one of the keys 'answer' and 'answers'")
    answers = _texts(row, "answers" if "answers" in row else "answer")
    accepted = _texts(row, "accepted") if row.get("accepted") else []
    reference = _text(row, "reference") if row.get("reference") else (accepted[0] if accepted else "")
    if not reference.strip():
        raise ValueError("it needs the key 'reference' or 'accepted', with a text")
    languages = _texts(row, "language")
    if len(languages) == 1:
        languages *= len(answers)
    if "reference_language" in row:
        reference_language = _text(row, "reference_language")
    else:
        reference_language = gate.detect([reference])[0] or code_of(languages[0])
    truncated = row.get("truncated", False)
    return ScoreRequest(
        id=number,
        row=number,
        reference=reference,
        reference_language=reference_language,
        answers=answers,
        languages=languages,
        truncated=truncated if isinstance(truncated, list) else [bool(truncated)] * len(answers),
        topics=_texts(row, "topic") if row.get("topic") else [],
        accepted=accepted,
        messages=_messages(row),
        extra={key: value for key, value in row.items() if key not in _KNOWN and isinstance(value, str)},
        thinking_opened=bool(row.get("thinking_opened", False)),
        deadline_s=_DEADLINE_S,
    )


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise ValueError(f"its key {key!r} is {json.dumps(value)[:60]}; a text is needed")
    return value


def _texts(row: Mapping[str, Any], key: str) -> list[str]:
    value = row.get(key)
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        return value
    return [_text(row, key)]


def _messages(row: Mapping[str, Any]) -> list[Chat]:
    if "messages" in row:
        try:
            return [Chat(role=str(turn["role"]), content=str(turn["content"])) for turn in row["messages"]]
        except (TypeError, KeyError):
            raise ValueError("its key 'messages' is not a list of objects with 'role' and 'content'") from None
    return [Chat(role="user", content=_text(row, "question"))] if row.get("question") else []


def score_rows(scorer: Scorer, requests: Sequence[ScoreRequest]) -> Iterator[list[ScoredAnswer] | Exception]:
    """The scored answers of each request, or why there are none. Blocks until each batch is scored."""
    for start in range(0, len(requests), _BATCH):
        futures: Sequence[Future[list[ScoredAnswer]]] = scorer.begin(requests[start : start + _BATCH])
        for future in futures:
            try:
                yield future.result()
            except FatalError:
                raise
            except Exception as error:  # whatever a row provokes is told beside its number
                yield error


def explanation(request: ScoreRequest, number: int, scored: ScoredAnswer) -> dict[str, Any]:
    """What is told of one answer: the keys of a line of ``--json``."""
    score = scored.score
    return {
        "row": request.row,
        "answer": number,
        "asked": score.language,
        "detected": score.detected,
        "foreign": scored.decision.foreign,
        "compliant": score.compliant,
        "parts": score.terms,
        "similarity": score.similarity if scored.pair else None,
        "pair": list(scored.pair) if scored.pair else None,
        "calibrated": scored.calibrated,
        "scored": score.scored,
        "quality": score.quality if score.scored else None,
        "reward": score.reward if score.scored else None,
    }


def as_text(told: Mapping[str, Any]) -> str:
    """One answer on one line, for people."""
    kept = "compliant" if told["compliant"] else "NOT compliant"
    language = f"asked {told['asked'] or '-'}, found {told['detected'] or '-'} ({told['foreign']:.0%} foreign), {kept}"
    parts = ", ".join(f"{name} {value:.3f}" for name, value in told["parts"].items()) or "no parts"
    pair = ""
    if told["pair"]:
        pair = f", pair {'-'.join(told['pair'])} ({told['similarity']:.3f} -> {told['calibrated']:.3f})"
    worth = f"quality {told['quality']:.3f}, reward {told['reward']:.3f}" if told["scored"] else "could not be scored"
    return f"row {told['row']}, answer {told['answer'] + 1}: {language}; {parts}{pair}; {worth}"


def main(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    if {"-h", "--help"} & {*arguments}:
        print(__doc__)
        return 0
    as_json = "--json" in arguments
    rest = [one for one in arguments if one != "--json"]
    files = [Path(one) for one in rest if one.endswith((".jsonl", ".json")) and not one.startswith("--")]
    if len(files) != 1:
        raise ConfigError("give one file of answers, FILE.jsonl, besides the configuration; --help explains both")
    config: Config = load([one for one in rest if Path(one) != files[0]])
    try:
        lines = files[0].read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {files[0]}: {error}") from None
    gate = LanguageGate(config.reward.language_model)
    requests, problems = [], dict[int, str]()
    for number, line in enumerate(lines):
        if line.strip():
            try:
                requests.append(read_row(number, line, gate))
            except ValueError as error:
                problems[number] = str(error)
    scorer = Scorer(config.reward, config.run.languages, header=config.model.header)
    try:
        scorer.check_languages(config)
        for request, found in zip(requests, score_rows(scorer, requests), strict=True):
            if isinstance(found, Exception):
                problems[request.row] = f"{type(found).__name__}: {found}"
                continue
            for n, one in enumerate(found):
                told = explanation(request, n, one)
                print(json.dumps(told, ensure_ascii=False) if as_json else as_text(told), flush=True)
    finally:
        scorer.close()
    for number, problem in sorted(problems.items()):
        print(f"{files[0]}, row {number}: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        raise SystemExit(main(sys.argv[1:]))
    except (ConfigError, FatalError) as problem:
        raise SystemExit(f"error: {problem}") from None
