"""The pages of TensorBoard's CUSTOM SCALARS tab; docs/metrics.md explains every metric."""

from __future__ import annotations

from dataclasses import dataclass

from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard.summary import custom_scalars

AXIS = {"zero": 0.0, "one": 1.0}  # grey lines: TensorBoard fits a chart to its lines, and shows what they reach
ZERO, SHARE = ("zero",), ("zero", "one")
BAND_FLOOR = "band/zero"  # the lower edge of the band; it has to be in the same run as the metric
BAND_METRIC = "health/staleness_max"


@dataclass(frozen=True)
class Chart:
    """Lines over the steps of a run.

    Args:
        metrics: of the lines, in the order of their colours. One that ends in ``/`` stands for all that begin so, in
            the order in which they first appear.
        axis: names of the lines of ``AXIS`` that the chart shows as well.
    """

    title: str
    metrics: tuple[str, ...]
    axis: tuple[str, ...] = ZERO

    def layout(self) -> list[object]:
        """The chart as a layout of TensorBoard's has it, with regular expressions of its tags."""
        names = [name if name.endswith("/") else f"{name}$" for name in self.metrics]
        return ["Multiline", [*names, *(f"{name}$" for name in self.axis)]]


@dataclass(frozen=True)
class BandChart:
    """The line of one metric over a shaded band from zero to another metric."""

    title: str
    metric: str
    upper: str

    def layout(self) -> list[object]:
        """The chart as a layout of TensorBoard's has it."""
        return ["Margin", [self.metric, BAND_FLOOR, self.upper]]


def _each(prefix: str, *names: str) -> tuple[str, ...]:
    return tuple(prefix + name for name in names)


def _diagnostics(before: str, of: str) -> tuple[Chart, ...]:
    """Charts of the diagnostics of some answers; each line names the detector."""
    return (
        Chart(
            f"{of}: thought, answer and both in their language; right; both and right",
            (f"{before}consistency/",),
            SHARE,
        ),
        Chart(f"{of}: line and word pass rates, and LCPR", (f"{before}confusion/",), SHARE),
        Chart(f"{of}: share of texts with two languages", (f"{before}switching/",), SHARE),
        Chart(f"{of}: tokens of an answer", (f"{before or 'learning/'}tokens",)),
    )


_GREEDY = ("own", "routed", "best_fixed", "english", "uniform", "oracle")


