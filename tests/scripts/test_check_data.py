"""What is said of the data before a run begins."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from common.config import Config, ConfigError, load
from reward.gate import shipped_model
from scripts.data import check
from scripts.data.further_columns import rows_without_columns
from scripts.data.golds import unread_golds
from scripts.data.reward_checks import check_reward, warning_of_columns, warning_of_judges
from scripts.ops.recipes import find_recipe, recipe_files
from tests.support.chat import Answer, serving

ROOT = Path(__file__).parents[2]
# The forms in which data sets write a result, and one that is none. Only the topic "sums" is verified as mathematics.
GOLDS = ["42", r"\boxed{\frac{3}{4}}", "２\\sqrt{3}", "nobody knows", "1,000", "Paris, of course", "٤٢", "$x^2+1$"]
TOPICS = ["words" if gold.startswith("Paris") else "sums" for gold in GOLDS]


_SHORT = ["--sampling.max_new_tokens", "64"]  # answers, for the tiny policy, which holds 512 tokens


def _written(tmp_path: Path, rows: Sequence[Mapping[str, object]]) -> str:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def _config(tmp_path: Path, rows: Sequence[Mapping[str, object]]) -> Config:
    return load(["--data.train", _written(tmp_path, rows), "--reward.terms.sums.math", "1.0"])


def test_results_that_the_verifier_cannot_read_are_named_with_their_row(tmp_path: Path) -> None:
    rows = [
        {"question": f"Number {number}?", "answer": gold, "language": "en", "topic": topic}
        for number, (gold, topic) in enumerate(zip(GOLDS, TOPICS, strict=True))
    ]
    config = _config(tmp_path, [*rows, {"question": "no answer"}])
    found = unread_golds(config.data.train, config).found
    assert [(problem.row, problem.key) for problem in found] == [(3, "answer")]
    assert "'nobody knows'" in found[0].reason


def test_one_accepted_answer_that_can_be_read_is_enough(tmp_path: Path) -> None:
    shared = {"answer": "A sentence without a result.", "language": "en", "topic": "sums"}
    rows = [{"question": "a?", "accepted": ["many", "7"]}, {"question": "b?", "accepted": ["many", "few"]}]
    config = _config(tmp_path, [{**shared, **row} for row in rows])
    assert [(problem.row, problem.key) for problem in unread_golds(config.data.train, config).found] == [
        (1, "accepted")
    ]


def test_accepted_answers_without_a_letter_are_named_where_letters_are_read(tmp_path: Path) -> None:
    rows = [
        {"question": "A. one\nB. two", "answer": gold, "language": "en", "topic": topic}
        for gold, topic in [("b", "tests"), ("2", "tests"), ("Б", "tests"), ("ข", "words"), ("(B) two", "tests")]
    ]
    config = load(["--data.train", _written(tmp_path, rows), "--reward.terms.tests.choice", "1.0"])
    found = unread_golds(config.data.train, config).found
    assert [(problem.row, problem.key, problem.kind) for problem in found] == [
        (1, "answer", "unread"), (2, "answer", "unread"),
    ]  # fmt: skip
    assert "the term \"choice\" reads no letter of an option in '2'" in found[0].reason


def test_a_directory_of_splits_and_by_products_is_read_as_the_learner_reads_it(
    tiny_policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """As `lrpo prepare` and `lrpo pass-rate --out data/rated.jsonl` leave it."""
    data = tmp_path / "data"
    data.mkdir()
    for name in ("train", "heldout", "rated", "rated.answers", "rated.problems", "problems"):
        row = {"question": f"{name}?", "answer": "a", "language": "en"}
        (data / f"{name}.jsonl").write_text(json.dumps(row))
    flags = {"data.train": data, "model.path": tiny_policy, "run.dir": tmp_path / "run", "router.own_language": 0}
    words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    words += _SHORT
    check.main([*words, "--model.prompt_style", "system"])
    assert "data.train: 1 questions" in capsys.readouterr().out
    said = "\n".join(record.message for record in caplog.records)
    assert f"of {data} the split train is read: train.jsonl. Left out: heldout.jsonl, rated.jsonl. To read" in said
    assert f"problems.jsonl, rated.answers.jsonl, rated.problems.jsonl of {data}: not read" in said
    check.main([*words, "--model.prompt_style", "system", "--data.heldout", str(data / "heldout.jsonl")])
    assert "data.heldout: 1 questions" in capsys.readouterr().out, "a file that is named is read"


@pytest.mark.e2e
def test_a_learner_that_is_started_alone_names_them_too(tiny_policy: Path, tmp_path: Path) -> None:
    """As pools, Slurm and Kubernetes start it. The learner goes on to wait for actors, and is ended then."""
    config = _config(tmp_path, [{"question": f"{gold}?", "answer": gold, "language": "en"} for gold in ("1", "few")])
    flags = {
        "data.train": config.data.train, "reward.terms.default.math": "1.0", "model.path": tiny_policy,
        "model.dtype": "float32", "run.languages": '["en"]', "run.dir": tmp_path / "run", "router.own_language": 0,
        "learner.address": f"ipc://{tmp_path}/q", "learner.steps": 1, "learner.groups_per_step": 1,
    }  # fmt: skip
    words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    learner = subprocess.Popen(
        [str(ROOT / "scripts" / "launch_learner.sh"), *words], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    patience = Timer(240, learner.kill)
    patience.start()
    try:
        assert learner.stderr is not None
        told = []
        for line in learner.stderr:
            told.append(line)
            if "unread:" in line:
                break
    finally:
        patience.cancel()
        learner.terminate()
        rest = learner.communicate()[1]
    assert "WARNING" in told[-1] and f"{config.data.train}, row 1, answer" in told[-1], "".join(told) + rest


@pytest.mark.parametrize(
    ("recipe", "verifies"),
    [
        ("naive-grpo", True), ("strict-lc", True), ("slc-rl", True), ("m-thinker", True), ("adamame", True),
        ("sp3f", True), ("mcot", True), ("csc", False), ("pb-rlsvr", False), ("lrpo", False),
    ],
)  # fmt: skip
def test_a_reward_function_that_verifies_answers_is_asked_for_golds_that_can_be_read(
    recipe: str, verifies: bool, tmp_path: Path
) -> None:
    rows = [{"question": f"Number {number}?", "answer": gold, "language": "en"} for number, gold in enumerate(GOLDS)]
    config = load([str(find_recipe(recipe)), "--model.path", "m", "--data.train", _written(tmp_path, rows)])
    found = unread_golds(config.data.train, config).found
    assert [problem.row for problem in found] == ([3, 5] if verifies else [])


@pytest.mark.parametrize(
    ("line", "verifies"),
    [
        ("await tools.verify(group.answers[0].final, group.accepted)", True),
        ("await tools.verify_all([(one.final, [group.reference], '') for one in group.answers])", True),
        ("await tools.verify(group.answers[0].final, [group.answers[1].final])", False),
        ("group.accepted", False),
    ],
)
def test_so_is_one_of_the_users_own(line: str, verifies: bool, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(f"async def score(group, tools):\n    return {line}\n")
    train = _written(tmp_path, [{"question": "?", "answer": "nobody knows", "language": "en"}])
    config = load([
        "--data.train", train, "--reward.function", f"{tmp_path}/mine.py:score", "--reward.parts", "{a = 1.0}",
    ])  # fmt: skip
    found = unread_golds(train, config).found
    assert [f"{tmp_path}/mine.py:score calls" in problem.reason for problem in found] == [True] * verifies


def test_rows_without_a_column_that_is_named_are_listed(
    tiny_policy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hints: list[dict[str, object]] = [{"hint": "h"}, {}, {"hint": None}, {"hint": " "}, {"hint": {"a": 1}}]
    rows = [{"question": f"{n}?", "answer": "a", "language": "en", "meta": one} for n, one in enumerate(hints)]
    flags = ["--data.train", _written(tmp_path, rows), "--data.columns", "{hint = 'meta.hint', topic = 'meta.topic'}"]
    config = load(flags)
    found = rows_without_columns(config.data.train, config).found
    assert [(one.row, one.key, one.kind) for one in found] == [(n, "meta.hint", "lacks") for n in (1, 2, 3)]
    rows[0]["meta"] = {"hint": "h", "topic": "sums"}
    _written(tmp_path, rows)
    check.main([*flags, "--model.path", str(tiny_policy), "--run.dir", str(tmp_path / "run"), *_SHORT])
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("lacks: ")]
    assert len(said) == 3 and "questions.jsonl, row 1, meta.hint: it is missing or empty" in said[0]


@pytest.mark.parametrize("recipe", recipe_files())
def test_no_recipe_is_said_to_leave_its_columns_unread(recipe: str) -> None:
    columns = load([str(find_recipe(recipe))]).data.columns
    assert not warning_of_columns(load([str(find_recipe(recipe))])), columns


def test_a_column_that_nothing_reads_is_named() -> None:
    file = str(find_recipe("m-thinker"))
    anchor = ["--data.columns.language", "data_source", "--data.columns.anchor", "extra_info.en_answer"]
    said = warning_of_columns(load([file, *anchor]))
    assert said.startswith(
        'reward.function = "configs/recipes/m_thinker.py:m_thinker" does not read data.columns.anchor'
    )
    assert said.endswith("; it reads english_question, english_thought")
    hint, pivot = ["--data.columns.hint", "hint"], ["--reward.pivot", "hint", "--reward.terms.default.pivot", "1"]
    assert warning_of_columns(load(hint)).startswith("no term of the reward reads data.columns.hint; ")
    assert not warning_of_columns(load([*hint, *pivot])) and "hint" in warning_of_columns(load([*hint, *pivot[:2]]))


@pytest.mark.parametrize(
    ("code", "unread"),
    [
        ("return group.extra['other']", True),
        ("return 1.0", True),
        ("return group.extra.get('hint', '')", False),
        ("return column(group, 'hint')", False),
        ("return group.extra.items()", False),
        ("extra = group.extra\n    return extra[tools.config.pivot]", False),
        ("return dataclasses.asdict(group)", False),
        ("from mine import column\n    return column(group)", False),
        ("from . import column\n    return column(group)", False),
    ],
)
def test_nothing_is_said_of_a_column_that_may_be_read(code: str, unread: bool, tmp_path: Path) -> None:
    (tmp_path / "score.py").write_text(f"import dataclasses\n\n\ndef score(group, tools):\n    {code}\n")
    function = ["--reward.function", f"{tmp_path}/score.py:score", "--reward.parts", "{a = 1.0}"]
    said = warning_of_columns(load(["--data.columns.hint", "hint", *function]))
    assert ("does not read data.columns.hint" in said) is unread and bool(said) is unread


def _checked(tmp_path: Path, policy: Path, questions: int, *flags: str) -> None:
    """Runs the command on so many short questions in German."""
    rows = [{"question": f"Frage {n}?", "answer": "a", "language": "de"} for n in range(questions)]
    own = ["--data.train", _written(tmp_path, rows), "--model.path", str(policy), "--run.dir", str(tmp_path / "run")]
    check.main([*own, "--model.prompt_style", "system", *_SHORT, *flags])


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--learner.epochs", "1", "--learner.groups_per_step", "256"], "learner.epochs = 1"),
        (["--learner.epochs", "1", "--learner.groups_per_step", "2", "--learner.warmup_steps", "10"],
         "learner.warmup_steps = 10 must be below the 4 steps"),
        (["--actor.engine_args.context_length", "64"], "sampling.max_new_tokens = 64 are more than the 64 tokens"),
    ],
)  # fmt: skip
def test_what_the_learner_would_refuse_of_the_data_is_refused(
    flags: list[str], complaint: str, tiny_policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        _checked(tmp_path, tiny_policy, 8, *flags)
    assert complaint in f"{end.value} {capsys.readouterr().err}" and end.value.code


def test_languages_that_the_default_embedder_does_not_know_are_named(
    tiny_policy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    languages = ["--run.languages", '["en", "de", "sw"]']

    def said(*flags: str) -> str:
        caplog.clear()
        _checked(tmp_path, tiny_policy, 8, *languages, *flags)
        return "\n".join(record.getMessage() for record in caplog.records if record.levelname == "WARNING")

    found = said()
    assert 'reward.embedder = "use" was not trained on sw (Swahili): ' in found
    assert 'Set reward.embedder to a model that was, as "jhu-clsp/mmBERT-small"' in found
    assert "not trained" not in said("--reward.embedder", "mine")
    assert "not trained" not in said("--reward.terms.default", "{exact = 1.0}")
    assert "not trained" in said("--reward.terms.sums.exact", "1.0"), "these questions have another topic"
    languages = ["--run.languages", '["en", "de"]']
    assert "not trained" not in said()


def test_languages_that_no_answer_can_be_checked_for_are_named(
    tiny_policy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    declared = ["--run.other_languages", '{tir = "Tigrinya"}', "--run.languages", '["en", "ti"]']
    declared += ["--reward.terms.default", "{exact = 1.0}"]
    _checked(tmp_path, tiny_policy, 8, *declared, "--reward.unchecked", "pass")
    assert "the language model does not know tir (Tigrinya): whether an answer is in it is not checked" in caplog.text
    caplog.clear()
    _checked(tmp_path, tiny_policy, 8, *declared, "--reward.near_languages", '{tir = ["am"]}')
    assert "does not know" not in caplog.text


def test_questions_that_no_answer_can_be_checked_for_are_refused(
    tiny_policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """lid.176 without German, in which the questions are, and none of the languages of the run."""
    file = tmp_path / "own.ftz"
    file.write_bytes(shipped_model().read_bytes().replace(b"__label__de\0", b"__label__xx\0"))
    flags = ["--reward.language_model", str(file), "--run.languages", '["en", "fr"]']
    flags += ["--reward.terms.default", "{exact = 1.0}"]
    with pytest.raises(SystemExit):
        _checked(tmp_path, tiny_policy, 8, *flags, "--router.mode", "monolingual")
    error = capsys.readouterr().err
    assert "8 questions of data.train are asked in their own language" in error
    assert "so that no answer with letters could earn a reward. The first is row 0, in de (German): leave" in error
    with pytest.raises(SystemExit):
        _checked(tmp_path, tiny_policy, 8, *flags, "--router.mode", "monolingual", "--reward.gate_short", "pass")
    assert (
        'could earn a reward unless it is short, with reward.gate_short = "pass". The first' in capsys.readouterr().err
    )
    _checked(tmp_path, tiny_policy, 8, *flags, "--router.mode", "policy", "--model.prompt_style", "select")
    _checked(tmp_path, tiny_policy, 8, *flags, "--router.mode", "monolingual", "--reward.unchecked", "pass")


_FUNCTIONS = """
async def plain(group, tools):
    return await helper(group, tools)


