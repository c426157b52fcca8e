"""The pages of TensorBoard's CUSTOM SCALARS tab; docs/metrics.md explains every metric."""

from __future__ import annotations

from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard.summary import custom_scalars

_PAGES = {  # page -> title of the chart -> regular expression of its metrics
    "Health": {
        "Staleness of tokens in policy updates, with its bound": "health/lag_",
        "Difference between engine and learner log-probabilities (nats per token)": "health/(mismatch|probe_error)",
        "Groups so far: failed, leased again, leased again because an actor was lost": "health/groups_",
        "Duration of the weight sync, and of the longest pause of an engine (seconds)": "health/(sync|pause)_seconds",
        "Share of masked groups, of answers not scored, of skipped steps": "health/(masked|unscored|skipped_steps)",
        "Drift from the similarities used for calibration": "health/calibration_drift",
    },
    "Flow": {
        "Share of the step time each stage is needed (the largest is the bottleneck)": "flow/demand/",
        "Share of time lost to the bottleneck, and share that the advice would save": "flow/(lost|gain)",
        "Learner: share of time in each state": "flow/learner/",
        "Actors: share of time in each state, mean over actors": "flow/actors/",
        "Reward service: share of time in each state": "flow/reward/",
        "Response tokens trained per second": "flow/tokens_per_second",
        "Response tokens per second from each actor": "flow/actor_tokens/",
        "Response tokens per second from each pool of actors": "flow/pool_tokens/",
        "Share of the KV cache in use, by engine": "flow/kv_use/",
        "Groups that are leased, and groups that wait for the learner": "flow/groups_",
        "Share of the micro-batches' room that tokens fill": "flow/batch_fill",
    },
    "Languages": {
        "Mean reward, by language": "languages/reward",
        "Mean quality, by language": "languages/quality",
        "Share of answers in the requested language": "languages/compliance",
        "Mean response length in tokens, by language": "languages/length",
        "Share of truncated answers, by language": "languages/truncated",
        "Share of the answers, by language": "languages/share",
        "Mean staleness of tokens, by language": "languages/lag",
        "Difference between engine and learner, by language (nats per token)": "languages/mismatch",
        "Entropy of the policy, by language (nats per token)": "languages/entropy",
        "Mutual information of region and language, and its value by chance (bits)": "router/region_language_",
    },
    "Learning": {
        "Mean reward and compliance": "learning/(reward|compliance)",
        "Reward of greedy answers to held-out questions": "evaluation_heldout/",
        "Reward of greedy answers to training questions": "evaluation_train/",
        "KL to the reference policy (nats per token)": "learning/kl",
        "Mean importance weight": "learning/importance_weight",
        "Share of tokens with a clipped ratio, and with a limited importance weight": (
            "learning/(clip_share|importance_limited)"
        ),
        "Gradient norm": "learning/grad_norm",
        "Entropy of the policy (nats per token)": "learning/entropy",
        "Share of groups with zero variance": "learning/zero_variance",
        "Loss": "learning/loss",
    },
}


def custom_scalar_pages() -> Summary:
    """The layout of the tab, as TensorBoard reads it from an event file."""

    def chart(pattern: str) -> list[object]:
        return ["Multiline", [pattern if pattern.endswith(("/", "_")) else pattern + "$"]]

    charts = {page: {title: chart(pattern) for title, pattern in rows.items()} for page, rows in _PAGES.items()}
    summary: Summary = custom_scalars(charts)
    return summary
