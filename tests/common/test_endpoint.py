"""How endpoints share work and how long one may ask to wait; the rest is tested where judges and translators use it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from common.endpoint import Endpoints, Failure, _connect, _pause, _retry_after
from tests.support.chat import serving

_NOON = "Sun, 29 Nov 2026 12:00:00 GMT"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "Sun, 29 Nov 2026 12:00:30 GMT", "date": _NOON}, 30.0),
        ({"retry-after": "Sun, 29 Nov 2026 11:59:00 GMT", "date": _NOON}, 0.0),
        ({"retry-after": "Sun, 29 Nov 2026 12:00:30 GMT"}, None),
        ({"retry-after": "soon", "date": _NOON}, None),
        ({"date": _NOON}, None),
    ],
)
def test_a_date_counts_from_that_of_the_reply_whatever_this_machines_clock_says(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert _retry_after(headers) == seconds


# -- several endpoints -------------------------------------------------------------------------------------------------


class Judge:
    """Counts what it is asked, and answers with a status where it has one."""

    def __init__(self, status: int = 200, failures: int = 0) -> None:
        self.status, self.failures, self.calls = status, failures, 0
        self._lock = threading.Lock()

    def __call__(self, _: dict[str, Any]) -> str | tuple[int, str]:
        with self._lock:
            self.calls += 1
            failing = self.calls <= self.failures
        time.sleep(0.01)
        return "fine" if self.status == 200 and not failing else (503 if failing else self.status, "not here")


def ask(names: Sequence[str], questions: int, calls: int, **others: Any) -> list[str | Failure]:
    async def all_of_them() -> list[str | Failure]:
        endpoints = Endpoints(names, calls=calls, attempts=None, deadline_s=20, **others)
        talks = [[{"role": "user", "content": str(number)}] for number in range(questions)]
        try:
            return list(await asyncio.gather(*(endpoints.ask(talk, str) for talk in talks)))
        finally:
            await endpoints.close()

    return asyncio.run(all_of_them())


@pytest.mark.parametrize(("calls", "apart"), [(1, 0), (8, 20)])  # of several at a time the quicker one takes more
def test_healthy_endpoints_share_the_work(calls: int, apart: int) -> None:
    first, second = Judge(), Judge()
    with serving(first) as one, serving(second) as other:
        assert ask([f"m@{one}", f"m@{other}"], 60, calls) == ["fine"] * 60
    assert first.calls + second.calls == 60 and abs(first.calls - 30) <= apart, (first.calls, second.calls)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_an_endpoint_with_a_wrong_key_or_model_leaves_its_work_to_the_others(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    wrong, right = Judge(status), Judge()
    with serving(wrong) as one, serving(right) as other:
        assert ask([f"typo@{one}", f"m@{other}"], 40, 4) == ["fine"] * 40
        told = [record.message for record in caplog.records if one in record.message]
    assert right.calls == 40 and 1 <= wrong.calls <= 4, "only the calls that were under way when it denied the first"
    assert len(told) == 1 and f"(model 'typo') gives no answer: status {status}" in told[0]


def test_where_every_endpoint_denies_a_question_each_is_named_with_the_cure() -> None:
    judges = [Judge(404), Judge(401)]
    with serving(judges[0]) as one, serving(judges[1]) as other:
        found = ask([f"typo@{one}", f"m@{other}"], 3, 1)
    for failure in found:
        assert isinstance(failure, Failure) and failure.kind == "unreachable"
        assert f"{one} (model 'typo') gives no answer: status 404: not here (check the model's name" in failure.reason
        assert f"{other} (model 'm') gives no answer: status 401" in failure.reason
        assert "set OPENAI_API_KEY" in failure.reason
    assert [judge.calls for judge in judges] == [3, 3], "every question is asked of each: a denial may be over"


def test_a_hiccup_with_many_calls_under_way_is_one_failure() -> None:
    judge = Judge(failures=8)
    began = time.monotonic()
    with serving(judge) as url:
        assert ask([f"m@{url}"], 8, 8) == ["fine"] * 8
    assert judge.calls == 16 and time.monotonic() - began < 10, "a pause of half a second, and not of its 2^7-fold"


def test_an_outage_may_last_for_any_number_of_failures() -> None:
    server = _connect("m@http://127.0.0.1:1/v1", 1.0)
    server.failures = 5000
    _pause(server, None, time.monotonic())
    assert 29 < server.resumes - time.monotonic() <= 30
