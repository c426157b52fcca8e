"""The pages of TensorBoard's CUSTOM SCALARS tab; docs/metrics.md explains every metric."""

from __future__ import annotations

from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard.summary import custom_scalars

_LANGUAGES = ("reward", "quality", "compliance", "length", "truncated", "share", "lag", "mismatch", "entropy")
_PAGES = {  # page -> chart -> regular expression of its metrics
    "Health": {
        "lag of tokens, in policy updates, and its bound": "health/lag_",
        "engine against learner (nats a token)": "health/(mismatch|probe_error)",
        "groups failed, given out again, of these for the loss of an actor (so far)": "health/groups_",
        "weight update, and the pause that generation sees (s)": "health/(sync|pause)_seconds",
        "masked groups, skipped steps": "health/(masked|skipped_steps)",
        "calibration drift": "health/calibration_drift",
    },
    "Flow": {
        "share of a step that needs each stage: the largest is the bottleneck": "flow/demand/",
        "verdict: share of time lost, share its remedy saves": "flow/(lost|gain)",
        "learner: share of time": "flow/learner/",
        "actors: share of time, mean": "flow/actors/",
        "reward process: share of time": "flow/reward/",
        "tokens/s trained": "flow/tokens_per_second",
        "tokens/s of each actor": "flow/actor_tokens/",
        "tokens/s of each pool": "flow/pool_tokens/",
        "use of engines' KV memory": "flow/kv_use/",
        "groups leased, finished": "flow/groups_",
        "fill of micro-batches": "flow/batch_fill",
    },
    "Languages": {
        **{name: f"languages/{name}" for name in _LANGUAGES},
        "what region and language share (bits), and by chance": "router/region_language_",
    },
    "Learning": {
        "reward, compliance": "learning/(reward|compliance)",
        "greedy reward on held-out questions": "evaluation_heldout/",
        "greedy reward on trained questions": "evaluation_train/",
        "KL to the initial policy": "learning/kl",
        "importance ratio": "learning/importance_weight",
        "share of tokens clipped, limited": "learning/(clip_share|importance_limited)",
        "gradient norm": "learning/grad_norm",
        "entropy": "learning/entropy",
        "share of groups without variance": "learning/zero_variance",
        "loss": "learning/loss",
    },
}


def layout() -> Summary:
    def chart(tags: str) -> list[object]:
        return ["Multiline", [tags if tags.endswith(("/", "_")) else tags + "$"]]

    charts = {page: {title: chart(tags) for title, tags in rows.items()} for page, rows in _PAGES.items()}
    summary: Summary = custom_scalars(charts)
    return summary
