"""Reward functions of the user's own, judges behind endpoints, and the command that explains scores."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from common.config import ConfigError, RewardConfig
from common.wire import Chat, ScoreRequest
from reward import score as command
from reward import waits
from reward.scored import UnscoredError
from reward.scorer import Scorer
from reward.terms.user_call import RewardFunctionError
from scripts.bench.support.scoring import SENTENCES, request
from tests.support.chat import serving

FUNCTION = '''
import time

async def lengths(group, tools):
    assert [turn.role for turn in group.messages] == ["user"] and group.row == 7
    assert [one.tokens for one in group.answers] == [3, 5]
    bonus = float(group.extra["bonus"])
    return [{"long": bonus * len(one.final), "kept": float(one.detected == one.asked) - 1} for one in group.answers]

def some_missing(group, tools):
    time.sleep(0.01)  # a plain function may block
    return [None if "missing" in one.text else {"long": 1.0, "kept": 0.0} for one in group.answers]

async def one_part_missing(group, tools):
    return [{"long": None if "missing" in one.text else 1.0, "kept": 0.0} for one in group.answers]

async def broken(group, tools):
    return [{"long": 1 / len(one.text.strip("x")), "kept": 0.0} for one in group.answers]

def unawaited(group, tools):
    return [{"long": tools.verify(one.final, group.accepted), "kept": 0.0} for one in group.answers]

async def unawaited_parts(group, tools):
    async def parts(answer):
        return {"long": 1.0, "kept": 0.0}
    return [parts(answer) for answer in group.answers]

async def incomplete(group, tools):
    return [{"long": 1.0} for _ in group.answers]

async def never(group, tools):
    return [tools.never if "never" in one.text else {"long": 1.0, "kept": 0.0} for one in group.answers]

async def one_part_never(group, tools):
    return [{"long": tools.never if "never" in one.text else 1.0, "kept": 0.0} for one in group.answers]

async def each_judged(group, tools):
    grades = [await tools.judge([{"role": "user", "content": one.final}], float) for one in group.answers]
    return [None if grade is None else {"long": grade, "kept": 0.0} for grade in grades]

async def endless(group, tools):
    return [{"long": float("nan"), "kept": 0.0} for _ in group.answers]

class Judged:
    """Compares all answers with each other."""

    async def __call__(self, group, tools):
        grade = await tools.judge([{"role": "user", "content": group.answers[0].final}], int)
        return [None if grade is None else {"long": grade, "kept": 0} for _ in group.answers]
'''


@pytest.fixture
def functions(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FUNCTION)
    return path


def scorer(functions: Path, name: str, **others: Any) -> Scorer:
    parts = {"long": 2.0, "kept": 1.0}
    return Scorer(RewardConfig(function=f"{functions}:{name}", parts=parts, **others))


def asked(answers: list[str], languages: list[str], **others: Any) -> ScoreRequest:
    return request(answers, languages, messages=[Chat(role="user", content="How long?")], row=7, **others)


def test_a_reward_function_sees_the_group_and_its_parts_are_weighed(functions: Path) -> None:
    answers = [SENTENCES["de"], SENTENCES["en"]]
    given = asked(answers, ["de", "de"], tokens=[3, 5], extra={"bonus": "0.5"})
    ((right, wrong),) = scorer(functions, "lengths").score([given])
    assert right.terms == {"long": len(answers[0]) / 2, "kept": 0.0}
    assert right.reward == right.quality == len(answers[0]), "neither bounded nor gated"
    assert wrong.reward == len(answers[1]) - 1 and not wrong.compliant
    # The odd answers are counted as they are with terms.
    one = scorer(functions, "lengths", gate_short_characters=3)
    one.score([asked(["42", ""], ["de", "de"], tokens=[3, 5], extra={"bonus": "0.5"}), given])
    names = ("answers", "empty", "short", "no_language", "not_compliant")
    assert [one.counts[name] for name in names] == [4, 1, 1, 1, 1]
    ((bounded, gated),) = scorer(functions, "lengths", bounded=True, gated=True).score([given])
    assert (bounded.reward, gated.quality, gated.reward) == (1, 1, 0)


@pytest.mark.parametrize("name", ["some_missing", "one_part_missing"])
def test_what_cannot_be_scored_is_masked_or_handed_back_and_never_zero(
    functions: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    one = scorer(functions, name)
    ((fine, missing),) = one.score([asked(["fine", "missing"], ["en", "en"])])
    assert (fine.scored, missing.scored, missing.terms) == (True, False, {})
    assert one.counts["unscored"] == 1
    with pytest.raises(UnscoredError, match=r"2 of 3 answers could not be scored, more than reward.missing_max = 0.5"):
        one.score([asked(["fine", "missing", "missing"], ["en"] * 3)])
    assert one.counts["handed_back"] == 1
    assert "mine.py gives None, although no tool has failed (question 7: 'How long?'; 1 so far)" in caplog.text


@pytest.mark.parametrize("name", ["never", "one_part_never"])
def test_a_group_is_not_scored_again_for_what_a_function_says_will_never_be_there(functions: Path, name: str) -> None:
    one = scorer(functions, name)
    scores = one.score([asked(["fine", "never", "never"], ["en"] * 3)])[0]
    assert [score.scored for score in scores] == [True, False, False]
    assert not any(score.scored for score in one.score([asked(["never"], ["en"])])[0])
    assert one.counts["unscored"] == 3 and not one.counts["handed_back"]


def test_a_group_is_not_scored_again_for_what_a_judge_of_a_function_refuses(functions: Path) -> None:
    """As for the term ``judge``; and it is, as long as anything else could come out another time."""

    def answer(request: dict[str, Any]) -> str | tuple[int, str]:
        text = request["messages"][0]["content"]
        if "words" in text:
            return "I will not say."
        return (503, "out of order") if "down" in text else (400, "too long") if "long" in text else "5"

    with serving(answer) as url:
        one = scorer(functions, "each_judged", judges=(f"m@{url}",))
        scores = one.score([asked(["long", "words", "short"], ["en"] * 3)])[0]
        assert [score.scored for score in scores] == [False, False, True] and one.counts["handed_back"] == 0
        one.close()
        impatient = scorer(functions, "each_judged", judges=(f"m@{url}",), judge_timeout_s=1.0)
        with pytest.raises(UnscoredError):
            impatient.score([asked(["long", "down"], ["en"] * 2)])
        assert impatient.counts["handed_back"] == 1
        impatient.close()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", r"mine\.py:18 in <listcomp>: ZeroDivisionError: division by zero \(question 7: 'How long\?'\)"),
        ("unawaited", r"mine\.py returned \{'long': <coroutine .* for answer 1, which nobody has awaited: write `a"),
        ("unawaited_parts", r"mine\.py returned <coroutine object .* for answer 1, which nobody has awaited: write"),
        ("incomplete", r"mine\.py returned \['long'\] for answer 1; reward\.parts names \['kept', 'long'\]"),
        ("endless", r"for answer 1; values must be finite numbers"),
    ],
)
def test_a_failing_function_is_named_and_costs_its_own_question(functions: Path, name: str, message: str) -> None:
    one = scorer(functions, name)
    bad, good = one.begin([asked(["xx"], ["en"]), asked(["yy"], ["en"])])
    with pytest.raises(ValueError, match=message):
        bad.result()
    if name == "broken":
        assert good.result()[0].score.reward == 1


def test_the_line_is_named_of_a_file_in_the_working_directory(functions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(functions.parent)
    (bad,) = scorer(Path(functions.name), "broken").begin([asked(["xx"], ["en"])])
    with pytest.raises(ValueError, match=r"mine\.py:18 in <listcomp>: ZeroDivisionError"):
        bad.result()


def test_a_function_that_cannot_be_loaded_is_named(functions: Path) -> None:
    with pytest.raises(ConfigError, match=r"mine\.py defines no 'absent'"):
        scorer(functions, "absent")
    with pytest.raises(ConfigError, match=r"no file .*elsewhere\.py"):
        scorer(functions.with_name("elsewhere.py"), "lengths")
    functions.write_text("def f(:\n")
    with pytest.raises(ConfigError, match=r"mine\.py:1: SyntaxError"):
        scorer(functions, "f")
    with pytest.raises(ValueError, match="function and parts go together"):
        RewardConfig(function="mine.py:f")


def test_a_function_that_never_ends_keeps_to_the_deadline_and_holds_up_nobody(functions: Path) -> None:
    functions.write_text(
        "import asyncio\n"
        "async def f(group, tools):\n"
        "    await asyncio.sleep(60 if 'slow' in group.answers[0].text else 0)\n"
        "    return [{'long': 1.0, 'kept': 0.0}]\n"
    )
    one = scorer(functions, "f")
    began = time.monotonic()
    slow, quick = one.begin([asked(["slow"], ["en"], deadline_s=3.0), asked(["quick"], ["en"])])
    assert quick.result()[0].score.reward == 2
    assert not slow.done()
    # While the actor still waits, so that it counts as an attempt.
    with pytest.raises(
        RewardFunctionError, match=r"mine\.py:f has not ended within 2\.\d s \(question 7: 'How long\?'\)"
    ):
        slow.result()
    assert time.monotonic() - began < 30
    one.close()


HANGING = """
import time
from pathlib import Path

