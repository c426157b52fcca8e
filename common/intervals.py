"""The 95% interval of a mean of few values, such as one for each seed of an experiment."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import special


def half_width(values: NDArray[np.float64]) -> float:
    """Half the width of the 95% interval of the mean of values [n], by Student's t: t[n-1] s / sqrt(n).

    Of differences that are paired by seed it is that of the paired t test. A bootstrap over few values is far too
    narrow. NaN for a single value, which says nothing of others.
    """
    count = len(values)
    if count < 2:
        return float("nan")
    return float(special.stdtrit(count - 1, 0.975) * values.std(ddof=1) / np.sqrt(count))
