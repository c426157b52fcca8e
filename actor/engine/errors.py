"""How a call to an engine can fail."""

from __future__ import annotations


class EngineError(RuntimeError):
    """The engine ended, or it refused or failed a call.

    The message holds the last lines of the engine's output, or the route, the status and the answer of the call.
    """


class EngineLost(EngineError):
    """There is no engine any more that could answer: its process has ended."""


class EngineReplaced(EngineError):
    """The engine is not the one that this actor gave its weights to, or has other weights than it was given."""


class RequestRefused(EngineError):
    """The engine refuses these prompts and would refuse them again: they are too long for it, say."""
