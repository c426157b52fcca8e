"""A child process without the start of an interpreter: ``python -m MODULE ...`` run in a fork of this process.

Starting Python and importing torch and transformers takes seconds of a core, and the tests start more than a hundred
processes. A fork of a process that has imported everything already does the same work in a tenth of a second.
Only modules of this repository, and torchrun, are run in forks; every other command is started as usual.
"""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import gc
import logging
import multiprocessing.util
import os
import runpy
import signal
import subprocess
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import setproctitle

ROOT = Path(__file__).parents[2]
_PR_SET_PDEATHSIG = 1
_OPTIONS = (  # of Popen._execute_child, in order
    "args", "executable", "preexec_fn", "close_fds", "pass_fds", "cwd", "env", "startupinfo", "creationflags", "shell",
    "p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite", "restore_signals", "gid", "gids", "uid",
    "umask", "start_new_session", "process_group",
)  # fmt: skip
_TITLE = 256  # characters: more than in the command line of the fork server
_FORKABLE = ("torch.distributed.run",)  # beside what is in this repository
_SEARCH_PATH = [entry for entry in sys.path if entry and Path(entry).resolve() != ROOT]  # of the interpreter itself


class Program(NamedTuple):
    """What a command runs."""

    module: str
    arguments: list[str]
    environment: dict[str, str]


def program_of(command: Sequence[str], environment: Mapping[str, str], directory: Path) -> Program | None:
    """What ``[env NAME=VALUE ...] python [-u] -m MODULE ARGUMENT ...`` runs.

    Returns:
        None if the command is another or the module is not ours.
    """
    words, variables = list(command), dict(environment)
    if words[:1] == ["env"]:
        words.pop(0)
        while words and "=" in words[0]:
            name, _, variables[name] = words.pop(0).partition("=")
    if not words or words[0] != sys.executable:
        return None
    words = words[2:] if words[1:2] == ["-u"] else words[1:]
    if len(words) < 2 or words[0] != "-m":
        return None
    module = words[1]
    program = Program(module, words[2:], variables)
    if module in _FORKABLE:
        return program
    for entry in _import_path(variables, directory):
        found = Path(entry).absolute() / module.partition(".")[0]
        if found.is_dir() or found.with_suffix(".py").exists():
            ours = found.is_relative_to(ROOT) and not found.is_relative_to(Path(sys.prefix))
            return program if ours else None
    return None


def _import_path(environment: Mapping[str, str], directory: Path) -> list[str]:
    """Where ``python -m`` looks for modules, first to last."""
    own = [str(directory), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    return [*own, *_SEARCH_PATH]


def run_in_this_process(
    module: str,
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str],
    directory: Path,
    streams: Sequence[int],
    keep_open: Sequence[int] = (),
    new_session: bool = False,
    process_group: int = -1,
    prepare: Callable[[], object] | None = None,
) -> NoReturn:
    """Turns a fork into ``python -m module arguments`` and never returns.

    Args:
        streams: file descriptors that become standard input, output and error.
        keep_open: further descriptors that stay open; all others are closed.
        prepare: called at last, as ``preexec_fn`` of ``subprocess.Popen``.
    """
    code = 1
    try:
        _forget_the_parent()
        _arrange_descriptors(streams, keep_open)
        if new_session:
            os.setsid()
        if process_group >= 0:
            os.setpgid(0, process_group)
        if prepare is not None:
            prepare()
        os.chdir(directory)
        # Padded, as what is shorter than the fork server's own command line would be shown with its rest as zeros.
        setproctitle.setproctitle(" ".join([sys.executable, "-m", module, *arguments]).ljust(_TITLE))
        os.environ.clear()  # after the first title, which needs the environment where the interpreter began with it
        os.environ.update(environment)
        sys.path[:] = _import_path(environment, directory)
        sys.argv[:] = [module, *arguments]
        code = _run(module)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _forget_the_parent() -> None:
    """Signals as in a fresh interpreter, no running event loop, and nothing of the parent's is collected here.

    Nor is it cleaned up when this process ends: a temporary directory, for example, is its creator's to remove.
    """
    gc.freeze()
    atexit._clear()
    atexit.register(logging.shutdown)
    weakref.finalize._registry.clear()  # type: ignore[attr-defined]
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]
    multiprocessing.util._finalizer_registry.clear()  # type: ignore[attr-defined]
    atexit.register(multiprocessing.util._exit_function)  # type: ignore[attr-defined]
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    asyncio._set_running_loop(None)
    asyncio.set_event_loop(None)


def _arrange_descriptors(streams: Sequence[int], keep_open: Sequence[int]) -> None:
    copies = [os.dup(stream) for stream in streams]  # above 2, so that none overwrites another
    for number, copy in enumerate(copies):
        os.dup2(copy, number)
    for name in os.listdir("/proc/self/fd"):
        if (number := int(name)) > 2 and number not in keep_open:
            with suppress(OSError):
                os.close(number)


def _run(module: str) -> int:
    """Runs the module as ``__main__`` to its end, as the interpreter would; the exit code."""
    interrupted = False
    entry = f"{module}.__main__" if hasattr(sys.modules.get(module), "__path__") else module
    sys.modules.pop(entry, None)  # imported ahead, for what it imports; now it runs
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as exit:
        code = _exit_code(exit.code)
    except KeyboardInterrupt:
        traceback.print_exc()
        code, interrupted = 130, True
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that are no daemons
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return code


def _exit_code(value: object) -> int:
    if value is None:
        return 0
    if isinstance(value, int):
        return value & 0xFF
    print(value, file=sys.stderr)
    return 1


def die_with(parent: int) -> None:
    """Asks Linux to kill this process when the process that forked it, ``parent``, ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        os._exit(1)


class ForkingPopen(subprocess.Popen[Any]):
    """``subprocess.Popen`` that forks this process where it can instead of starting an interpreter."""

    def _execute_child(self, *given: Any) -> None:
        options = dict(zip(_OPTIONS, given, strict=True))
        command = options["args"]
        environment = dict(os.environ if options["env"] is None else options["env"])
        directory = Path(options["cwd"] or os.getcwd())
        program = None
        if not options["shell"] and not isinstance(command, str | bytes | os.PathLike):
            program = program_of([os.fsdecode(word) for word in command], environment, directory)
        if program is None:
            super()._execute_child(*given)  # type: ignore[misc]
            return
        ends = [options[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        streams = [number if end == -1 else end for number, end in enumerate(ends)]
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        pid = os.fork()
        if pid == 0:
            run_in_this_process(
                program.module,
                program.arguments,
                environment=program.environment,
                directory=directory,
                streams=streams,
                keep_open=options["pass_fds"],
                new_session=options["start_new_session"],
                process_group=options["process_group"],
                prepare=options["preexec_fn"],
            )
        self.pid, self._child_created = pid, True
        pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(options[name] for name in pipes))  # type: ignore[attr-defined]
        self._closed_child_pipe_fds = True
