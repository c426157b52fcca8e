"""Pass rates are measured once, kept as they come, written beside the rows as they are, and select what is trained."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from actor.engine.errors import EngineError
from common.config import load
from common.languages import POLICY_CHOOSES
from common.process import FatalError
from common.tokenizer import load_tokenizer
from learner.data.problems import Place, Problems
from learner.data.rows import QuestionRow, Rules, read_question_rows
from learner.work.questions import read_questions
from reward.scored import UnscoredError
from reward.terms.user_call import RewardFunctionError
from router import Router
from scripts.data import anchors, pass_rate
from scripts.data.answering import Journal, Task, _Doing
from scripts.data.prepare import records
from tests.learner.work.test_questions import configured
from tests.support.processes import forked

ROOT = Path(__file__).parents[2]

# A question "3 of 4" is answered rightly by the first 3 of 4 answers, in German by one answer fewer.
MINE = """
def graded(group, tools):
    share = int(group.messages[-1].content.split()[0])
    return [{"right": float(n < share - (one.asked == "de"))} for n, one in enumerate(group.answers)]
"""


def run(tmp_path: Path, policy: Path, *flags: str, parts: str = "{right = 1.0}") -> list[dict[str, Any]]:
    out = tmp_path / "out" / "rated.parquet"
    (tmp_path / "mine.py").write_text(MINE)
    words = [
        "--out", str(out), "--samples", "4", "--data.train", str(tmp_path / "rows.jsonl"), "--run.dir",
        str(tmp_path / "run"), "--model.path", str(policy), "--model.dtype", "float32", "--run.languages",
        '["en", "de"]', "--sampling.max_new_tokens", "3", "--reward.function", f"{tmp_path}/mine.py:graded",
        "--reward.parts", parts, "--reward.gated", "false", "--actor.start_timeout_s", "400", *flags,
    ]  # fmt: skip
    with forked():
        pass_rate.main(words)
    rows: list[dict[str, Any]] = pq.read_table(out).to_pylist()
    return rows


def test_rates_are_those_of_the_rewards_and_measured_once(
    tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests" / "support" / "light"))
    rows = [{"question": f"{n} of 4", "answer": "yes", "language": "en", "note": f"n{n}"} for n in range(5)]
    lines = [*map(json.dumps, rows), json.dumps({"question": "", "answer": "no", "language": "en"})]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    found = run(tmp_path, tiny_policy, "--data.pass_rate", "[0.5, 0.8]")
    assert [row["pass_rate"] for row in found] == [{"en": n / 4, "de": max(0, n - 1) / 4} for n in range(5)]
    assert [{key: row[key] for key in rows[0]} for row in found] == rows, "the other columns are as they were"
    said = capsys.readouterr().out
    assert "broken: " in said and "row 5" in said and "keeps 1 of 5 questions" in said

    answers = tmp_path / "out" / "rated.answers.jsonl"
    whole = answers.read_bytes()
    entries = whole.split(b"\n")
    assert len(entries) == 11
    answers.write_bytes(b"\n".join(entries[:7]) + b"\n" + entries[7][:20])  # killed in the middle of a line
    assert run(tmp_path, tiny_policy) == found and answers.read_bytes().startswith(b"\n".join(entries[:7]))
    assert "7 of 10" in capsys.readouterr().out and len(answers.read_bytes().split(b"\n")) == 11
    assert run(tmp_path, tiny_policy, "--actor.engine_url", "http://127.0.0.1:1") == found, "nothing is left to ask"
    with pytest.raises(SystemExit, match="no SGLang server answers"):  # other answers would be wanted
        run(tmp_path, tiny_policy, "--sampling.temperature", "0.5", "--actor.engine_url", "http://127.0.0.1:1")


@pytest.mark.parametrize(
    ("flags", "topics", "asked"),
    [
        (["--router.own_language", "2"], [], ["en", "zh", "de"]),
        (["--router.own_language", "0"], [], ["en", "zh"]),
        (["--router.own_language", "8"], [], ["de"]),
        (["--router.mode", "monolingual"], [], ["de"]),
        (["--router.mode", "english_dominant"], [], ["de", "en"]),
        (["--router.mode", "uniform"], [], ["en", "zh", "de"]),
        (["--router.mode", "policy", "--model.prompt_style", "select"], [], ["en", "zh"]),
        (["--router.mode", "hybrid", "--model.prompt_style", "select"], [], ["en", "zh", "de"]),
        (["--router.mode", "hybrid", "--model.prompt_style", "select"], ["Translation"], ["de"]),
    ],
)
def test_a_question_is_asked_in_the_languages_in_which_a_run_may_ask_it(
    flags: list[str], topics: list[str], asked: list[str]
) -> None:
    config = load(["--run.languages", '["en", "zh"]', *flags])
    row = QuestionRow([{"role": "user", "content": "?"}], "a", "de", topics, [], "", Place("f", 0))
    assert pass_rate.languages_asked(config, row) == asked
    languages = list(config.run.languages)
    drawn = [Router(config.router, languages, seed, 1).draw("de", topics, None).languages for seed in range(40)]
    may = {language for languages in drawn for language in languages} - {POLICY_CHOOSES}
    assert may <= set(asked) and (may == set(asked) or POLICY_CHOOSES in drawn[0])


def test_the_accuracy_says_what_is_right_and_not_a_reward_of_many_parts(
    tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in SP3F: a wrong answer that is boxed, in its language and better than the others has a reward of 3."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests" / "support" / "light"))
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "1 of 4", "answer": "yes", "language": "en"}))
    (tmp_path / "many.py").write_text(
        "def score(group, tools):\n"
        "    share = int(group.messages[-1].content.split()[0])\n"
        "    kept = {'box': 1.0, 'lc': 1.0, 'wins': 1.0}\n"
        "    return [{'acc': float(n < share), **kept} for n, _ in enumerate(group.answers)]\n"
    )
    parts = "{acc = 1.0, box = 1.0, lc = 1.0, wins = 1.0}"
    flags = ["--reward.function", f"{tmp_path}/many.py:score"]
    assert run(tmp_path, tiny_policy, *flags, parts=parts)[0]["pass_rate"] == {"en": 0.25, "de": 0.25}
    (tmp_path / "rows.jsonl").write_text(
        "\n".join(json.dumps({"question": f"{n} of 4", "answer": "yes", "language": "en"}) for n in (0, 1))
    )
    out = tmp_path / "anchored.parquet"
    words = [
        "--out", str(out), "--write", "anchor=whole", "--rounds", "1,4", "--data.train", str(tmp_path / "rows.jsonl"),
        "--run.dir", str(tmp_path / "run"), "--model.path", str(tiny_policy), "--model.dtype", "float32",
        "--sampling.max_new_tokens", "3", "--reward.parts", parts, "--actor.start_timeout_s", "400", *flags,
    ]  # fmt: skip
    with forked():
        anchors.main(words)
    found = [row["anchor"] for row in pq.read_table(out).to_pylist()]
    assert found[0] is None and found[1], "without a right answer there is no anchor"
    monkeypatch.setattr(pass_rate, "measure", None)
    with pytest.raises(SystemExit, match=r"of reward.parts = box, lc none says which answers are right"):
        run(tmp_path, tiny_policy, *flags, parts="{box = 1.0, lc = 1.0}")


# Scores rows with a hint alone, as PB-RLSVR does those with an English answer.
NEEDS_A_HINT = """
def graded(group, tools):
    if not group.extra.get("hint"):
        raise ValueError("its row has no hint")
    return [{"right": float(n < 2)} for n, _ in enumerate(group.answers)]
