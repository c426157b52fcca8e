"""The report: every metric is documented, a long run stays small, and a full disk costs metrics and never the run."""

from __future__ import annotations

import json
import logging
import re
import resource
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html
from tensorboard.plugins.custom_scalar import layout_pb2

from common import diagnostics
from common.header import Header
from common.languages import POLICY_CHOOSES
from common.wire import Rollout
from learner.evaluate.diagnostics import samples, tagged
from learner.evaluate.languages import Evaluation
from learner.groups import Group
from learner.report import report as report_module
from learner.report.metrics import language_metrics, learning_metrics, pool_of
from learner.report.report import Report
from learner.report.text_samples import group_as_markdown
from learner.report.trackers.pages import BAND_FLOOR, PAGES, Chart
from learner.report.trackers.tensorboard_tracker import LINE_RUNS, RUNS, TensorBoardTracker
from scripts.bench.support.reports import configuration, learned, random_step
from tests.support.groups import LANGUAGES, random_rollout, seeded_generator, work

ROOT = Path(__file__).parents[3]
HEADER = Header("<lang_select>\n{code}\n</lang_select>\n", LANGUAGES)


def documented() -> list[str]:
    """Regular expressions of the metrics in the first column of the table."""
    rows = re.findall(r"^\| (`[^|]+) \|", (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8"), re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    return [re.sub(r"[A-Z]+", "[^/]+", name) for name in names]


def write(run_dir: Path, steps: int, first: int = 1, last: int | None = None) -> EventAccumulator:
    rng = seeded_generator()
    report = Report(configuration(run_dir, steps), 2, first - 1)
    report.begin({})
    for number in range(first, (last or steps) + 1):
        report.step(**random_step(rng, number))
        report.router(number, learned(LANGUAGES, 1, 1) if number == first else {"probs": {}})
    values = {
        name: 0.5 for name in ("own", "oracle", "best_fixed", "english", "uniform", "routed", "compliance", "unscored")
    }
    rollouts = [random_rollout(rng) for _ in range(8)]
    for number, one in enumerate(rollouts):
        one.score.terms = {"exact": float(number % 2)}
    answers = samples(rollouts)
    diagnosed = tagged(diagnostics.summarise(answers), "gate")
    done = Evaluation(questions=1, best_fixed_language="en", own_by_language={}, diagnostics=diagnosed, **values)
    for name in ("heldout", "train"):
        report.evaluation(last or steps, name, done)
    report.close()
    found = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    return found


def scalars(run_dir: Path) -> dict[str, str]:
    """The sub-directory of every metric, but for what is there for the charts alone."""
    found: dict[str, str] = {}
    for sub in LINE_RUNS:
        one = EventAccumulator(str(run_dir / "tensorboard" / sub))
        one.Reload()
        tags = one.Tags()["scalars"]
        assert not found.keys() & set(tags), "a metric is in two runs"
        found |= dict.fromkeys(tags, sub)
    del found[BAND_FLOOR]
    return found


def test_an_evaluation_is_kept_question_by_question(tmp_path: Path) -> None:
    rng = seeded_generator()
    groups = [
        Group(work(number, list(LANGUAGES)), "actor", [random_rollout(rng, reward=rng.random()) for _ in LANGUAGES])
        for number in (3, 1)
    ]
    missing = groups[0].rollouts[1]
    groups[0].rollouts[1] = missing.model_copy(update={"score": missing.score.model_copy(update={"scored": False})})
    report = Report(configuration(tmp_path, 3), 2, 0)
    report.answered("after-heldout", groups)
    report.close()
    lines = [json.loads(line) for line in (tmp_path / "evaluations" / "after-heldout.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == [1, 3], "in the order of the rows"
    for line, group in zip(lines, reversed(groups), strict=True):
        rewards = [one.score.reward if one.score.scored else None for one in group.rollouts]
        wanted = dict(zip(group.work.languages, rewards, strict=True))
        assert (line["language"], line["rewards"]) == (group.work.question.language, wanted)
    assert None in lines[1]["rewards"].values()


def test_every_metric_is_documented_and_every_documented_metric_is_written(tmp_path: Path) -> None:
    run = write(tmp_path, 3)
    tags, names = scalars(tmp_path), documented()
    assert len(names) > 40
    for tag in tags:
        assert any(re.fullmatch(name, tag) for name in names), f"{tag} is not in docs/metrics.md"
    for name in names:
        assert any(re.fullmatch(name, tag) for tag in tags), f"nothing writes {name}"
    assert run.Tags()["histograms"] == ["health/staleness"]
    assert {name.split("/")[0] for name in run.Tags()["images"]} == {
        "languages_by_step", "actors_by_step", "staleness_by_step", "router",
    }  # fmt: skip


def test_every_chart_of_the_pages_shows_a_metric_and_every_metric_has_a_chart_or_a_heat_map(tmp_path: Path) -> None:
    run = write(tmp_path, 3)
    layout = layout_pb2.Layout.FromString(run.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    assert [page.title for page in layout.category] == ["Learning", "Health", "Flow", "Languages"]
    charts = [chart for page in layout.category for chart in page.chart]
    lines = [[tag for tag in chart.multiline.tag if tag not in ("zero$", "one$")] for chart in charts]
    bands = [name for chart in charts for one in chart.margin.series for name in (one.value, one.lower, one.upper)]
    tags = [*scalars(tmp_path)]
    for patterns in lines:
        assert not patterns or any(re.match(pattern, tag) for pattern in patterns for tag in tags), patterns
    assert set(bands) == {"health/staleness_max", BAND_FLOOR, "health/staleness_bound"}
    shown = [pattern for patterns in lines for pattern in patterns]
    left = {tag for tag in tags if tag not in bands and not any(re.match(pattern, tag) for pattern in shown)}
    choices = {tag for tag in tags if tag.startswith("selection/")}  # only some runs have them: no page is for them
    maps = {name.replace("_by_step/", "/").replace("actors/", "flow/") for name in run.Tags()["images"]}
    drawn = {tag for tag in tags if tag.rpartition("/")[0] in maps}
    assert left - choices - drawn == {"learning/lr"}


def test_the_lines_of_a_chart_have_colours_of_their_own(tmp_path: Path) -> None:
    write(tmp_path, 3)
    begun = {}
    for sub in RUNS:
        one = EventAccumulator(str(tmp_path / "tensorboard" / sub))
        one.Reload()
        begun[sub] = one.FirstEventTimestamp()
    colour = {sub: number % 7 for number, sub in enumerate(sorted(begun, key=lambda sub: (begun[sub], sub)))}
    assert colour["axis"] == 6, "grey"
    tags = scalars(tmp_path)
    for chart in [chart for page in PAGES.values() for chart in page if isinstance(chart, Chart)]:
        patterns = "|".join(name if name.endswith("/") else f"{name}$" for name in chart.metrics)
        colours = [colour[sub] for tag, sub in tags.items() if re.match(patterns, tag)]
        assert len(set(colours)) == len(colours) <= 6, chart.title
    assert len(RUNS) % 7, "two trainings that are compared have different colours"


@pytest.mark.parametrize("lines", [1, 3, 5])
def test_a_chart_is_fitted_to_its_axis(tmp_path: Path, lines: int, rng: np.random.Generator) -> None:
    """TensorBoard leaves out what is below the 5% and above the 95% quantile of all points of a chart."""
    steps = int(rng.integers(30, 300))
    tracker = TensorBoardTracker(tmp_path, 0)
    for step in range(1, steps + 1):
        tracker.scalars(step, {"learning/reward": 0.5})
    tracker.close()
    axis = EventAccumulator(str(tmp_path / "axis"), size_guidance={"scalars": 0})
    axis.Reload()
    ends = [point.value for name in ("zero", "one") for point in axis.Scalars(name)]
    low, high = np.quantile([*ends, *[0.5] * (lines * steps)], [0.05, 0.95])
    assert (low, high) == (0, 1)


def test_the_staleness_is_that_of_every_token(tmp_path: Path, rng: np.random.Generator) -> None:
    report = Report(configuration(tmp_path, 1), 2, 0)
    report.begin({})
    step = random_step(rng, 7)
    groups = [
        group.model_copy(update={"rollouts": [random_rollout(rng, version=int(rng.integers(0, 7))) for _ in range(4)]})
        for group in step["batch"]
    ]
    report.step(**{**step, "batch": groups})
    report.close()
    runs = {sub: EventAccumulator(str(tmp_path / "tensorboard" / sub)) for sub in LINE_RUNS}
    for run in runs.values():
        run.Reload()
    sub_of = scalars(tmp_path)
    lags = sorted(6 - int(version) for group in groups for rollout in group.rollouts for version in rollout.versions)
    tags = {name: f"health/staleness_{name}" for name in ("mean", "p50", "p99", "max")}
    written = {name: runs[sub_of[tag]].Scalars(tag)[0].value for name, tag in tags.items()}
    assert written["mean"] == pytest.approx(sum(lags) / len(lags), rel=1e-5) and written["max"] == lags[-1]
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        assert sum(lag <= written[name] for lag in lags) >= share * len(lags)
        assert sum(lag < written[name] for lag in lags) < share * len(lags)
    assert runs[""].Histograms("health/staleness")[0].histogram_value.num == len(lags)


def test_answers_without_a_score_count_where_no_score_is_asked_for(tmp_path: Path, rng: np.random.Generator) -> None:
    step = random_step(rng, 1)

    def unscored(rollout: Rollout, language: str) -> Rollout:
        score = rollout.score.model_copy(update={"scored": False, "reward": 0.0})
        return rollout.model_copy(update={"score": score, "language": language, "truncated": True})

    first, second, *others = step["batch"]
    first = first.model_copy(update={"rollouts": [unscored(one, "sw") for one in first.rollouts]})
    second = second.model_copy(update={"rollouts": [unscored(second.rollouts[0], "en"), *second.rollouts[1:]]})
    batch = [first, second, *others]
    every = [rollout for group in batch for rollout in group.rollouts]
    by_language = language_metrics(batch, 0, step["result"])
    for name in {rollout.language for rollout in every}:
        of_language = [rollout for rollout in every if rollout.language == name]
        scored = [rollout.score.reward for rollout in of_language if rollout.score.scored]
        assert by_language["share"][name] == pytest.approx(len(of_language) / len(every))
        lengths = [len(rollout.response_ids) for rollout in of_language]
        assert by_language["length"][name] == pytest.approx(np.mean(lengths))
        assert (name in by_language["reward"]) == bool(scored)
        assert not scored or by_language["reward"][name] == pytest.approx(np.mean(scored))
    assert by_language["truncated"]["sw"] == 1 and "sw" not in by_language["quality"]
    learner = configuration(tmp_path, 1).learner
    metrics = learning_metrics(batch, step["result"], learner)
    assert metrics["learning/tokens"] == pytest.approx(np.mean([len(rollout.response_ids) for rollout in every]))
    spreads = [np.std([one.score.reward for one in group.rollouts if one.score.scored]) for group in batch[1:]]
    assert metrics["learning/reward_std"] == pytest.approx(np.mean(spreads))
    nothing = learning_metrics([first], step["result"], learner)
    assert not {"learning/reward", "learning/compliance", "learning/reward_std"} & nothing.keys()
    report = Report(configuration(tmp_path, 1), 2, 0)
    report.begin({})
    assert "reward none  compliance none" in report.step(**{**step, "batch": [first]})[0]
    report.close()


@pytest.mark.parametrize("most", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_long_run_has_so_many_points_and_each_is_the_mean_of_its_steps(
    most: int, tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert report_module._POINTS == 1000, "TensorBoard shows no more"
    monkeypatch.setattr(report_module, "_POINTS", most)
    ready = [random_step(rng, 1, groups=1) for _ in range(7)]
    report = Report(configuration(tmp_path, 3 * most), 2, 0)
    report.begin({})
    rewards = []
    for number in range(1, 3 * most + 1):
        step = ready[number % 7]
        rewards.append(np.mean([r.score.reward for group in step["batch"] for r in group.rollouts]))
        report.step(**{**step, "number": number})
    report.close()
    run = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    run.Reload()
    points = run.Scalars("learning/reward")
    assert [point.step for point in points] == list(range(3, 3 * most + 1, 3))
    assert [point.value for point in points] == pytest.approx(np.reshape(rewards, (most, 3)).mean(1).tolist(), rel=1e-5)
    assert len(run.Tensors("sample/text_summary")) == 10


def test_a_resumed_run_forgets_the_steps_that_were_undone(tmp_path: Path) -> None:
    write(tmp_path, 10, last=8)
    (tmp_path / "evaluations").mkdir()
    for name in ("before-train", "step-5-train", "step-6-train", "step-10-heldout"):
        (tmp_path / "evaluations" / f"{name}.jsonl").touch()
    run = write(tmp_path, 10, first=6)
    assert sorted(path.stem for path in (tmp_path / "evaluations").iterdir()) == ["before-train", "step-5-train"]
    assert [point.step for point in run.Scalars("learning/reward")] == list(range(1, 11))
    assert len((tmp_path / "router.jsonl").read_text().splitlines()) == 10


def test_a_full_disk_is_reported_once_and_the_run_continues(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    report = Report(configuration(tmp_path, 10), 2, 0)
    report.begin({})
    with caplog.at_level(logging.WARNING):
        report.step(**random_step(rng, 1))
        assert not caplog.records
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))  # as good as no room left
        try:
            for number in (2, 3, 4):
                report.step(**random_step(rng, number))
                report.router(number, {"probs": {}})
                report.summary({})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    warnings = [record.message for record in caplog.records]
    assert len(warnings) == 3, warnings
    assert f"from step 2 on, cannot write {tmp_path}/tensorboard" in warnings[0]
    assert [name in message for name, message in zip(("router.jsonl", "summary.json"), warnings[1:], strict=True)] == [
        True
    ] * 2
    report.close()
    run = EventAccumulator(str(tmp_path / "tensorboard"))
    run.Reload()
    assert [point.step for point in run.Scalars("learning/reward")] == [1]


def test_a_full_disk_leaves_the_configuration_of_before(tmp_path: Path) -> None:
    """It is what the next resume compares with."""
    Report(configuration(tmp_path, 10), 2, 0).close()
    before = (tmp_path / "config.json").read_bytes()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    try:
        Report(configuration(tmp_path, 20), 2, 5).close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert (tmp_path / "config.json").read_bytes() == before and not list(tmp_path.glob("*.partial"))
    Report(configuration(tmp_path, 20), 2, 5).close()
    assert json.loads((tmp_path / "config.json").read_text())["learner"]["steps"] == 20


def test_a_clock_that_was_set_back_costs_a_resumed_run_no_points(tmp_path: Path) -> None:
    """The names of event files are times, and TensorBoard reads them in the order of their names."""
    write(tmp_path, 10, last=8)
    for path in sorted((tmp_path / "tensorboard").rglob("events.out.tfevents.*")):
        _, _, _, seconds, rest = path.name.split(".", 4)
        path.rename(path.with_name(f"events.out.tfevents.{int(seconds) + 86_400}.{rest}"))
    run = write(tmp_path, 10, first=6)
    assert [point.step for point in run.Scalars("learning/reward")] == list(range(1, 11))
    again = write(tmp_path, 12, first=11)
    assert [point.step for point in again.Scalars("learning/reward")] == list(range(1, 13))


def test_a_run_begins_on_a_full_disk(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    monkeypatch.setattr(Path, "open", lambda _, *how, **more: open("/dev/full", *how, **more))  # noqa: SIM115
    report = Report(configuration(tmp_path, 10), 2, 0)
    report.begin({})
    report.step(**random_step(rng, 1))
    report.close()
    warnings = [record.message for record in caplog.records]
    assert len(warnings) == 2 and all("No space left on device" in message for message in warnings), warnings


def test_a_text_sample_shows_any_answer_as_it_is(rng: np.random.Generator) -> None:
    step = random_step(rng, 1)
    answers = [
        "عاصمة فرنسا هي باريس.",
        "a | b\n# no heading *nor stars* <script>alert(1)</script>",
        "x" * 600,
        "<think>2 + 2</think>[a](http://b)",
    ]
    group = step["batch"][0]
    rollouts = [r.model_copy(update={"text": text}) for r, text in zip(group.rollouts, answers, strict=True)]
    html = markdown_to_safe_html(group_as_markdown(group.model_copy(update={"rollouts": rollouts}), HEADER))
    assert html.count("<tr>") == 5 and "The capital of France is Paris." in html
    assert "\u2068عاصمة فرنسا هي باريس.\u2069" in html, "the text must be isolated from what is around it"
    assert "a | b # no heading *nor stars* &lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "\u20682 + 2\u2069" in html and "think" not in html.replace("<th>thought</th>", "")
    assert "<script" not in html and "<a " not in html and "x" * 500 + "…" in html


def test_a_text_sample_shows_what_the_reward_saw_and_no_header(rng: np.random.Generator) -> None:
    group = random_step(rng, 1)["batch"][0]
    assert group.work.languages[0] == POLICY_CHOOSES
    header = HEADER.text("de")
    answers = [f"{header}<think>2 + 2</think>Quatre.", f"{header}Vier.", "5", "6"]
    rollouts = [r.model_copy(update={"text": text}) for r, text in zip(group.rollouts, answers, strict=True)]
    lines = group_as_markdown(group.model_copy(update={"rollouts": rollouts}), HEADER).splitlines()
    chosen, asked = (line.split(" | ") for line in lines if "Quatre" in line or "Vier" in line)
    assert chosen[1:3] == ["\u20682 \\+ 2\u2069", "\u2068Quatre.\u2069"]
    assert "lang" in asked[2], "where a language was asked for, the reward reads a header as any other text"


@pytest.mark.parametrize(("actor", "pool"), [("l40s-12", "l40s"), ("h200_3", "h200"), ("7", "7"), ("gpu", "gpu")])
def test_a_pool_is_the_actors_of_one_name(actor: str, pool: str) -> None:
    assert pool_of(actor) == pool