PAGES: dict[str, tuple[Chart | BandChart, ...]] = {
    "Learning": (
        Chart("Mean reward, and share of answers in their language", ("learning/reward", "learning/compliance"), SHARE),
        Chart("Greedy reward on held-out questions", _each("evaluation_heldout/", *_GREEDY), SHARE),
        Chart("Greedy reward on training questions", _each("evaluation_train/", *_GREEDY), SHARE),
        Chart(
            "Greedy answers in their language, held-out and training questions",
            ("evaluation_heldout/compliance", "evaluation_train/compliance"),
            SHARE,
        ),
        Chart("KL to the reference policy (nats per token)", ("learning/kl",)),
        Chart("Entropy of the policy (nats per token)", ("learning/entropy",)),
        Chart("Gradient norm", ("learning/grad_norm",)),
        Chart("Share of the squared gradient norm that is noise", ("learning/gradient_noise",)),
        Chart("Loss", ("learning/loss",)),
        Chart("Share of groups with zero variance", ("learning/zero_variance",), SHARE),
        Chart("Standard deviation of the rewards of a group (mean)", ("learning/reward_std",)),
        Chart("Mean importance weight", ("learning/importance_weight",), SHARE),
        Chart(
            "Share of tokens with a clipped ratio, and with a limited importance weight",
            ("learning/clip_share", "learning/importance_limited"),
        ),
        Chart("Terms of the reward (mean)", ("terms/",), SHARE),
    ),
    "Health": (
        BandChart(
            "Staleness: the largest of a step, in the band up to its bound (policy updates)",
            BAND_METRIC,
            "health/staleness_bound",
        ),
        Chart(
            "Staleness of tokens: mean, median, 99th percentile (policy updates)",
            ("health/staleness_mean", "health/staleness_p50", "health/staleness_p99"),
        ),
        Chart(
            "Difference between engine and learner log-probabilities (nats per token)",
            ("health/mismatch", "health/probe_error"),
        ),
        Chart("The same, by the lag of the token in policy updates (nats)", ("health/mismatch_by_lag/",)),
        Chart(
            "Effective sample of the importance weights, tokens out of their bounds (shares); alarm",
            _each("health/", "effective_sample", "outside_bounds", "mismatch_alarm"),
            SHARE,
        ),
        Chart("Share of tokens out of bounds, by lag in policy updates", ("health/outside_bounds_by_lag/",)),
        Chart(
            "So far: leases retried, those whose actor was gone, groups failed, and groups that broke a rule",
            ("health/leases_retried", "health/leases_orphaned", "health/groups_failed", "health/groups_refused"),
        ),
        Chart(
            "Messages of other lives that were dropped so far: by the learner, and by the actors of now",
            ("health/foreign_messages", "health/foreign_orders"),
        ),
        Chart("Weight sync, and longest pause of an engine (seconds)", ("health/sync_seconds", "health/pause_seconds")),
        Chart(
            "Share of masked groups, of answers not scored, of skipped steps",
            ("health/masked", "health/unscored", "health/skipped_steps"),
            SHARE,
        ),
        Chart("Drift from the similarities used for calibration", ("health/calibration_drift",)),
        Chart(
            "Share of an evaluation's answers that were not scored, held-out and training questions",
            ("evaluation_heldout/unscored", "evaluation_train/unscored"),
            SHARE,
        ),
    ),
    "Flow": (
        Chart(
            "Share of the step for which each stage is needed; the largest is the bottleneck",
            _each("flow/demand/", "actors", "reward", "learner", "sync"),
            SHARE,
        ),
        Chart(
            "Share of time that the bottleneck costs, and that the advice would save",
            ("flow/bottleneck_cost", "flow/bottleneck_saving"),
            SHARE,
        ),
        Chart(
            "Learner: share of time in each state",
            _each("flow/learner/", "train", "wait", "publish", "report", "save"),
            SHARE,
        ),
        Chart(
            "Actors: share of time in each state, mean over actors",
            _each("flow/actors/", "generate", "wait_work", "wait_reward", "sync"),
            SHARE,
        ),
        Chart("Reward service: share of time in each state", _each("flow/reward/", "busy", "wait"), SHARE),
        Chart("Response tokens of the steps' groups per second", ("flow/tokens_per_second",)),
        Chart("Response tokens per second from each pool of actors", ("flow/pool_tokens/",)),
        Chart(
            "Groups that are leased, and groups that wait for the learner",
            ("flow/groups_leased", "flow/groups_waiting"),
        ),
        Chart("Share of the micro-batches' room that tokens fill", ("flow/batch_fill",), SHARE),
    ),
    "Languages": (
        *_diagnostics("", "Trained answers"),
        *_diagnostics("evaluation_heldout/", "Held-out questions, greedy"),
        *_diagnostics("evaluation_train/", "Training questions, greedy"),
        Chart(
            "Mutual information of region and language, and its value by chance (bits)",
            ("router/region_language_bits", "router/region_language_bits_by_chance"),
        ),
    ),
}


class Lines:
    """Which line of its chart each metric is, counted from 0; the first where it has no chart."""

    def __init__(self) -> None:
        charts = [chart for page in PAGES.values() for chart in page if isinstance(chart, Chart)]
        self._number = {name: number for chart in charts for number, name in enumerate(chart.metrics)}
        self._appeared = {name: list[str]() for name in self._number if name.endswith("/")}

    def number(self, metric: str) -> int:
        """The same for every call with this metric."""
        if metric not in self._number:
            prefix = metric[: metric.rindex("/") + 1] if "/" in metric else ""
            names = self._appeared.get(prefix, [])
            self._number[metric] = len(names)
            names.append(metric)
        return self._number[metric]


def custom_scalar_pages() -> Summary:
    """The layout of the tab, as TensorBoard reads it from an event file."""
    layout = {page: {chart.title: chart.layout() for chart in charts} for page, charts in PAGES.items()}
    summary: Summary = custom_scalars(layout)
    return summary
