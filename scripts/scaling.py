"""What a run of some size needs, on paper: ``python -m scripts.scaling`` prints the table of docs/scaling.md.

Rates of GPUs come from their datasheets by the formulas below, steps and staleness from the planner, which knows our
admission; nothing here was measured but the queue's capacity. To plan a real run, measure one: docs/tuning.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from common.config import load
from scripts.command import run
from scripts.plan_pool import Pool, forecast, make_plan

_GPUS = {"H100": (989e12, 3.35e12), "L40S": (362e12, 0.864e12)}  # bf16 flop/s, memory bytes/s
_MFU, _READ = 0.35, 0.6  # shares of them that training and decoding reach
_NIC = 50e9  # bytes/s out of the learner's leading node: 400 Gbit/s
_ROLLOUTS, _PROMPT = 8, 200  # answers to a question, tokens
_BEAT_S, _HEALTH_S = 2.0, 1.0  # of actors to the learner and to each reward replica
_QUEUE_GROUPS_S = 3400.0  # 512 actors on two cores: python -m scripts.bench.control_plane, --queue here
_LIMITS = {
    "sync, share of a step": 0.2, "queue, groups/s": 0.0, "queue, memory GB": 64.0,
    "optimizer state of a learner GPU, GB": 60.0,
}  # fmt: skip


@dataclass(frozen=True)
class Scenario:
    name: str
    parameters: float
    layers: int
    kv_width: int  # key and value heads times their size
    learners: int  # GPUs of the first kind
    actors: tuple[tuple[str, int, int], ...]  # GPU, engines, GPUs of an engine
    groups_per_step: int
    answer_tokens: int  # mean; the limit is twice that
    in_flight: int  # groups of an engine

    def gpus(self) -> str:
        parts = [f"{self.learners} H100 learn", *(f"{n} x {tp} {gpu} generate" for gpu, n, tp in self.actors)]
        return ", ".join(parts)


SCENARIOS = (
    Scenario("1.5B on 8 GPUs", 1.54e9, 28, 256, 4, (("H100", 4, 1),), 256, 512, 32),
    Scenario("8B on 64 GPUs", 8.0e9, 32, 1024, 16, (("H100", 24, 1), ("L40S", 24, 1)), 512, 1024, 16),
    Scenario("70B on 512 GPUs", 70.6e9, 80, 1024, 128, (("H100", 32, 8), ("L40S", 16, 8)), 1024, 2048, 16),
)


def rates(of: Scenario, gpu: str, tp: int) -> dict[str, float]:
    """Of an engine: a decoding step reads all weights once and each answer's keys and values, and computes."""
    flops, memory = _GPUS[gpu]
    context = _PROMPT + of.answer_tokens / 2
    cache = _ROLLOUTS * of.layers * 2 * of.kv_width * 2 * context  # bytes of a group, bf16
    compute = _ROLLOUTS * 2 * of.parameters / (tp * flops * _MFU)
    read = tp * memory * _READ
    return {"token_ms": 1e3 * 2 * of.parameters / read, "group_ms": 1e3 * (cache / read + compute)}


def group_bytes(tokens: float) -> float:
    """On the wire and in the queue: id, log-probability and version of a token, four bytes of text, prompt ids."""
    return _ROLLOUTS * (tokens * (3 * 4 + 4) + 4 * _PROMPT)


def planned(of: Scenario, publish_s: float) -> Any:
    # Forward and backward pass, and a forward pass of the reference: eight operations a parameter and token.
    trained = _GPUS["H100"][0] * _MFU / (8 * of.parameters) / (1 + _PROMPT / of.answer_tokens)
    gpus = {f"{gpu}x{tp}": rates(of, gpu, tp) for gpu, _, tp in of.actors} | {"learner": {"train_tokens_s": trained}}
    nodes: list[dict[str, Any]] = [
        {"role": "actor", "gpu": f"{gpu}x{tp}", "partition": gpu, "count": n, "groups_in_flight": of.in_flight}
        for gpu, n, tp in of.actors
    ]
    nodes += [{"role": "learner", "gpu": "learner", "partition": "h100", "count": 1, "engines": of.learners}]
    work = {"answer_tokens": of.answer_tokens, "publish_s": publish_s, "pause_s": publish_s, "rest_s": 1.0}
    work |= {"score_s": 0.5, "score_busy_s": 0.02}
    pool = Pool.model_validate({"gpus": gpus, "nodes": nodes, "work": work})
    settings = {
        "learner.groups_per_step": of.groups_per_step, "learner.window": of.groups_per_step // 4,
        "learner.staleness": 1, "router.rollouts": _ROLLOUTS, "sampling.max_new_tokens": 2 * of.answer_tokens,
    }  # fmt: skip
    flags = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    return forecast(make_plan(pool, None, load(flags), Path("scenario")))


def needs(of: Scenario, queue_groups_s: float) -> dict[str, Any]:
    engines, weights = sum(n for _, n, _ in of.actors), 2 * of.parameters
    publish_s = engines * weights / _NIC
    found = planned(of, publish_s)
    groups_s = of.groups_per_step / found.step_s
    alive = 2 * of.groups_per_step
    loads = {
        "sync, share of a step": publish_s / found.step_s,
        "queue, groups/s": groups_s,
        "queue, memory GB": alive * group_bytes(of.answer_tokens) / 1e9,
        "optimizer state of a learner GPU, GB": 16 * of.parameters / of.learners / 1e9,
    }
    limits = _LIMITS | {"queue, groups/s": queue_groups_s}
    return {
        "GPUs": of.gpus(),
        "weights of a sync, GB, to each engine": weights / 1e9,
        "the same out of the leading node, GB": engines * weights / 1e9,
        "sync, seconds": publish_s,
        "step, seconds (planner)": found.step_s,
        "tokens/s (planner)": found.tokens_per_second,
        "staleness of a token, mean (planner)": found.lag_mean,
        "messages/s at the learner": 3 * groups_s + 2 * engines / _BEAT_S,
        "messages/s at the reward process": 2 * groups_s + 2 * engines / _HEALTH_S,
        "MB/s into the queue": groups_s * group_bytes(of.answer_tokens) / 1e6,
        **loads,
        "breaks first": max(loads, key=lambda name: loads[name] / limits[name]),
        "at this share of its limit": max(loads[name] / limits[name] for name in loads),
    }


def table(*, queue: Annotated[float, "groups/s that one queue process serves"] = _QUEUE_GROUPS_S) -> None:
    found = {of.name: needs(of, queue) for of in SCENARIOS}
    print("| | " + " | ".join(found) + " |\n|---" + "|---" * len(found) + "|")
    for row in next(iter(found.values())):
        told = [column[row] for column in found.values()]
        print(f"| {row} | " + " | ".join(f"{one:.3g}" if isinstance(one, float) else one for one in told) + " |")


def main() -> None:
    run(table, __doc__)


if __name__ == "__main__":
    main()
