"""How much of a gradient is noise: the variance of its mean over prompt groups, from the gradient of each group."""

from __future__ import annotations

import math
from collections.abc import Sequence


def noise_share(group_norms: Sequence[float], norm: float) -> float | None:
    """The share of the squared norm of a gradient that is noise.

    The gradient G = Σ g_i of an optimizer step is a sum over n prompt groups, which are drawn at random. The expected
    squared norm of its error is estimated, without bias, by

        V = n / (n - 1) (Σ |g_i|² - |G|² / n),

    and E |G|² = |E G|² + V. The share is V / |G|²: near 0, the groups agree, and twice as many would give the same
    gradient; near 1 or above, it is noise. The gradient noise scale (arXiv 1812.06162) is n V / (|G|² - V) groups.

    Args:
        group_norms: [n] |g_i|, the norm of what each group adds to the gradient.
        norm: |G|.

    Returns:
        The share; None where there is none to tell: of fewer than two groups, of a gradient of 0, and where one of the
        norms is not finite.
    """
    groups = len(group_norms)
    if groups < 2 or not 0 < norm < math.inf or not all(map(math.isfinite, group_norms)):
        return None
    squares = sum(one * one for one in group_norms)
    return groups / (groups - 1) * (squares / (norm * norm) - 1 / groups)