def plain(group, tools):
    while "slow" in group.answers[0].text and not Path(__file__).with_name("release").exists():
        time.sleep(0.1)
    return [{"long": 1.0, "kept": 0.0}]
"""


def test_any_number_of_hanging_calls_cost_their_own_questions_and_health_tells(functions: Path) -> None:
    functions.write_text(HANGING)
    one = scorer(functions, "plain")
    release = functions.with_name("release")
    try:
        slow = one.begin([asked(["slow"], ["en"], deadline_s=6.0, id=n) for n in range(40)])
        assert one.begin([asked(["quick"], ["en"], deadline_s=30.0)])[0].result()[0].score.reward == 2
        for future in slow:
            with pytest.raises(
                RewardFunctionError, match=r"mine\.py:plain has not ended within [345]\.\d s \(question 7"
            ):
                future.result()
        assert one.begin([asked(["quick"], ["en"], deadline_s=30.0)])[0].result()[0].score.reward == 2
        assert one.stalled_s() > 0 and one.counts["function_hung"] == 40
    finally:
        release.touch()
    give_up = time.monotonic() + 60
    while one.stalled_s() and time.monotonic() < give_up:
        time.sleep(0.05)
    assert not one.stalled_s(), "as they have ended by now"
    one.close()


def test_the_process_ends_although_calls_hang(functions: Path) -> None:
    functions.write_text(HANGING)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.reward.test_custom import asked, scorer\n"
        f"one = scorer(Path({str(functions)!r}), 'plain')\n"
        "slow = one.begin([asked(['slow'], ['en'], deadline_s=2.0)])[0]\n"
        "print(type(slow.exception()).__name__)\n"
        "one.close()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert (ended.stdout, ended.returncode) == ("RewardFunctionError\n", 0), ended.stderr


def test_a_function_is_not_blamed_for_the_time_that_its_tools_take(functions: Path) -> None:
    functions.write_text(
        "async def f(group, tools):\n"
        "    grade = await tools.judge([{'role': 'user', 'content': group.answers[0].final}], int)\n"
        "    return [{'long': grade, 'kept': 0.0}]\n"
    )
    release = threading.Event()

    def answer(request: dict[str, Any]) -> str:
        release.wait(60)
        return "1"

    with serving(answer) as url:
        one = scorer(functions, "f", judges=(f"m@{url}",))
        with pytest.raises(UnscoredError, match=r"mine\.py:f has not ended within 2\.\d s: it waits for its tools"):
            one.begin([asked(["slow"], ["en"], deadline_s=3.0)])[0].result()
        release.set()
        one.close()


ODD = """
import asyncio, functools, sys

