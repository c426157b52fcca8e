"""What a check finds, and the sizes it works with. Needs nothing but Python, whatever is installed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """One figure of a check.

    Args:
        ok: whether it is right; None where it is only told.
        goal: what it has to be, in words.
    """

    name: str
    value: float | int | str
    unit: str = ""
    ok: bool | None = None
    goal: str = ""


class Skipped(Exception):
    """A check cannot be made here; the message says why."""


@dataclass(frozen=True)
class Sizes:
    """How large the checks are.

    Args:
        tiny: for a CPU, in seconds, where nothing is learned about a GPU but that the checks themselves run.
        scratch: a directory for models and checkpoints.
        updates: of the shared memory.
        deadline_s: of a process group whose peer never comes.
    """

    tiny: bool
    scratch: Path
    updates: int = 100
    deadline_s: float = 10.0

    @classmethod
    def small(cls, scratch: Path) -> Sizes:
        """For a CPU."""
        return cls(tiny=True, scratch=scratch, updates=5, deadline_s=2.0)

    @property
    def model(self) -> dict[str, int]:
        """Of the model to train: a random one of Qwen2.5-1.5B's shape, or a tiny one of that architecture."""
        if self.tiny:
            return {
                "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                "num_key_value_heads": 2, "vocab_size": 320,
            }  # fmt: skip
        return {
            "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
            "num_key_value_heads": 2, "vocab_size": 151936,
        }  # fmt: skip

    @property
    def tokens(self) -> int:
        """Of a micro-batch."""
        return 64 if self.tiny else 16384
