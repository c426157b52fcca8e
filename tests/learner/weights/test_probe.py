"""The probe's sequence and its tolerance."""

from __future__ import annotations

import numpy as np

from learner.weights.probe import make_probe_sequence, probe_tolerance


def test_the_sequence_is_always_the_same_and_lies_in_the_vocabulary() -> None:
    ids = make_probe_sequence(50)
    np.testing.assert_array_equal(ids, make_probe_sequence(50))
    assert ids.dtype == np.int32 and ids.shape == (129,) and ids.min() >= 0 and ids.max() < 50
    assert len(np.unique(ids)) > 30


def test_rounding_is_tolerated_up_to_a_limit_and_float32_or_the_configuration_are_stricter() -> None:
    rounding = probe_tolerance(0, exact=False, layers=4, spread=1.0)
    assert probe_tolerance(0, exact=True, layers=4, spread=1.0) == 1e-3 < rounding
    assert 1.4 < rounding / (2**-8 * 2) < 14, "between what was measured for correct weights and for weights off by 5%"
    assert probe_tolerance(0, exact=False, layers=16, spread=1.0) == 2 * rounding
    assert probe_tolerance(0, exact=False, layers=1000, spread=10.0) == 0.25
    for exact in (True, False):
        assert probe_tolerance(0.02, exact=exact, layers=4, spread=1.0) == 0.02