def leaves(group, tools):
    sys.exit(2)

async def part_leaves(group, tools):
    async def part(answer):
        if "bad" in answer.text:
            sys.exit(3)
        return {"long": 1.0, "kept": 0.0}
    return await asyncio.gather(*map(part, group.answers))

async def cancelled(group, tools):
    raise asyncio.CancelledError("nobody asked")

async def cancels_itself(group, tools):
    asyncio.current_task().cancel()
    await asyncio.sleep(60)

def plainly_cancelled(group, tools):
    raise asyncio.CancelledError

def runs_out(group, tools):
    return next(iter([]))

async def holds_off(group, tools):
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass

async def fine(group, tools, value=1.0):
    return [{"long": value, "kept": 0.0} for _ in group.answers]

def wrapped(group, tools):
    return fine(group, tools)

partial, anonymous = functools.partial(fine, value=3.0), lambda group, tools: fine(group, tools, 2.0)

def huge(group, tools):
    return [{"long": 10**400, "kept": 0.0}]

def unwritable(group, tools):
    return [{"long": 10**5000, "kept": 0.0}]

def bare(group, tools):
    return [10**5000]

def endless_sum(group, tools):
    return [{"long": 1e308, "kept": 0.0}]

def texts(group, tools):
    return [{"long": "1.0", "kept": 0.0}]
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("leaves", r"mine\.py:5 in leaves: SystemExit: 2"),
        ("part_leaves", r"mine\.py:10 in part: SystemExit: 3"),
        ("cancelled", r"mine\.py:15 in cancelled: CancelledError: nobody asked"),
        ("cancels_itself", r"mine\.py:cancels_itself cancelled itself"),
        ("plainly_cancelled", r"mine\.py:22 in plainly_cancelled: CancelledError"),
        ("runs_out", r"mine\.py:25 in runs_out: StopIteration"),
        ("holds_off", r"mine\.py:holds_off has not ended within 2\.\d s"),
        ("huge", r"mine\.py returned \{'long': 10000000000.*values must be finite"),
        ("unwritable", r"mine\.py returned a dict that cannot be written out for answer 1; values must be finite"),
        ("bare", r"mine\.py returned a int that cannot be written out for answer 1; reward\.parts names"),
        ("endless_sum", r"mine\.py:endless_sum returned \{'long': 1e\+308, 'kept': 0\.0\} .* add up to inf"),
        ("texts", r"values must be finite"),
    ],
)
def test_whatever_a_function_does_its_question_is_answered_and_the_next_one_too(
    functions: Path, name: str, message: str
) -> None:
    functions.write_text(ODD)
    one = scorer(functions, name)
    for _ in range(2):
        with pytest.raises(RewardFunctionError, match=rf"{message}.*\(question 7: 'How long\?'\)"):
            one.begin([asked(["bad"], ["en"], deadline_s=3.0)])[0].result(60)
    one.check()
    one.close()


