"""What a study needs to know of the world that its runs take place in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

Figures = Mapping[str, float | None]  # of a finished run, by name; None where the run does not have one


class Place(Protocol):
    """What all arms of a regime and a seed share: the questions, and the policy that they start from.

    Attributes:
        regime: name of the world, as records and tables have it.
        seed: of the world, the warm start and the runs.
    """

    @property
    def regime(self) -> str: ...

    @property
    def seed(self) -> int: ...

    def prepare(self) -> None:
        """Makes the world and the warm-started policy where they are missing. Blocks meanwhile.

        Raises:
            FatalError: the world that is there is one of other code.
            SystemExit: one of the programs failed, after it has printed why.
        """

    def starts_from(self) -> Mapping[str, str]:
        """Digests of what :meth:`prepare` made and all arms start from, by name, for the records: an arm that is run
        later, on another machine or with other code, must start from the same. Needs :meth:`prepare`.

        Empty where :meth:`settings_hash` has them.
        """

    def settings(self, arm: str) -> list[str]:
        """Files and flags of an arm, as ``common.config.load`` reads them, without the directory of the run.

        What they name need not be there before :meth:`prepare`.

        Raises:
            FatalError: the arm cannot run here.
        """

    def settings_hash(self, arm: str) -> str:
        """Twelve digits that tell the settings of an arm from others, wherever its files lie.

        It is asked for before anything is prepared or trained, so that nothing is found wrong after hours.

        Raises:
            ConfigError: the settings are wrong.
            FatalError: the arm cannot run here, or would leave no figures behind.
        """

    def around(self, arm: str, run: Path) -> AbstractContextManager[Sequence[str]]:
        """A block in which a run of an arm is trained: what it asks besides its own processes lives as long.

        Args:
            run: the directory of the run.

        Yields:
            Further flags of the run.
        """

    def figures(self, arm: str, run: Path) -> Figures:
        """The figures of a finished run. Needs :meth:`prepare`, and the end of :meth:`around`.

        Raises:
            FatalError: the run has not finished, or lacks what is read.
        """
