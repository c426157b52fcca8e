"""Two iterations of filter, anchors and training, which are interrupted and go on; and what they refuse."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from common.config import load
from common.languages import english_name
from common.process import FatalError
from common.wire import Score
from learner.data.problems import Place
from learner.data.rows import QuestionRow
from scripts.data.anchors import Anchored, Part, Plan, parse_columns, parse_rounds, parts
from scripts.data.answering import ScoredAnswer, least_of_right, scored_by
from scripts.data.pass_rate import question_key
from scripts.ops.recipes import find_recipe
from scripts.study.iterate import __main__ as iterate
from scripts.study.iterate import stages
from scripts.study.iterate.record import Record
from tests.support.processes import forked
from tests.support.rows import read_rows

ROOT = Path(__file__).parents[2]

# "en 3 of 4" is answered rightly by the first 3 of 4 answers, "from 2" by the third and all after it. What training
# asks, with two answers a group, is rewarded by their order, and noted down with what came with it.
MINE = """
import json

def graded(group, tools):
    _, first, *rest = group.messages[-1].content.split()
    if len(group.answers) == 2:
        with open({seen!r}, "a") as file:
            file.write(json.dumps([group.messages[-1].content, group.extra]) + "\\n")
        return [{{"right": float(n)}} for n, _ in enumerate(group.answers)]
    return [{{"right": float(n < int(first) if rest else n >= int(first))}} for n, _ in enumerate(group.answers)]