def test_a_sum_that_is_not_finite_is_told_where_rewards_are_bounded_too(functions: Path) -> None:
    functions.write_text(ODD)
    one = scorer(functions, "endless_sum", bounded=True)
    with pytest.raises(RewardFunctionError, match="add up to inf"):
        one.score([asked(["a"], ["en"])])
    one.close()


@pytest.mark.parametrize(("name", "reward"), [("wrapped", 2.0), ("partial", 6.0), ("anonymous", 4.0)])
def test_a_plain_function_may_wrap_an_async_one(functions: Path, name: str, reward: float) -> None:
    functions.write_text(ODD)
    one = scorer(functions, name)
    assert [score.reward for score in one.score([asked(["a", "b"], ["en"] * 2)])[0]] == [reward] * 2
    one.close()


def test_a_file_that_ends_the_process_is_named(functions: Path) -> None:
    functions.write_text("import argparse\n\nargparse.ArgumentParser().parse_args(['--odd'])\n")
    with pytest.raises(ConfigError, match=r"mine\.py:3 in <module>: SystemExit: 2"):
        scorer(functions, "f")


def test_a_blocking_coroutine_is_named_in_the_log(
    functions: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(waits, "_BLOCKED_S", 0.5)
    monkeypatch.setattr(waits, "_BEAT_S", 0.1)
    functions.write_text(
        "import time\nasync def f(group, tools):\n    time.sleep(2)\n    return [{'long': 1.0, 'kept': 0.0}]\n"
    )
    one = scorer(functions, "f")
    future = one.begin([asked(["a"], ["en"])])[0]
    while not future.done():
        one.check()
        time.sleep(0.1)
    assert caplog.text.count('mine.py", line 3, in f') == 1
    one.close()


def test_a_part_may_not_have_the_name_of_the_headers_term() -> None:
    with pytest.raises(ValueError, match="parts may not name 'selection'"):
        RewardConfig(function="mine.py:f", parts={"selection": 1.0})


# --- judges -----------------------------------------------------------------------------------------------------------


class Judge:
    """Grades by the length of the last line; slow, rate-limited and sometimes failing."""

    def __init__(self, seed: int, trouble: float) -> None:
        self.calls, self.down = Counter[str](), False
        self._random, self._trouble, self._lock = random.Random(seed), trouble, threading.Lock()

    def __call__(self, request: dict[str, Any]) -> str | tuple[int, str] | tuple[int, str, dict[str, str]]:
        with self._lock:
            draw, self.calls["all"] = self._random.random(), self.calls["all"] + 1
        time.sleep(0.02 * draw)
        if self.down or draw < self._trouble / 2:
            return 503, "out of order"
        if draw < self._trouble:
            return 429, "slowly", {"Retry-After": "0.1"}
        text = request["messages"][-1]["content"]
        self.calls["answered"] += 1
        return f"{len(text) % 11}"


def test_a_judge_that_is_slow_limited_and_failing_changes_no_grade(tmp_path: Path, seed: int) -> None:
    judges = [Judge(seed, 0.3), Judge(seed + 1, 0.3)]
    with serving(judges[0]) as first, serving(judges[1]) as second:
        config = RewardConfig(
            terms={"default": {"judge": 1.0}}, judges=(f"m@{first}", f"m@{second}"), judge_prompt="{answer}",
            judge_timeout_s=30, judge_calls=8,
        )  # fmt: skip
        one = Scorer(config, directory=tmp_path)
        batch = [asked([f"{SENTENCES['en']} {'ab' * n}!" for n in range(k, k + 4)], ["en"] * 4) for k in range(6)]
        found = one.score(batch)
        for given, scores in zip(batch, found, strict=True):
            expected = [len(answer) % 11 / 10 for answer in given.answers]
            assert [score.terms["judge"] for score in scores] == expected, "an outage is no grade"
        assert all(judge.calls["answered"] for judge in judges), "they share the work"
        assert one.counts["judge_cached"] + sum(judge.calls["answered"] for judge in judges) == 24
        assert one.counts["judge_tokens_read"] > 0
        one.close()
        files = [path.name for path in tmp_path.glob("judgements*.sqlite")]
        assert files == ["judgements-0.sqlite"], "of this replica alone, as the others may run elsewhere"

        for judge in judges:
            judge.down = True
        again = Scorer(config.model_copy(update={"judge_timeout_s": 0.5}), directory=tmp_path)
        assert again.score(batch) == found, "judgements are kept on disk"
        fresh = asked([SENTENCES["en"] + " never seen before"], ["en"])
        began = time.monotonic()
        with pytest.raises(UnscoredError):
            again.score([fresh])
        assert time.monotonic() - began < 20, "the deadline holds"
        again.close()


@pytest.mark.parametrize("refusal", [(400, "too long for this model"), "I'm sorry, I can't grade that.", "8 or 9"])
def test_answers_that_a_judge_refuses_are_missing_and_not_asked_about_for_ever(refusal: str | tuple[int, str]) -> None:
    """Also one that refuses in words."""

    def answer(request: dict[str, Any]) -> str | tuple[int, str]:
        return refusal if "long" in request["messages"][0]["content"] else "5"

    with serving(answer) as url:
        config = RewardConfig(terms={"default": {"judge": 1.0}}, judges=(f"m@{url}",), judge_prompt="{answer}")
        one = Scorer(config)
        answers = [f"This is a {word} answer." for word in ("long", "longer", "short")]
        first, second, third = one.score([asked(answers, ["en"] * 3)])[0]
        assert [first.scored, second.scored, third.scored] == [False, False, True] and third.quality == 0.5
        assert one.counts["unscored"] == 2 and not one.counts["handed_back"]
        one.close()


def test_a_slow_judge_that_declines_in_words_is_not_an_outage() -> None:
    """It has no time for as many answers as a quick one."""

    def answer(request: dict[str, Any]) -> str:
        if len(request["messages"]) > 1:
            time.sleep(1.5)
        return "I'd rather not."

    with serving(answer) as url:
        terms = {"default": {"judge": 1.0}}
        one = Scorer(RewardConfig(terms=terms, judges=(f"m@{url}",), judge_prompt="{answer}", judge_timeout_s=1.0))
        scores = one.score([asked(["This is an answer.", "This is another answer."], ["en"] * 2)])[0]
        assert [score.scored for score in scores] == [False, False] and not one.counts["handed_back"]
        one.close()


def test_a_judge_waits_beside_the_batches(functions: Path) -> None:
    release = threading.Event()

    def answer(request: dict[str, Any]) -> str:
        if request["messages"][0]["content"] == "slow":
            release.wait(60)
        return "1"

    with serving(answer) as url:
        one = scorer(functions, "Judged", judges=(f"m@{url}",))
        slow, quick = one.begin([asked(["slow"], ["en"])])[0], one.begin([asked(["quick"], ["en"])])[0]
        assert quick.result(60)[0].score.reward == 2 and not slow.done()
        release.set()
        assert slow.result(60)[0].score.reward == 2
        one.close()


def test_terms_that_lack_their_settings_are_refused_at_start() -> None:
    with pytest.raises(ConfigError, match=r"needs reward\.judges"):
        Scorer(RewardConfig(terms={"default": {"judge": 1.0}}))
    with pytest.raises(ConfigError, match=r"unknown term 'similarty'; did you mean 'similarity'"):
        Scorer(RewardConfig(terms={"default": {"similarty": 1.0}}))


# --- further terms ----------------------------------------------------------------------------------------------------


def test_pivot_compares_with_a_column_and_languages_are_told_of_both_parts() -> None:
    terms = {"default": {"pivot": 1.0, "thought_language": 1.0, "answer_language": 1.0}}
    one = Scorer(RewardConfig(terms=terms, pivot="english"))
    thought = f"<think>{SENTENCES['en']}</think>{SENTENCES['de']}"
    given = request([thought, SENTENCES["de"]], ["de", "de"], SENTENCES["ja"], "ja", extra={"english": SENTENCES["en"]})
    first, second = one.score([given])[0]
    plain = Scorer(RewardConfig()).score([request([SENTENCES["de"]], ["de"])])[0][0]
    assert first.terms["pivot"] == pytest.approx(plain.quality, abs=1e-5)
    assert (first.terms["thought_language"], first.terms["answer_language"]) == (0, 1)
    assert second.terms["thought_language"] == 0, "where there is no thought, it is in no language"
    with pytest.raises(ValueError, match=r"has no 'english', which reward\.pivot names"):
        one.score([request([SENTENCES["de"]], ["de"])])


MALAY = "Semua manusia dilahirkan bebas dan samarata dari segi kemuliaan dan hak-hak."
SERBIAN = "Glavni grad Japana je Tokio, a to je veoma veliki grad na obali mora."
MIXED = f"{SENTENCES['de']} Danach spricht sie weiter. We walk home by the river, and the weather is fine today."


@pytest.mark.parametrize(
    ("flags", "in_it"),
    [
        ({}, [1, 1, 1, 1, 0, 0, 0, 0]),
        ({"gate_share": 0.7}, [1, 1, 1, 1, 0, 1, 0, 0]),
        ({"gate_short": "pass", "gate_short_characters": 10}, [1, 1, 1, 1, 0, 0, 1, 1]),
        ({"near_languages": {}}, [1, 0, 0, 1, 0, 0, 0, 0]),
    ],
)
def test_the_terms_and_tools_of_language_say_what_the_gate_says(flags: dict[str, Any], in_it: list[int]) -> None:
    cases = [("42", "de"), (MALAY, "ms"), (SERBIAN, "hr"), (SENTENCES["de"], "de"), (SENTENCES["en"], "de"),
             (MIXED, "de"), ("😀", "de"), ("12 ok", "ja")]  # fmt: skip
    answers = [f"<think>{text}</think>{text}" for text, _ in cases] + [SENTENCES["de"], "<think>1</think>"]
    given = request(answers, [*(language for _, language in cases), "de", "de"])
    terms = {"default": {"thought_language": 1.0, "answer_language": 1.0}}
    texts, languages = zip(*cases, strict=True)
    # The last two answers have no thought, and nothing but a thought; of the second no term of the thought is computed.
    for span, name, last in (("thinking", "thought_language", [0, 1]), ("answer", "answer_language", [1, 0])):
        one = Scorer(RewardConfig(terms=terms, gate_span=span, **flags))
        (scores,) = one.score([given])
        assert [score.compliant for score in scores] == in_it + last
        assert [score.terms[name] for score in scores[:-1]] == in_it + last[:1]
        assert scores[-1].terms == {"answer_language": 0}
        assert one._tools.in_language(texts, languages) == in_it
        one.close()


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_scores_good_rows_and_names_bad_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, Any]] = [
        {
            "question": "?",
            "reference": SENTENCES["en"],
            "language": "de",
            "answers": [SENTENCES["de"], SENTENCES["fr"]],
        },
        {"accepted": ["Tokyo"], "reference_language": "en", "language": "en", "answer": "Tokyo", "topic": "Names"},
        {"reference": SENTENCES["en"], "language": "klingon", "answer": "a"},
        {"reference": 5, "language": "de", "answer": "a"},
    ]
    file = tmp_path / "answers.jsonl"
    file.write_text("\ufeff" + "\n".join([*map(json.dumps, rows), "nonsense", ""]))
    flags = ["--reward.terms.Names.exact", "1"]
    assert command.main([str(file), *flags, "--json"]) == 1
    out, err = capsys.readouterr()
    told = [json.loads(line) for line in out.splitlines()]
    assert [(one["row"], one["answer"]) for one in told] == [(0, 0), (0, 1), (1, 0)]
    config = RewardConfig(terms={"Names": {"exact": 1.0}})
    ((german, french),) = Scorer(config).score([request(rows[0]["answers"], ["de", "de"])])
    assert [one["reward"] for one in told[:2]] == pytest.approx([german.reward, french.reward], abs=1e-6)
    assert told[0]["pair"] == ["de", "en"] and told[0]["foreign"] < 0.1 < told[1]["foreign"]
    assert told[2]["parts"] == {"exact": 1.0}
    for number, reason in ((2, "klingon"), (3, "'reference' is 5; a text is needed"), (4, "no JSON")):
        assert any(f"row {number}: " in line and reason in line for line in err.splitlines()), err
    assert command.main([str(file), *flags]) == 1
    assert "NOT compliant" in capsys.readouterr().out


