"""The languages that the default encoder was trained on, and what to say where a run compares texts in others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from common.config import RewardConfig
from common.languages import display_name
from reward.terms.quality import choose_weights, earns_by_similarity

# Of the multilingual Universal Sentence Encoder v3, by the table of its model card: 16, of which two are Chinese, in
# simplified and in traditional script. https://www.kaggle.com/models/google/universal-sentence-encoder/
USE_LANGUAGES = frozenset(
    {"ar", "de", "en", "es", "fr", "it", "ja", "ko", "nl", "pl", "pt", "ru", "th", "tr", "zh"}
)  # fmt: skip


def compares(reward: RewardConfig, topics: Sequence[str]) -> bool:
    """Whether similarity to a reference earns something for a question of these topics."""
    return not reward.function and earns_by_similarity(choose_weights(reward.terms, topics))


def warning_of_languages(reward: RewardConfig, languages: Iterable[str]) -> str:
    """What to say where texts in these languages are compared; empty where the encoder knows all of them.

    Of ``reward.embedder`` only the default is known; whoever chose another one knows what that was trained on.

    Args:
        languages: codes of the languages of answers and references that are compared. That of the column
            ``reward.pivot`` is counted anyway.
    """
    pivot = [reward.pivot_language] if reward.pivot else []
    unknown = sorted({*languages, *pivot} - USE_LANGUAGES - {""})
    if reward.embedder != "use" or not unknown:
        return ""
    named = ", ".join(f"{code} ({display_name(code)})" for code in unknown)
    return (
        f'reward.embedder = "use" was not trained on {named}: what it says of texts in these languages may be little '
        'more than noise. Set reward.embedder to a model that was, as "jhu-clsp/mmBERT-small", and calibrate with it, '
        "or pay for something else than similarity (docs/languages.md)"
    )