"""


def rows() -> list[dict[str, Any]]:
    """By language: one always right, one never, and five in between; with an anchor in round 1, in round 2, or none."""
    return [
        {"prompt": f"{language} {right} of 4, {number}", "answer": "yes", "language": english_name(language),
         "strong": {"question": f"anchor {('0', '2', '9')[number % 3]}"}, "note": number}
        for language in ("en", "de")
        for number, right in enumerate([4, 0, 1, 2, 3, 1, 2])
    ]  # fmt: skip


@pytest.fixture
def words(tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests" / "support" / "light"))
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows())))
    (tmp_path / "mine.py").write_text(MINE.format(seen=str(tmp_path / "seen.jsonl")))
    return [
        "--run.dir", str(tmp_path / "out"), "--data.train", str(tmp_path / "rows.jsonl"), "--data.columns.question",
        "prompt", "--data.columns.english_question", "strong.question", "--data.columns.english_thought", "strong.old",
        "--model.path", str(tiny_policy), "--model.dtype", "float32", "--run.languages", '["en", "de"]',
        "--router.mode", "monolingual", "--router.rollouts", "2", "--router.own_language", "0",
        "--sampling.max_new_tokens", "4", "--reward.function", f"{tmp_path}/mine.py:graded", "--reward.parts",
        "{right = 1.0}", "--reward.gated", "false", "--reward.addresses", f'["ipc://{tmp_path}/r"]',
        "--learner.address", f"ipc://{tmp_path}/q", "--learner.steps", "2", "--learner.groups_per_step", "2",
        "--learner.lr", "1e-2", "--learner.param_dtype", "float32", "--learner.evaluate", "false",
        "--learner.group_timeout_s", "700", "--actor.start_timeout_s", "400",
    ]  # fmt: skip


OPTIONS = ["--iterations", "2", "--samples", "4", "--per-language", "2", "--unused", "--anchor-rounds", "1,4"]


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.e2e
@pytest.mark.timeout(1800)  # four engines and two runs
def test_two_iterations_that_are_interrupted(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def run(*more: str) -> str:
        with forked():
            iterate.main([*OPTIONS, *words, *more])
        return capsys.readouterr().out

    def refused(*more: str) -> str:
        with pytest.raises(SystemExit) as error:
            run(*more)
        return str(error.value)

    # Between the stages anchors and train of the first iteration.
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(stages, "run_all", interrupted)
        run()
    shown = capsys.readouterr()
    assert "the same command goes on" in shown.err and "iteration 1 of 2, train" in shown.out
    first = Record(out / "iteration-1")
    assert list(first.stages) == ["filter", "anchors"] and not (out / "iteration-2").exists()
    answers = (out / "iteration-1" / "rated.answers.jsonl").read_bytes()
    assert len(answers.splitlines()) == 14, "each question was asked in its own language alone"
    assert first.stages["filter"]["kept"] == 4 and first.stages["filter"]["by_language"] == {"en": 2, "de": 2}
    assert first.stages["filter"]["dropped"] == {"beyond 2 of its language": 6, "always right": 2, "never right": 2}

    # What is not as it was is refused, before anything is done.
    assert "learner.lr: 0.01 -> 0.02" in refused("--learner.lr", "0.02")
    assert "learner.steps: 2 -> 3" in refused("--learner.steps", "3")
    assert "samples: 4 -> 5" in refused("--samples", "5")
    data = tmp_path / "rows.jsonl"
    kept = data.read_text()
    data.write_text(kept.replace('"note": 3', '"note": 33'))
    assert "data.train has other rows" in refused()
    data.write_text(kept)
    code = tmp_path / "mine.py"
    was = code.read_text()
    code.write_text(was + "# another reward\n")
    assert "what reward.function names has changed since" in refused()
    code.write_text(was)
    filtered = out / "iteration-1" / stages.FILTERED_FILE
    whole = filtered.read_bytes()
    filtered.write_bytes(whole + b" ")
    assert "was changed since the stage filter wrote it" in refused()
    filtered.write_bytes(whole)

    # The second iteration is interrupted when its run has ended, before that is written down.
    complete = Record.complete

    def cut_off(self: Record, stage: str, result: dict[str, Any]) -> None:
        if (self.directory.name, stage) == ("iteration-2", "train"):
            raise KeyboardInterrupt
        complete(self, stage, result)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Record, "complete", cut_off)
        run()
    shown = capsys.readouterr()
    assert all(f"iteration 1 of 2, {stage}: done before" in shown.out for stage in ("filter", "anchors"))
    assert (out / "iteration-1" / "rated.answers.jsonl").read_bytes() == answers
    with monkeypatch.context() as patch:
        patch.setattr(stages, "run_all", interrupted)  # nothing is left to train
        said = run()
    assert "iteration 2 of 2, anchors: done before" in said and "exported model: " in said

    seen = [json.loads(line) for line in (tmp_path / "seen.jsonl").read_text().splitlines()]
    trained: list[set[str]] = []
    for number in (1, 2):
        directory = out / f"iteration-{number}"
        record = Record(directory)
        assert list(record.stages) == ["filter", "anchors", "train"]
        rated = read_rows(str(directory / stages.FILTERED_FILE))
        assert all(0 < rate < 1 for row in rated for rate in row["pass_rate"].values() if rate is not None)
        anchored = read_rows(str(directory / stages.ANCHORED_FILE))
        assert [row["prompt"] for row in anchored] == [row["prompt"] for row in rated]
        has = {row["prompt"]: row["english_thought"] is not None for row in anchored}
        assert has == {row["prompt"]: not row["strong"]["question"].endswith("9") for row in rated}
        wanted, made = Counter(row["strong"]["question"] for row in rated), record.stages["anchors"]
        assert made["made"] == sum(made["rounds"].values()) == wanted["anchor 0"] + wanted["anchor 2"]
        assert made["rounds"]["round 2"] >= wanted["anchor 2"], "the first right answer is the third"
        assert made["without"].get("no right answer in 5", 0) == wanted["anchor 9"]
        assert record.stages["train"]["steps"] == 2 and (directory / "run" / "model" / "config.json").exists()
        for row in anchored:
            extra = {"english_question": row["strong"]["question"]}
            extra |= {"english_thought": row["english_thought"]} if row["english_thought"] is not None else {}
            assert [row["prompt"], extra] in seen, "the reward sees the anchors of this iteration"
        trained.append({row["prompt"] for row in rated})
    assert not trained[0] & trained[1], "the second iteration has other questions"
    assert Record(out / "iteration-2").stages["filter"]["refused"] == {"used before": 4}
    settings = json.loads((out / "iteration-2" / "run" / "config.json").read_text())
    assert settings["model"]["path"] == str(out / "iteration-1" / "run" / "model")

    # What another run.dir asks of the same model is known; nothing is left of it.
    other = tmp_path / "other" / "iteration-1"
    other.mkdir(parents=True)
    shutil.copy(out / "iteration-1" / "rated.answers.jsonl", other)
    reason = refused("--run.dir", str(tmp_path / "other"), "--data.pass_rate", "[0.9, 0.95]")
    assert "no question is left to train on" in reason and "12 right in less than 0.9" in reason
    assert "language   questions   mean" in reason and "2 right in more than 0.95" in reason


def test_an_anchor_is_a_part_of_the_answer() -> None:
    columns: dict[str, Part] = {"t": "thought", "a": "answer", "w": "whole"}
    plan, score = Plan(columns), Score(reward=1.0, quality=1.0, similarity=1.0, compliant=True, detected="en")

    def made(text: str, opened: bool = False) -> dict[str, str]:
        return parts(ScoredAnswer(text, False, score), plan, opened)

    assert made("<think>So.</think> 4 ") == {"t": "So.", "a": "4", "w": "<think>So.</think> 4"}
    assert made("So.</think>4", opened=True) == {"t": "So.", "a": "4", "w": "So.</think>4"}
    assert made("It is 4.") == dict.fromkeys("taw", "It is 4.")


def test_words_of_another_form_are_refused() -> None:
    with pytest.raises(FatalError, match="COLUMN=PART"):
        parse_columns(["english_thought=thinking"])
    with pytest.raises(FatalError, match="1,8,16,32"):
        parse_rounds("1,zero")
    with pytest.raises(FatalError, match="NUMBER=FLAGS"):
        iterate.parse_later(["two=--learner.lr 1"])
    with pytest.raises(FatalError, match="there are the iterations 1 to 2"):
        iterate.make_iterations([], 2, {3: ["--learner.lr", "1"]})


def test_settings_of_later_iterations(tmp_path: Path) -> None:
    words = [str(find_recipe("m-thinker")), "--run.dir", str(tmp_path), "--model.path", "m"]
    later = iterate.parse_later(["2=--sampling.max_new_tokens 21952 --learner.microbatch_tokens 24000"])
    made = iterate.make_iterations(words, 3, later)
    assert [one.config.sampling.max_new_tokens for one in made] == [14336, 21952, 21952]
    models = [str(tmp_path / f"iteration-{number}" / "run" / "model") for number in (1, 2)]
    assert [one.config.model.path for one in made] == ["m", *models]
    with pytest.raises(FatalError, match="nobody knows which iteration's model"):
        iterate.make_iterations([*words, "--actor.engine_url", "http://127.0.0.1:1"], 2, {})
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FatalError, match="holds a run that is no iteration"):
        iterate.make_iterations(words, 3, later)


def test_the_anchors_of_a_recipe_are_those_it_reads() -> None:
    def plan(recipe: str, *columns: str) -> Plan:
        config = load([str(find_recipe(recipe)), "--model.path", "m"])
        return iterate.make_plan(config, columns, "English", None, "1,8", stages.Filtering())

    assert plan("m-thinker") == Plan({"english_thought": "thought"}, "en", "english_question", (1, 8))
    assert not plan("m-thinker", "none").columns and not plan("naive-grpo").columns
    assert plan("pb-rlsvr", "english_answer=answer").columns == {"english_answer": "answer"}


def test_a_term_says_what_is_right_where_the_reward_compares_with_what_is_yet_to_be_made() -> None:
    config = load([str(find_recipe("pb-rlsvr")), "--model.path", "m"])
    with pytest.raises(
        FatalError, match=r"of reward.parts = answer, reasoning none says .* alone say it \(--by math\)"
    ):
        least_of_right(config, None)
    by_math = scored_by(config, "math")
    assert least_of_right(by_math, None) == 0.5 and by_math.data == config.data
    reward = by_math.reward
    assert (reward.function, reward.judges, reward.terms) == ("", (), {"default": {"math": 1.0}}) and reward.is_gated
    assert not scored_by(load([str(find_recipe("sp3f"))]), "exact").reward.is_gated, "as the recipe has it"
    assert scored_by(config, "") is config
    with pytest.raises(
        FatalError, match="--by judge: the terms that say whether an answer is right are contains, exact"
    ):
        scored_by(config, "judge")


def test_questions_without_an_anchor_are_left_out_where_that_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reward such as PB-RLSVR's cannot score them. They were not trained on, so a later iteration may have them."""
    source = tmp_path / stages.FILTERED_FILE
    source.write_text("".join(json.dumps({"question": f"{n}?", "answer": "a"}) + "\n" for n in range(3)))
    found = [
        QuestionRow([{"role": "user", "content": f"{n}?"}], "a", "en", [], [], "", Place(str(source), n))
        for n in range(3)
    ]
    keys, fates = [question_key(row) for row in found], tmp_path / stages.FATES_FILE
    lines = [{"key": "other", "fate": "never right"}, *({"key": key, "fate": stages.KEPT} for key in keys)]
    fates.write_text("".join(json.dumps(line) + "\n" for line in lines))
    columns = Plan({"hint": "whole"}, rounds=(1,))

    def made(number: int, only: bool) -> list[str]:
        anchored = Anchored(found, {found[number].place: {"hint": "h"}}, {"round 1": 1})
        monkeypatch.setattr(stages, "make", lambda *_: anchored)
        told = stages.make_anchors(load([]), tmp_path, 1, columns, anchored_only=only)
        questions = [row["question"] for row in read_rows(str(tmp_path / stages.ANCHORED_FILE))]
        assert (told["made"], told["questions"]) == (1, len(questions))
        return questions

    assert made(1, only=False) == ["0?", "1?", "2?"] and stages.kept_keys(tmp_path) == set(keys)
    for number in (1, 2):  # the stage is done anew where it was interrupted, and may find another one
        assert made(number, only=True) == [f"{number}?"] and stages.kept_keys(tmp_path) == {keys[number]}
    told = [json.loads(line)["fate"] for line in fates.read_text().splitlines()]
    assert told == ["never right", "no anchor", "no anchor", "kept"]


def test_what_a_version_before_did_not_know_is_no_other_option(tmp_path: Path) -> None:
    def begun(**options: Any) -> dict[str, Any]:
        return {
            "settings": load([]).model_dump(mode="json"),
            "options": options,
            "named": {},
            "data": {},
            "after": None,
        }

    Record(tmp_path).begin(begun(samples=4, anchors={"language": "en"}))
    same = begun(samples=4, by="", anchored_only=False, anchors={"language": "en", "by": "", "consistent": False})
    Record(tmp_path).check(load([]), same, has_own_model=True)
    with pytest.raises(FatalError, match='by: null -> "math"'):
        Record(tmp_path).check(load([]), {**same, "options": {**same["options"], "by": "math"}}, has_own_model=True)