async def helper(group, tools):
    return [{"a": await tools.judge([], float)} for _ in group.answers]


async def where_there_is_one(group, tools):
    return await helper(group, tools) if tools.config.judges else [{"a": 1.0} for _ in group.answers]


def without(group, tools):
    return [{"a": 1.0} for _ in group.answers]


def of_one(group):
    return []


def of_trl(completions, **kwargs):
    return [1.0 for _ in completions]


def of_trl_too(prompts, completions, **kwargs):
    return [1.0 for _ in completions]


def of_verl(data_source, solution_str, ground_truth, extra_info=None):
    return 1.0
"""
_JUDGED = ["--reward.terms.default.judge", "1.0", "--reward.judges", '["m@http://127.0.0.1:1/v1"]']


@pytest.mark.parametrize(
    ("name", "flags", "complaint"),
    [
        ("gone.py:score", [], "reward.function: there is no file "),
        ("mine.py", [], 'the form is "FILE.py:NAME"'),
        ("mine.py:scor", [], "defines no 'scor'"),
        ("mine.py:of_one", [], "cannot be called with the two arguments group and tools: too many"),
        ("mine.py:of_trl", [], "too many positional arguments; write `def score(group, tools)`, plain or async"),
        ("mine.py:of_trl_too", [], "takes the arguments of a reward of TRL; write `def score(group, tools)`"),
        ("mine.py:of_verl", [], "missing a required argument: 'ground_truth'; write `def score(group, tools)`"),
        ("mine.py:without", [], ""),
        ("mine.py:without", ["--learner.step_reward", "mine.py:gone"], "learner.step_reward: there is no file "),
        ("", ["--reward.terms.default.exakt", "1.0"], "has an unknown term 'exakt'; did you mean 'exact'?"),
        ("", ["--reward.terms.default.judge", "1.0"], "needs reward.judges"),
        ("", ["--reward.terms.default.judge", "1.0", "--reward.judges", '["m@http://127.0.0.1:1/v1"]'], ""),
        ("", [*_JUDGED, "--reward.judge_prompt", 'Grade {answer} as {"grade": 7}'],
         "reward.judge_prompt names ['\"grade\"']; it may name"),
        ("", [*_JUDGED, "--reward.judge_prompt", "Grade {answer} as }"], "write {{ and }} for { and }"),
        ("", [*_JUDGED, "--reward.judge_prompt", "Grade {answer:d}"], "cannot be filled in: "),
        ("", [*_JUDGED, "--reward.judge_prompt", 'Grade {answer} as {{"grade": 7}}'], ""),
    ],
)  # fmt: skip
def test_a_reward_that_no_process_would_take_is_refused(
    name: str, flags: list[str], complaint: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(_FUNCTIONS)
    function = ["--reward.function", f"{tmp_path}/{name}", "--reward.parts", "{a = 1.0}"] if name else []
    config = load([*function, *flags])
    if not complaint:
        check_reward(config)
        return
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        check_reward(config)


@pytest.mark.parametrize(
    ("name", "judges", "warned"),
    [
        ("plain", "[]", True),
        ("plain", '["m@http://127.0.0.1:1/v1"]', False),
        ("where_there_is_one", "[]", False),
        ("without", "[]", False),
    ],
)
def test_a_function_that_seems_to_ask_a_judge_where_there_is_none_is_named(
    name: str, judges: str, warned: bool, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(_FUNCTIONS)
    config = load(
        ["--reward.function", f"{tmp_path}/mine.py:{name}", "--reward.parts", "{a = 1.0}", "--reward.judges", judges]
    )
    assert ("seems to ask a judge" in warning_of_judges(config.reward)) == warned


@pytest.mark.parametrize("recipe", [*recipe_files()])
def test_the_reward_of_every_recipe_loads(recipe: str) -> None:
    check_reward(load([str(recipe_files()[recipe])]))


def test_data_are_checked_with_their_reward(tiny_policy: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as end:
        _checked(tmp_path, tiny_policy, 8, "--reward.function", "gone.py:score", "--reward.parts", "{a = 1.0}")
    assert end.value.code == 2


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda request: "8", ""),
        (lambda request: "8" if "Frage 1?" in request["messages"][0]["content"] else (400, "too long"), ""),
        (lambda request: (400, "no such field: stop"), "can grade no answer: status 400: no such field: stop"),
        (lambda request: "I had rather not.", "can grade no answer: it has to be a whole number from 0 to 10"),
        (lambda request: (503, "still loading"), None),
    ],
)
def test_a_judge_is_asked_before_a_run_begins(
    answer: Answer,
    told: str | None,
    tiny_policy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One that can grade nothing ends it; one that is not there yet is told of."""
    with serving(answer) as url:
        flags = ["--reward.terms.default", "{judge = 1.0}", "--reward.judges", f'["m@{url}"]']
        if told:
            with pytest.raises(SystemExit) as end:
                _checked(tmp_path, tiny_policy, 8, *flags)
            assert told in f"{end.value} {capsys.readouterr().err}"
            return
        _checked(tmp_path, tiny_policy, 8, *flags)
    said = [record.getMessage() for record in caplog.records if "cannot be asked" in record.getMessage()]
    assert bool(said) == (told is None) and all("still loading" in one for one in said)


