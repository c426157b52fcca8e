"""What is known of an engine's weights: a state machine, without an engine, a clock or a message.

A policy version is *proved* when the engine's log-probabilities of a probe were the learner's while it had the weights
of that version. Answers may be sent when the versions of all their tokens are proved, whatever the engine does by then.

::

    STARTED ──┐
              │ pause            paused           receive               received
    PROVED ───┼────────► PAUSING ───────► PAUSED ──────────► RECEIVING ──────────┐
      ▲       │                             │                                    ▼
      │       └─────────────────────────────┼─────────────────────────────── PROVING
      │                 pause               │ resumed, nothing received       ▲  │
      │                                     ▼                                 │  │ probed
      │              ┌──────────────────────┴──────────┬──────────────────────┘  │
      │              │ the engine has no version       │ its version is          │
      │              ▼                                 │ not proved              │
      │           STARTED                              │ is proved               │
      ├────────────────────────────────────────────────┘                         │
      └──────────────────────────────────────────────────────────────────────────┘

So there are two ways into PROVED: from PAUSED for a version that a probe has proved before, and from PROVING by a probe
of the version that the engine has. A pause during the probe leaves the version unproved, and it is probed anew if no
other weights follow. An error in any state leads to FAILED, from which no way leads on and nothing is sent.
"""

from __future__ import annotations

from collections.abc import Set
from enum import Enum, auto


class WeightState(Enum):
    """What is known of the engine's weights, and whether it generates."""

    STARTED = auto()  # it generates with the weights it was started with; the learner gives no work for them
    PAUSING = auto()  # it is told to stop, or lets the answers in flight end
    PAUSED = auto()  # it waits for the weights
    RECEIVING = auto()  # it takes them, and begins to generate again
    PROVING = auto()  # it generates with weights that a probe has yet to prove
    PROVED = auto()  # it generates with weights that are the learner's
    FAILED = auto()  # its weights are unknown


class WeightProof:
    """The state of one engine's weights, for one life of an actor.

    The methods are the events; each raises RuntimeError where the diagram has no such arrow.

    Attributes:
        state: at present.
        version: policy version that the engine has, or is taking; None for the weights it was started with.

    Examples:
        >>> proof = WeightProof()
        >>> proof.pause(); proof.paused(); proof.receive(7); proof.received()
        >>> proof.may_send({7}), proof.is_lost({7})
        (False, False)
        >>> proof.probed(7)
        >>> proof.may_send({7})
        True
    """

    def __init__(self) -> None:
        self.state = WeightState.STARTED
        self.version: int | None = None
        self._proved: set[int] = set()

    def may_send(self, versions: Set[int]) -> bool:
        """Whether answers whose tokens are of these policy versions may be sent."""
        return self.state is not WeightState.FAILED and versions <= self._proved

    def is_lost(self, versions: Set[int]) -> bool:
        """Whether such answers can never be sent, because some of the weights that made them can never be proved."""
        return self.state is WeightState.FAILED or not versions <= self._proved | {self.version}

    def pause(self) -> None:
        """The engine is told to stop generating. A probe that is under way does not count any more."""
        self._go(WeightState.PAUSING, WeightState.STARTED, WeightState.PROVING, WeightState.PROVED)

    def paused(self) -> None:
        """The engine has stopped generating."""
        self._go(WeightState.PAUSED, WeightState.PAUSING)

    def receive(self, version: int) -> None:
        """The paused engine begins to take weights. Even a version that it had before has to be proved anew."""
        self._go(WeightState.RECEIVING, WeightState.PAUSED)
        self._proved.discard(version)
        self.version = version

    def received(self) -> None:
        """It has all of them, and generates with them."""
        self._go(WeightState.PROVING, WeightState.RECEIVING)

    def resumed(self) -> None:
        """The paused engine generates again, with the weights that it had before the pause."""
        if self.version is None:
            self._go(WeightState.STARTED, WeightState.PAUSED)
        elif self.version in self._proved:
            self._go(WeightState.PROVED, WeightState.PAUSED)
        else:
            self._go(WeightState.PROVING, WeightState.PAUSED)

    def probed(self, version: int) -> None:
        """The engine's log-probabilities of the probe, computed with the weights of ``version``, are the learner's."""
        if version != self.version:
            raise RuntimeError(f"a probe of version {version} proves nothing: the engine has version {self.version}")
        self._go(WeightState.PROVED, WeightState.PROVING)
        self._proved.add(version)

    def fail(self) -> None:
        """The weights are unknown from now on."""
        self.state = WeightState.FAILED

    def _go(self, state: WeightState, *before: WeightState) -> None:
        if self.state not in before:
            raise RuntimeError(f"the state of the weights cannot change from {self.state.name} to {state.name}")
        self.state = state
