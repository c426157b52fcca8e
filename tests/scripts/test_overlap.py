"""The long answers that scripts.bench.overlap replays, and what scripts.bench.retraction calls a wrong answer."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from actor.engine.generation import Generation
from scripts.bench.overlap import long_tail, replayed
from scripts.bench.pauses import compute_logprobs
from scripts.bench.retraction import Request, largest_error, make_requests


def test_the_tail_is_as_long_as_it_says() -> None:
    groups = long_tail(20_000, seed=1)
    lengths = np.array(groups)
    median, p99 = np.percentile(lengths, [50, 99])
    assert median == pytest.approx(1024, rel=0.03) and p99 / median == pytest.approx(10, rel=0.05)
    assert lengths.min() >= 1 and lengths.max() == 16384 == np.percentile(lengths, 99.9)
    logs = np.log(lengths[(lengths < 16384).all(1)])
    shared = np.corrcoef(logs[:, 0], logs[:, 1])[0, 1]
    assert shared == pytest.approx(0.5, abs=0.05), "the question decides half of the variance"
    assert long_tail(3, seed=1) == groups[:3] != long_tail(3, seed=2)[:3]


def test_a_replayed_token_stands_for_many() -> None:
    line = json.loads(replayed([1, 128, 129, 16384]))
    assert line == {"lengths": [1, 1, 2, 128], "seconds": pytest.approx(128 * 0.04)}


def test_a_log_probability_of_other_weights_is_found(tiny_policy: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_policy).float().eval()
    (request,) = make_requests(1, model.config.vocab_size, seed=3)
    assert len(request.prompt) == 16 and 100 <= request.tokens <= 300
    ids = [*request.prompt, *range(20, 30)]
    logprobs = compute_logprobs(model, ids, 0.8)[15:].astype(np.float32)
    answer = Generation(np.arange(20, 30, dtype=np.int32), logprobs, np.zeros(10, np.int32), False, True)
    assert largest_error([Request(request.prompt, 10)], {0: answer}, [model]) < 1e-5
    logprobs[7] += 0.25
    assert math.isclose(largest_error([request], {0: answer}, [model]), 0.25, abs_tol=1e-4)
