"""``lrpo COMMAND ARGUMENT ...``: every command of this project by one name. ``lrpo COMMAND --help`` explains one."""

from __future__ import annotations

import os
import runpy
import select
import sys
from collections.abc import Sequence
from typing import NamedTuple


class Entry(NamedTuple):
    """A command: the module that it runs, as ``python -m MODULE`` would, and what it does, in one line."""

    module: str
    does: str


COMMANDS = {
    "train": Entry("scripts.ops.train", "train on this machine: starts and ends all processes of a run"),
    "recipes": Entry("scripts.ops.recipes", "list the published recipes, which train --recipe NAME runs"),
    "status": Entry("scripts.ops.status", "show a run that is under way"),
    "demo": Entry("scripts.world.demo", "train a small policy on the offline world, on the CPU"),
    "check": Entry("scripts.ops.check", "say whether a model can be trained, and what to do where it cannot"),
    "dry-run": Entry("scripts.ops.dry_run", "compute what a configuration needs, before it is run"),
    "gpu-check": Entry("scripts.gpu_check", "check the code for GPUs on this machine's"),
    "from-verl": Entry("scripts.ops.from_verl", "write the configuration of a verl launch script"),
    "push": Entry("scripts.ops.push", "upload a trained model with a card, or write both to a directory"),
    "prepare": Entry("scripts.data.prepare", "make training data from public sources or your own"),
    "check-data": Entry("scripts.data.check", "say what is wrong with the data of a configuration"),
    "label": Entry("scripts.data.label", "give questions their topic and region"),
    "pass-rate": Entry("scripts.data.pass_rate", "measure how often a model answers each question rightly"),
    "anchors": Entry("scripts.data.anchors", "make English answers that rewards compare others with"),
    "calibrate": Entry("scripts.data.calibrate", "measure similarities of language pairs, for the reward"),
    "warm-start-data": Entry("scripts.data.warm_start_data", "make the examples of a warm start"),
    "cold-start": Entry("scripts.data.cold_start", "make examples in which the policy chooses its language"),
    "sft": Entry("scripts.data.sft", "fine-tune a model on such examples"),
    "evaluate": Entry("scripts.study.evaluate", "score a model on questions and benchmarks"),
    "bench": Entry("scripts.study.bench", "score a model on a public multilingual benchmark"),
    "score": Entry("reward.score", "explain what answers would earn, and why"),
    "compare": Entry("scripts.study.compare", "train configurations with several seeds, and compare them"),
    "iterate": Entry("scripts.study.iterate", "filter the questions, make anchors, train, and again"),
    "study": Entry("scripts.study.experiments", "compare ways to choose languages, or all recipes, over seeds"),
    "choices": Entry("scripts.study.choices", "show which languages a policy chooses"),
    "preferences": Entry("scripts.study.preferences", "make preference pairs of a run's answers"),
    "router": Entry("router", "show what a router has learned, or simulate strategies"),
    "replay": Entry("learner.replay", "train a recorded run again, and compare its losses"),
    "pool": Entry("scripts.pool.launch", "start the processes of a pool file, over ssh and Slurm"),
    "plan": Entry("scripts.pool.plan", "plan which machine does what"),
    "learner": Entry("scripts.ops.launch_learner", "run the learner alone"),
    "reward": Entry("reward", "run one reward process alone"),
    "actor": Entry("actor", "run one actor alone"),
    "health": Entry("scripts.ops.health", "ask one process whether it is well"),
}


def usage() -> str:
    """The help text."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {entry.does}" for name, entry in COMMANDS.items()]
    return "\n".join(["usage: lrpo COMMAND ARGUMENT ...", "", *lines, "", "lrpo COMMAND --help explains a command."])


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command in this process, and imports nothing before it knows which.

    Args:
        arguments: the command's name and its arguments; by default those that the process was given.

    Raises:
        SystemExit: with code 2 if there is no such command, with 141 if nobody reads the output any more, as with
            ``| head``, otherwise as the command does.
    """
    try:
        _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        if not _is_broken(sys.stdout.fileno()):
            raise  # it was another pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the last flush does not fail
        raise SystemExit(141) from None  # as of a program that SIGPIPE ended


def _run(arguments: Sequence[str] | None) -> None:
    name, *rest = arguments if arguments is not None else sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return
    if name not in COMMANDS:
        print(f"error: there is no command {name!r}{_nearest(name)}\n\n{usage()}", file=sys.stderr)
        raise SystemExit(2)
    _prepare_environment()
    from scripts.ops import command_line

    command_line.program = f"lrpo {name}"
    sys.argv[:] = [command_line.program, *rest]
    runpy.run_module(COMMANDS[name].module, run_name="__main__", alter_sys=True)


def _is_broken(descriptor: int) -> bool:
    """Whether nobody reads this pipe any more."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _nearest(name: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, COMMANDS, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _prepare_environment() -> None:
    """What scripts/env/env.sh sets for the shell scripts, where it has not been set.

    As there, LRPO_ENV_SET names what is not the user's own, and so is not for other hosts.
    """
    from common.gpus import visible_gpus

    defaults = {"TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    if not visible_gpus():  # a command that computes says itself what is missing
        defaults |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    missing = {variable: value for variable, value in defaults.items() if variable not in os.environ}
    set_here = [*os.environ.get("LRPO_ENV_SET", "").split(), *missing]
    os.environ.update(missing, LRPO_ENV_SET=" ".join(dict.fromkeys(set_here)))


if __name__ == "__main__":
    main()