"""


def test_rows_that_the_reward_cannot_score_are_listed_and_keep_nothing_from_its_end(
    tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests" / "support" / "light"))
    rows = [{"question": f"{n}?", "answer": "a", "language": "en", "hint": "h" if n > 9 else None} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "hints.py").write_text(NEEDS_A_HINT)
    flags = ["--reward.function", f"{tmp_path}/hints.py:graded", "--data.columns", "{hint = 'hint'}",
             "--router.mode", "monolingual"]  # fmt: skip
    nowhere = ["--actor.engine_url", "http://127.0.0.1:1"]

    def failures() -> list[dict[str, Any]]:
        lines = (tmp_path / "out" / "rated.problems.jsonl").read_text().splitlines()
        return sorted(map(json.loads, lines), key=lambda one: int(one["row"]))

    found = run(tmp_path, tiny_policy, *flags)
    assert [row["pass_rate"] for row in found] == [None] * 10 + [{"en": 0.5}] * 10
    first = failures()
    assert [one["row"] for one in first] == [*range(10)] and "its row has no hint" in first[0]["reason"]
    with pytest.raises(SystemExit, match="no SGLang server answers"):
        run(tmp_path, tiny_policy, *flags, *nowhere)  # they are tried once more
    assert run(tmp_path, tiny_policy, *flags) == found
    capsys.readouterr()
    assert run(tmp_path, tiny_policy, *flags, *nowhere) == found, "nothing is left to ask"
    said = capsys.readouterr().out
    assert "10 of 20 are known" in said and "10 of 20 have failed 2 times and are not tried again" in said
    assert failures() == first
    (tmp_path / "hints.py").write_text(NEEDS_A_HINT + "# mended\n")
    with pytest.raises(SystemExit, match="no SGLang server answers"):
        run(tmp_path, tiny_policy, *flags, *nowhere)


def test_anchors_are_right_by_a_term_where_the_reward_needs_them(
    tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As PB-RLSVR's, which cannot score a row before it has its English answer."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests" / "support" / "light"))
    (tmp_path / "hints.py").write_text(NEEDS_A_HINT)
    (tmp_path / "rows.jsonl").write_text(
        "\n".join(json.dumps({"question": f"{n}?", "answer": "a", "language": "en", "hint": "h"}) for n in range(9))
    )
    out = tmp_path / "anchored.jsonl"
    words = [
        "--out", str(out), "--write", "hint=whole", "--rounds", "1", "--right", "0", "--data.train",
        str(tmp_path / "rows.jsonl"), "--run.dir", str(tmp_path / "run"), "--model.path", str(tiny_policy),
        "--model.dtype", "float32", "--sampling.max_new_tokens", "3", "--actor.start_timeout_s", "400",
        "--reward.function", f"{tmp_path}/hints.py:graded", "--reward.parts", "{right = 1.0}", "--data.columns",
        "{hint = 'hint'}",
    ]  # fmt: skip
    with forked():
        with pytest.raises(SystemExit, match=r"its row has no hint.* let a term say what is right \(--by math\)"):
            anchors.main(words)
        anchors.main([*words, "--by", "contains"])
    found = [json.loads(line)["hint"] for line in out.read_text().splitlines()]
    assert len(found) == 9 and "h" not in found and all(found)


def test_what_was_measured_is_kept_by_all_that_decides_it_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_text("weights")
    (tmp_path / "mine.py").write_text("def f(group, tools): ...\n")
    (tmp_path / "pairs.csv").write_text("lang_a,lang_b,count,mean,std\n")
    row = QuestionRow([{"role": "user", "content": "?"}], "a", "de", [], [], "", Place("f", 0))

    def keys(*flags: str, model: str = "model") -> tuple[str, str]:
        config = load([
            "--model.path", str(tmp_path / model), "--reward.function", f"{tmp_path}/mine.py:f", "--reward.parts",
            "{right = 1.0}", "--router.mode", "monolingual", "--reward.calibration", str(tmp_path / "pairs.csv"),
            "--reward.judges", '["judge@http://127.0.0.1:1/v1"]', *flags,
        ])  # fmt: skip
        (task,) = pass_rate.make_tasks(config, [row], 4, 0.5, gated=False)
        plan = anchors.Plan({"hint": "whole"})
        question = anchors.anchor_question(row, plan)
        assert question is not None
        return task.key, anchors._key(question, anchors._how(config, plan))

    first = keys()
    for harmless in (("judge_calls", "3"), ("batch_window_ms", "1"), ("queue_texts", "99"), ("addresses", '["ipc://r"]'),
                     ("judges", '["judge@http://127.0.0.1:2/v1"]'), ("diagnostics", "off")):  # fmt: skip
        assert keys(f"--reward.{harmless[0]}", harmless[1]) == first, harmless
    shutil.copytree(tmp_path / "model", tmp_path / "copied")
    assert keys(model="copied") == first, "the model is the same, wherever it lies"
    known = {first}
    for flags in (["--reward.judges", '["other@http://127.0.0.1:1/v1"]'], ["--reward.gate_share", "0.2"],
                  ["--sampling.temperature", "0.5"]):  # fmt: skip
        known.add(keys(*flags))
    for name in ("mine.py", "model/model.safetensors", "pairs.csv"):
        with (tmp_path / name).open("a") as file:
            file.write("# changed\n")
        known.add(keys())
    assert len(known) == 7 and len({key for pair in known for key in pair}) == 14


def test_right_answers_in_another_language_do_not_count_where_that_is_wanted(
    tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the recipes naive-grpo and slc-rl filter, which pay for right answers in any language."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests" / "support" / "light"))
    rows = [{"question": f"{n} of 4", "answer": "yes", "language": "en"} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "noted.py").write_text(
        "import json\n"
        "def graded(group, tools):\n"
        f"    with open({str(tmp_path / 'seen.jsonl')!r}, 'a') as file:\n"
        "        seen = [one.compliant for one in group.answers]\n"
        "        file.write(json.dumps([group.messages[-1].content, group.answers[0].asked, seen]) + '\\n')\n"
        "    return [{'right': float(n != 1)} for n, _ in enumerate(group.answers)]\n"
    )
    flags = ["--reward.function", f"{tmp_path}/noted.py:graded", "--sampling.max_new_tokens", "12"]
    loose = run(tmp_path, tiny_policy, *flags)
    assert all(row["pass_rate"] == {"en": 0.75, "de": 0.75} for row in loose)
    (tmp_path / "seen.jsonl").unlink()
    strict = {row["question"]: row["pass_rate"] for row in run(tmp_path, tiny_policy, *flags, "--consistent")}
    seen = [json.loads(line) for line in (tmp_path / "seen.jsonl").read_text().splitlines()]
    assert len(seen) == 12, "what was measured without it is not taken for it"
    for question, language, compliant in seen:
        assert strict[question][language] == sum(kept for n, kept in enumerate(compliant) if n != 1) / 4
    assert any(rate < 0.75 for rates in strict.values() for rate in rates.values())


def test_only_an_outage_ends_the_work(tmp_path: Path) -> None:
    """Eight answers in a row that the engine or the judges did not give, or a reward that never works."""

    def done(errors: dict[int, Exception], count: int = 30, journal: str = "a") -> tuple[list[int], str]:
        """Which tasks were tried, and why the work ended; the errors are by the number of the attempt."""
        tried: list[int] = []
        problems, kept = Problems(), Journal(tmp_path / f"{journal}.jsonl")
        tasks = [
            Task(QuestionRow([], "", "en", [], [], "", Place("rows.jsonl", n)), "en", f"{n}") for n in range(count)
        ]

        async def work(task: Task) -> None:
            await asyncio.sleep(0.001)  # as an engine takes its time
            tried.append(task.row.place.row)
            if error := errors.get(len(tried) - 1):
                raise error
            kept.add(task, right=1)

        new = [task for task in tasks if task.key not in kept.entries and not kept.attempts(task, "")]
        again = [task for task in tasks if kept.attempts(task, "") == 1]
        doing = _Doing(new, again, kept, problems, "", has_found=bool(kept.entries))
        try:
            asyncio.run(doing.all_of_them(work, 1, "test", "trying"))
        except FatalError as error:
            return tried, str(error)
        finally:
            kept.close()
        return tried, ""

    of_row, of_judge, of_engine = RewardFunctionError("no column"), UnscoredError("no judge"), EngineError("gone")
    tried, why = done(dict.fromkeys(range(10, 999), of_row), count=200, journal="d")
    assert len(tried) == 138 and "128 questions in a row could not be measured" in why
    tried, why = done(dict.fromkeys(range(62, 999), of_row), count=200, journal="d")
    assert (len(tried), why) == (62 + 128, ""), "those that have failed before come last, and end nothing"
    tried, why = done(dict.fromkeys(range(1, 29), of_row))
    assert (len(tried), why) == (30, ""), "rows that cannot be scored keep no other row from being asked"
    tried, why = done(dict.fromkeys(range(28), of_row))
    assert (len(tried), why) == (28, ""), "they are tried once more, and never end the work"
    assert done({}) == ([], ""), "and not a third time"
    tried, why = done(dict.fromkeys(range(30), of_row), journal="b")
    assert len(tried) == 8 and "the first 8 questions could not be measured" in why and "rows.jsonl, row 7" in why
    for error in (of_judge, of_engine, TimeoutError("late")):
        tried, why = done(dict.fromkeys(range(3, 30), error), journal=type(error).__name__)
        assert len(tried) == 11 and "8 questions in a row could not be measured, the last one: rows.jsonl" in why
    tried, why = done({n: of_judge for n in range(30)}, journal="UnscoredError")
    assert len(tried) == 8 and set(tried) == {*range(11, 19)}, "new ones come first"
    tried, why = done({n: of_judge for n in range(11, 60)}, journal="UnscoredError")
    assert (len(tried), why) == (27, ""), "what cannot be scored again is left, and the work comes to its end"
    tried, why = done({n: of_engine for n in range(60)}, journal="TimeoutError")
    assert len(tried) == 8 and "the engine" in why
    with pytest.raises(FatalError, match="cannot go on"):
        raise FatalError(done({3: FatalError("cannot go on")}, journal="c")[1])


def test_a_run_trains_on_the_questions_within_the_bounds(
    tiny_policy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rates: list[Any] = [{"en": 0.2, "de": 0.6}, {"en": 1.0, "de": 1.0}, 0.4, None, {"fr": 0.4}, {"en": 0.4, "de": None},
                        1.5, "often", {"en": 0.0, "zh": 0.0}]  # fmt: skip
    path, heldout = tmp_path / "rows.jsonl", tmp_path / "heldout.jsonl"
    rows = [{"question": f"{n}?", "answer": "a", "language": "en", "rate": rate} for n, rate in enumerate(rates)]
    path.write_text("\n".join(map(json.dumps, rows)))
    heldout.write_text(json.dumps({"question": "held out?", "answer": "a", "language": "en"}))

    def read(**data: Any) -> list[str]:
        config = configured(tmp_path, tiny_policy, path, heldout=str(heldout), **data)
        found = read_questions(config, load_tokenizer(str(tiny_policy)))
        assert len(found.heldout) == 1, "held-out questions are not selected"
        return [one.messages[0].content for one in found.train]

    columns = {"pass_rate": "rate"}
    assert len(read(columns=columns)) == len(rates), "without bounds the column is not even looked at"
    assert read(columns=columns, pass_rate=(0.1, 0.9)) == ["0?", "2?", "5?"]
    assert "4 pass rate" in caplog.text and "2 broken" in caplog.text
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "run" / "data_problems.jsonl").read_text().splitlines()]
    assert sorted(kinds) == ["broken"] * 2 + ["pass rate"] * 4
    assert read(columns=columns, pass_rate=(0, 0.4)) == ["0?", "2?", "5?", "8?"]
    with pytest.raises(FatalError, match=r"leaves none of the 9 questions"):
        read(pass_rate=(0.1, 0.9))
    with pytest.raises(ValueError, match="the lower bound comes first"):
        read(pass_rate=(0.9, 0.1))


def test_a_question_that_is_left_out_is_not_the_longest(tiny_policy: Path, tmp_path: Path) -> None:
    path, tokenizer = tmp_path / "rows.jsonl", load_tokenizer(str(tiny_policy))
    rows = [
        {"question": "?" * length, "answer": "a", "language": "en", "pass_rate": rate}
        for length, rate in ((1, 0.5), (10, 0.5), (40, 1.0))
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    longest = [
        read_questions(configured(tmp_path, tiny_policy, path, **data), tokenizer).longest_prompt
        for data in ({}, {"pass_rate": (0.1, 0.9)})
    ]
    assert longest[0] - longest[1] == len(tokenizer.encode("?" * 40)) - len(tokenizer.encode("?" * 10)) > 0


def test_labelling_keeps_the_rates(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        json.dumps({"question": "?", "answer": "a", "language": "en", "pass_rate": {"en": 0.5}})
    )
    row = next(read_question_rows(str(tmp_path / "rows.jsonl"), Rules(), Problems()))
    assert records([row])[0]["pass_rate"] == {"en": 0.5}