# --- hostile answers --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_hostile_answers_in_every_group_keep_to_the_deadline_and_cost_nobody_else() -> None:
    pytest.importorskip("math_verify")
    hostile = [
        r"$\boxed{9^{9^{9}}}$", "9**9**9 + 1", r"$\boxed{" + r"\frac{1}{" * 400 + "2" + "}" * 400 + "}$",
        "(" * 20_000 + "1" + ")" * 20_000, "7" * 100_000, r"$\boxed{\sum_{n=1}^{9999999} n^{999}}$",
        r"$\boxed{" + "+".join(f"x^{n}" for n in range(3000)) + "}$", r"$\boxed{100000!}$",
    ]  # fmt: skip
    config = RewardConfig(terms={"default": {"math": 1.0}}, gated=False)
    one = Scorer(config)
    answers = [*hostile, r"The answer is $\boxed{42}$."]
    batch = [
        request(answers, ["en"] * 9, accepted=["42"], id=n, deadline_s=config.request_timeout_s) for n in range(28)
    ]
    began = time.monotonic()
    found = one.score(batch)  # raises TimeoutError for a group that is not done by its deadline
    assert time.monotonic() - began < config.request_timeout_s
    assert all([score.quality for score in scores] == [0.0] * 8 + [1.0] for scores in found), one.counts
    one.close()
