"""Wall clocks that jump: a library that is preloaded into a process adds the number in a file to every time of day.

Nobody but this file's writer can tell the process from one on a machine whose clock was set, with two exceptions: times
that the kernel itself writes, such as those of files, do not jump, nor does the boot time in ``/proc/stat``.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

_SOURCE = Path(__file__).with_name("clock.c")
_LIBRARY = "chaos_clock.so"
_SHIFT = struct.Struct("=q")  # nanoseconds


class Clocks:
    """The wall clocks of processes, by name.

    Args:
        directory: for the library and the files with the shifts.

    Attributes:
        missing: why there is no library, so that no clock jumps; empty if there is one.
    """

    def __init__(self, directory: Path) -> None:
        self._directory, self.missing = directory, ""
        self._library = directory / _LIBRARY
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            self.missing = "there is no C compiler"
            return
        command = [compiler, "-shared", "-fPIC", "-O2", "-Wall", "-o", str(self._library), str(_SOURCE), "-ldl"]
        built = subprocess.run([*command, "-lpthread"], capture_output=True, text=True, check=False)
        if built.returncode:
            self.missing = f"{compiler} cannot build it: {built.stderr.strip()[-500:]}"

    def environment(self, name: str) -> dict[str, str]:
        """The variables with which a process gets the clock ``name``, which is right at first."""
        if self.missing:
            return {}
        path = self._path(name)
        if not path.exists():
            path.write_bytes(_SHIFT.pack(0))
        before = os.environ.get("LD_PRELOAD", "")
        return {"CHAOS_CLOCK": str(path), "LD_PRELOAD": f"{self._library} {before}".strip()}

    def jump(self, name: str, seconds: float) -> None:
        """Shifts the clock ``name`` by so many seconds more, forwards or backwards."""
        before = _SHIFT.unpack(self._path(name).read_bytes())[0]
        with self._path(name).open("r+b") as file:  # in place: it is mapped
            file.write(_SHIFT.pack(before + round(seconds * 1e9)))

    def holds(self, name: str, pid: int) -> bool:
        """Whether this process reads the clock ``name``."""
        try:
            return str(self._path(name)) in Path(f"/proc/{pid}/maps").read_text()
        except OSError:  # it has ended
            return False

    def _path(self, name: str) -> Path:
        return self._directory / f"clock-{name}"