def test_a_judge_of_a_function_only_has_to_answer(tiny_policy: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(_FUNCTIONS)
    function = ["--reward.function", f"{tmp_path}/mine.py:without", "--reward.parts", "{a = 1.0}"]
    asked: list[str] = []

    def answer(request: Mapping[str, Any]) -> str:
        asked.append(request["messages"][0]["content"])
        return "No."

    with serving(answer) as url:
        _checked(tmp_path, tiny_policy, 8, *function, "--reward.judges", f'["m@{url}"]')
    assert asked == ["Reply with the number 5 and nothing else."]


def test_two_files_with_neighbours_of_one_name_find_each_its_own(tmp_path: Path) -> None:
    """In a run they are read by two processes; here by one after the other."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "neighbour.py").write_text(f"of_{name} = 1.0\n")
    reward = "def score(group, tools):\n    return [{'p': of_a} for _ in group.answers]\n"
    (tmp_path / "a" / "r.py").write_text(f"from neighbour import of_a\n{reward}")
    (tmp_path / "b" / "s.py").write_text("from neighbour import of_b\ndef term(step):\n    return of_b\n")
    flags = ["--reward.function", f"{tmp_path}/a/r.py:score", "--reward.parts", "{p = 1.0}"]
    check_reward(load([*flags, "--learner.step_reward", f"{tmp_path}/b/s.py:term"]))
