"""How endpoints share work, how long one may ask to wait, how it is reached, and with which key.

The rest of it is tested where judges and translators use it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from common.config import load
from common.endpoint import KEY_FILE, Endpoints, Failure, _connect, _pause, _retry_after, read_api_key, read_grade
from common.process import FatalError
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


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy, no keys, and no names but those of this machine."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("LRPO_KEYS", raising=False)
    look_up = socket.getaddrinfo

    def getaddrinfo(host: Any, *rest: Any, **further: Any) -> Any:
        if str(host).endswith(".example"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return look_up(host, *rest, **further)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def ask(name: str) -> str | Failure:
    async def one() -> str | Failure:
        endpoints = Endpoints([name], attempts=1, timeout_s=60)
        try:
            return await endpoints.ask([{"role": "user", "content": "?"}], str)
        finally:
            await endpoints.close()

    return asyncio.run(one())


def test_an_endpoint_on_the_internet_is_asked_through_the_proxy_and_one_of_our_own_never(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving(lambda _: "by the proxy") as proxy, serving(lambda _: "by itself") as own:
        monkeypatch.setenv("HTTP_PROXY", proxy.removesuffix("/v1"))
        assert ask("m@http://judge.example/v1") == "by the proxy"
        assert ask(f"m@{own}") == "by itself"
        monkeypatch.setenv("NO_PROXY", "judge.example")
        assert isinstance(refused := ask("m@http://judge.example/v1"), Failure)
        assert "judge.example/v1 (model 'm') gives no answer" in refused.reason


@pytest.mark.parametrize("proxy", ["socks9://user:secret-word@10.0.0.1:1", "http://user:secret-word@10.0.0.1:x"])
def test_a_proxy_that_cannot_be_used_is_named_without_its_password(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(
        FatalError, match=r"cannot use the proxy .* for m@http://judge\.example/v1: .*NO_PROXY"
    ) as error:
        ask("m@http://judge.example/v1")
    assert "secret-word" not in str(error.value)
    assert isinstance(ask("m@http://127.0.0.1:9/v1"), Failure), "it does not matter there"


def test_the_key_is_read_from_a_file_beside_the_keys_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_api_key() == ""
    monkeypatch.setenv("LRPO_KEYS", str(tmp_path))
    assert read_api_key() == "", "there need not be one"
    (tmp_path / KEY_FILE).write_text("secret-key\n")
    seen = list[str]()

    def answer(request: dict[str, Any]) -> str:
        seen.append(request["key"])
        return "fine"

    with serving(answer) as url:
        assert ask(f"m@{url}") == "fine"
        monkeypatch.setenv("OPENAI_API_KEY", "another-key")
        assert ask(f"m@{url}") == "fine"
        monkeypatch.setenv("OPENAI_API_KEY", "a-third-key\n")  # as a secret of Kubernetes that was made of a file
        assert ask(f"m@{url}") == "fine"
    assert seen == ["Bearer secret-key", "Bearer another-key", "Bearer a-third-key"]
    for wrong in ("secret key", " ", "secret\x01key", "sécret-key"):
        monkeypatch.setenv("OPENAI_API_KEY", wrong)
        with pytest.raises(FatalError, match="cannot read the key of endpoints from OPENAI_API_KEY: it ") as error:
            read_api_key()
        assert "cret" not in str(error.value)
    monkeypatch.delenv("OPENAI_API_KEY")
    for content, problem in ((b"", "holds 0 words"), (b"secret key\n", "holds 2 words"), (b"\xff", "it is no text")):
        (tmp_path / KEY_FILE).write_bytes(content)
        with pytest.raises(FatalError, match=f"{KEY_FILE}: it.*") as error:
            read_api_key()
        assert problem in str(error.value) and "secret" not in str(error.value)
    (tmp_path / KEY_FILE).unlink()
    (tmp_path / KEY_FILE).mkdir()
    with pytest.raises(FatalError, match="Is a directory"):
        read_api_key()


@pytest.mark.parametrize("key", ["secret-key", "sk-1234"])  # the second one is LiteLLM's
@pytest.mark.parametrize("status", [400, 401, 500, 200])
def test_a_key_that_a_server_repeats_is_in_no_message(
    status: int, key: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)

    def repeat(request: dict[str, Any]) -> str | tuple[int, str]:
        said = str(request["key"])
        return said if status == 200 else (status, f"{'-' * 290}{said}")  # where the message ends

    async def scene(url: str) -> str | Failure:
        endpoints = Endpoints([f"m@{url}"], attempts=1, timeout_s=60)
        try:
            return await endpoints.ask([{"role": "user", "content": "?"}], lambda answer: str(int(answer[-10:])))
        finally:
            await endpoints.close()

    with serving(repeat) as url:
        failure = asyncio.run(scene(url))
    assert isinstance(failure, Failure) and "Bearer" in failure.reason
    assert key[:4] not in failure.reason + caplog.text


@pytest.mark.parametrize("key", ["x", "e", "EMPTY"])
def test_a_key_that_is_none_leaves_messages_as_they_are(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)

    async def scene(url: str) -> str | Failure:
        endpoints = Endpoints([f"m@{url}"], attempts=1, timeout_s=60)
        try:
            return await endpoints.ask([{"role": "user", "content": "?"}], str)
        finally:
            await endpoints.close()

    with serving(lambda request: (400, "the context of exactly 4096 tokens is EMPTY")) as url:
        failure = asyncio.run(scene(url))
    assert isinstance(failure, Failure) and "the context of exactly 4096 tokens is EMPTY" in failure.reason


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


def ask_all(names: Sequence[str], questions: int, calls: int, **others: Any) -> list[str | Failure]:
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
        assert ask_all([f"m@{one}", f"m@{other}"], 60, calls) == ["fine"] * 60
    assert first.calls + second.calls == 60 and abs(first.calls - 30) <= apart, (first.calls, second.calls)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_an_endpoint_with_a_wrong_key_or_model_leaves_its_work_to_the_others(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    wrong, right = Judge(status), Judge()
    with serving(wrong) as one, serving(right) as other:
        assert ask_all([f"typo@{one}", f"m@{other}"], 40, 4) == ["fine"] * 40
        told = [record.message for record in caplog.records if one in record.message]
    assert right.calls == 40 and 1 <= wrong.calls <= 4, "only the calls that were under way when it denied the first"
    assert len(told) == 1 and f"(model 'typo') gives no answer: status {status}" in told[0]


def test_where_every_endpoint_denies_a_question_each_is_named_with_the_cure() -> None:
    judges = [Judge(404), Judge(401)]
    with serving(judges[0]) as one, serving(judges[1]) as other:
        found = ask_all([f"typo@{one}", f"m@{other}"], 3, 1)
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
        assert ask_all([f"m@{url}"], 8, 8) == ["fine"] * 8
    assert judge.calls == 16 and time.monotonic() - began < 10, "a pause of half a second, and not of its 2^7-fold"


def test_an_outage_may_last_for_any_number_of_failures() -> None:
    server = _connect("m@http://127.0.0.1:1/v1", 1.0)
    server.failures = 5000
    _pause(server, None, time.monotonic())
    assert 29 < server.resumes - time.monotonic() <= 30


@pytest.mark.parametrize(
    ("said", "grade"),
    [
        ("-3", -3), ("Grade: \u22123", -3), ("**-3**", -3), ("(-3)", -3), ("Grade:-3/5", -3), ("Note: \u20133", -3),
        ("3", 3), ("Grade - 3", 3), ("Grade-3", 3), ("Grade --3", 3), ("Grade \u2014 3", 3), ("- 3", 3), ("3/5", 3),
        ("3 / 5.", 3), ("-7", None), ("3-4", None), ("Score: -3-4", None), ("7", None), ("none", None),
    ],
)  # fmt: skip
def test_a_grade_has_its_sign(said: str, grade: int | None) -> None:
    if grade is None:
        with pytest.raises(ValueError, match="whole number from -5 to 5"):
            read_grade(said, -5, 5)
    else:
        assert read_grade(said, -5, 5) == grade
    with pytest.raises(ValueError, match="whole number from 0 to 10"):
        read_grade("-3", 0, 10)


@pytest.mark.parametrize(
    ("said", "thoughts", "read"),
    [
        ("<think>The answer has 2 parts, so 8.</think>\n\n8", False, "8"),
        ("2 parts.</think> 8", False, "8"),  # the chat template has opened the thought
        ("8", False, "8"),
        ("<think>2 parts, so", False, None),
        ("<think>1</think>8", True, "<think>1</think>8"),
    ],
)
def test_what_follows_a_thought_is_read(said: str, thoughts: bool, read: str | None, tmp_path: Path) -> None:
    """Also of an answer that was kept, and of one that is asked for again."""
    heard: list[list[dict[str, str]]] = []

    def answer(request: dict[str, Any]) -> str:
        heard.append(request["messages"])
        return said

    async def one() -> str | Failure:
        endpoints = Endpoints([f"m@{url}"], tmp_path / "kept.sqlite", thoughts=thoughts)
        try:
            return await endpoints.ask([{"role": "user", "content": "?"}], str)
        finally:
            await endpoints.close()

    with serving(answer) as url:
        found = [asyncio.run(one()) for _ in range(2)]
    if read is None:
        assert all(isinstance(one, Failure) and one.kind == "unusable" for one in found)
        assert "a thought without an end" in str(found[0]) and "a thought without an end" in heard[1][-1]["content"]
    else:
        assert found == [read, read] and len(heard) == 1


def test_fields_of_a_request_have_any_form_of_json() -> None:
    flags = "{chat_template_kwargs = {enable_thinking = false}, stop = ['a'], seed = 1}"
    sampling = load(["--reward.judge_sampling", flags]).reward.judge_sampling
    heard: list[dict[str, Any]] = []

    def answer(request: dict[str, Any]) -> str:
        heard.append(request)
        return "8"

    async def one(url: str) -> None:
        endpoints = Endpoints([f"m@{url}"], sampling=sampling)
        await endpoints.ask([{"role": "user", "content": "?"}], str)
        await endpoints.close()

    with serving(answer) as url:
        asyncio.run(one(url))
    assert heard[0]["chat_template_kwargs"] == {"enable_thinking": False}
    assert (heard[0]["stop"], heard[0]["seed"], heard[0]["temperature"]) == (["a"], 1, 0.0)
