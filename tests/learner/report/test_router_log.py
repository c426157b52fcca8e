"""``router.jsonl`` after a run that was killed at any moment: whole lines up to the checkpoint stay, others go."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest

from learner.report.best_effort import BestEffortFiles
from learner.report.router_log import RouterLog

LINES = [{"step": step, "topics": {"天文学\u2028とΩ": 0.5, "a\x0bb": step}} for step in (5, 10, 15)]


def written(path: Path) -> bytes:
    log = RouterLog(path, 0, BestEffortFiles())
    for line in LINES:
        log.append(line)
    return path.read_bytes()


def kept(path: Path) -> list[object]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def test_a_resumed_run_keeps_every_line_up_to_its_step(tmp_path: Path) -> None:
    path = tmp_path / "router.jsonl"
    assert written(path).count(b"\n") == 3
    RouterLog(path, 10, BestEffortFiles()).append({"step": 11})
    assert kept(path) == [*LINES[:2], {"step": 11}]


def test_a_line_that_was_cut_anywhere_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "router.jsonl"
    whole = written(path)
    begin = whole.rindex(b"\n", 0, -1) + 1
    for end in range(begin, len(whole) - 1):
        path.write_bytes(whole[:end])
        RouterLog(path, 100, BestEffortFiles())
        assert kept(path) == LINES[:2]
    path.write_bytes(whole[:-1])  # it is whole but for its end
    RouterLog(path, 100, BestEffortFiles()).append({"step": 20})
    assert kept(path) == [*LINES, {"step": 20}]


def test_a_full_disk_costs_no_line_of_the_run(tmp_path: Path) -> None:
    path = tmp_path / "router.jsonl"
    written(path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))  # as good as no room left
    try:
        RouterLog(path, 10, BestEffortFiles())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert kept(path) == LINES[:2]


def test_a_line_that_was_cut_in_the_middle_takes_no_other_with_it(tmp_path: Path) -> None:
    path = tmp_path / "router.jsonl"
    written(path)
    with path.open("a") as lines:
        lines.write('{"step": 20, "to' + json.dumps({"step": 25}) + "\n" + json.dumps({"step": 30}) + "\n")
    RouterLog(path, 100, BestEffortFiles()).append({"step": 101})
    lines_now = path.read_bytes().splitlines()
    assert (
        len(lines_now) == 6 and json.loads(lines_now[4]) == {"step": 30} and json.loads(lines_now[5]) == {"step": 101}
    )


@pytest.mark.parametrize("line", ["5", "{}", "null", '{"step": "x"}', '{"step": null}', "\x00\x00\x00"])
def test_what_is_no_line_of_a_router_is_dropped(line: str, tmp_path: Path) -> None:
    path = tmp_path / "router.jsonl"
    written(path)
    with path.open("a") as lines:
        lines.write(line + "\n")
    RouterLog(path, 100, BestEffortFiles())
    assert kept(path) == LINES
