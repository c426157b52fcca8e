"""How the losses of tokens become the loss of an optimizer step: the weight of each token, as a pure function."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Aggregation = Literal["token", "sequence", "fertility", "constant"]


def token_weights(
    lengths_N: Sequence[int], languages_N: Sequence[str], aggregation: Aggregation, length: int = 0
) -> NDArray[np.float64]:
    """The weight in the loss of each token of a rollout. But for ``constant``, the weights of all tokens sum to 1.

    * ``token``: 1 / Σn. Every token counts alike (DAPO, arXiv 2503.14476, section 3.3).
    * ``sequence``: 1 / (N · n_i). Every rollout counts alike (GRPO, arXiv 2402.03300, equation 3; GSPO).
    * ``fertility``: 1 / (N · f), where f is the mean length of the rollouts in the same language. A language counts by
      its number of rollouts, however many tokens it needs to say the same, and within a language every token counts
      alike.
    * ``constant``: 1 / (N · L) with a fixed number L, so that a token weighs the same in short and in long answers. It
      is that of Dr. GRPO (arXiv 2503.20783, section 3), and the same in every step, where N is the number of all
      rollouts. Where some are left out, the others weigh more, by as much as the step has fewer.

    Args:
        lengths_N: number of response tokens n_i of each of the N rollouts of the optimizer step that carry gradient,
            those of all ranks. Left out are those of groups without variance, if ``learner.drop_zero_variance`` is set,
            truncated ones, if ``learner.mask_truncated`` is, and those that could not be scored.
        languages_N: the language of each of these rollouts.
        length: L.

    Returns:
        [N] float64.
    """
    sizes = np.array(lengths_N, np.float64)
    if aggregation == "token":
        return np.full(len(sizes), 1 / max(sizes.sum(), 1))
    if aggregation == "sequence":
        return 1 / (len(sizes) * sizes)
    if aggregation == "constant":
        return np.full(len(sizes), 1 / (max(len(sizes), 1) * length))
    rollouts, tokens = Counter(languages_N), Counter[str]()
    for language, size in zip(languages_N, lengths_N, strict=True):
        tokens[language] += size
    return np.array([rollouts[language] / (len(sizes) * tokens[language]) for language in languages_N])
