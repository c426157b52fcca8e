"""Cutting weights into buckets, and finding the tensors in one."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.weights.buckets import bytes_of, cut_into_buckets, tensors_in

SHAPES = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=2), min_size=1, max_size=12)


@given(SHAPES, st.sampled_from(["float32", "bfloat16"]), st.integers(16, 4096))
def test_buckets_have_all_tensors_in_order_and_none_could_have_taken_one_more(
    shapes: list[list[int]], dtype: str, limit: int
) -> None:
    layout = {f"t{n}": shape for n, shape in enumerate(shapes)}
    buckets = cut_into_buckets(layout, dtype, limit / 2**20)
    cut = [pair for bucket in buckets for pair in zip(bucket.names, bucket.shapes, strict=True)]
    assert cut == list(layout.items())
    for bucket in buckets:
        assert len(bucket.names) == 1 or bytes_of(bucket) <= limit
    for bucket, following in itertools.pairwise(buckets):
        first = torch.empty(following.shapes[0], dtype=getattr(torch, dtype)).nbytes
        assert bytes_of(bucket) + first > limit


def test_tensors_lie_one_after_another_in_a_buffer_that_may_be_larger() -> None:
    (bucket,) = cut_into_buckets({"a": [2, 3], "b": [4]}, "float32", 1)
    buffer = torch.zeros(64, dtype=torch.uint8)
    a, b = tensors_in(buffer, bucket)
    a.copy_(torch.arange(6.0).view(2, 3))
    b.copy_(torch.arange(6.0, 10.0))
    assert buffer.view(torch.float32).tolist() == [*map(float, range(10)), *[0.0] * 6]
