"""Wire types: what is sent arrives, what is malformed is refused."""

from __future__ import annotations

from contextlib import suppress

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import wire
from tests.support.groups import random_rollout, work


def test_a_group_arrives_bit_for_bit(rng: np.random.Generator) -> None:
    rollouts = [random_rollout(rng) for _ in range(8)]
    back = wire.decode(wire.encode(wire.Submit(id="train-3", rollouts=rollouts)))
    assert isinstance(back, wire.Submit)
    for sent, got in zip(rollouts, back.rollouts, strict=True):
        for name in ("prompt_ids", "response_ids", "logprobs", "versions"):
            np.testing.assert_array_equal(getattr(sent, name), getattr(got, name))
        assert (sent.score, sent.language, sent.text) == (got.score, got.language, got.text)


def test_scores_are_read_as_earlier_versions_recorded_them() -> None:
    languages = {"consistent": True, "lines": True, "words": None, "switches": False}
    numbers = {"reward": 1.0, "quality": 1.0, "similarity": 0.0, "compliant": True, "detected": "en"}
    recorded = {**numbers, "thought": languages, "answer": languages | {"consistent": False}}
    score = wire.unpack(msgpack.packb(recorded), wire.Score)
    assert score.thought_languages is not None and score.thought_languages.consistent
    assert score.final_languages is not None and not score.final_languages.consistent
    assert recorded.items() <= msgpack.unpackb(wire.encode(score)).items()


def test_only_arrays_of_the_protocols_types_travel_and_any_text_does(rng: np.random.Generator) -> None:
    sent = random_rollout(rng).model_copy(update={"text": "a \ud800 b"})
    back = wire.unpack(wire.encode([sent]), list[wire.Rollout])[0]
    assert back.text == "a ? b"
    np.testing.assert_array_equal(sent.logprobs, back.logprobs)
    for dtype in (np.int64, np.float64):
        with pytest.raises(TypeError, match=np.dtype(dtype).name):
            wire.encode([sent.model_copy(update={"versions": sent.versions.astype(dtype)})])


def test_work_arrives() -> None:
    sent = wire.Leased(work=[work(1, ["en", "zh"])])
    assert wire.decode(wire.encode(sent)) == sent


def test_the_data_of_an_adapter_travels_in_frames_and_is_copied_for_nobody(rng: np.random.Generator) -> None:
    probe = wire.Probe(ids=np.array([1, 2], np.int32), logprobs=np.array([-1.0], np.float32), tolerance=1.0)
    for size, count in ((0, 1), (1, 2), (wire.FRAME_BYTES, 2), (2 * wire.FRAME_BYTES + 1, 4)):
        sent = wire.LoadAdapter(
            version=3, config="{}", data=rng.bytes(size), path="", sha256="0", probe=probe, timeout_s=1.0
        ).of(wire.Lives("one", "two"))
        frames = wire.encode_frames(sent)
        assert len(frames) == count and max(map(len, frames)) <= wire.FRAME_BYTES
        assert all(isinstance(frame, memoryview) and frame.obj is sent.data for frame in frames[1:])
        back = wire.decode_frames([bytes(frame) for frame in frames])
        assert isinstance(back, wire.LoadAdapter)
        assert (back.data, back.version, back.lives) == (sent.data, 3, sent.lives)
    for message in (wire.Welcome(), sent):
        with pytest.raises(wire.WireError, match="2 frames instead of 1"):
            wire.decode_frames([wire.encode(message), b"more"])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.decode(data)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_message_is_refused_or_valid(data: st.DataObject) -> None:
    good = wire.encode(wire.Submit(id="train-3", rollouts=[random_rollout(np.random.default_rng(1))]))
    position = data.draw(st.integers(0, len(good) - 1))
    damaged = good[:position] + bytes([data.draw(st.integers(0, 255))]) + good[position + 1 :]
    with suppress(wire.WireError):
        assert isinstance(wire.decode(damaged), wire.Message)
    with pytest.raises(wire.WireError):
        wire.decode(good[:position])


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [("sequence", 3, "sequence"), ("kind", "sumbit", "sumbit"), ("id", 3, "id"), ("rollouts", [{}], r"rollouts\[0\]")],
)
def test_the_error_names_the_field(field: str, value: object, complaint: str) -> None:
    message = {"kind": "submit", "id": "train-3", "rollouts": [], field: value}
    with pytest.raises(wire.WireError, match=complaint):
        wire.decode(msgpack.packb(message))


def test_an_array_of_a_broken_length_is_refused() -> None:
    raw = msgpack.unpackb(wire.encode(wire.Submit(id="x", rollouts=[random_rollout(np.random.default_rng(1))])))
    raw["rollouts"][0]["logprobs"] = b"abc"
    with pytest.raises(wire.WireError, match=r"multiple of element size.*rollouts\[0\]"):
        wire.decode(msgpack.packb(raw))
