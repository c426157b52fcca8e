"""What ssh, Slurm, Kubernetes and SkyPilot are told to start: the launch scripts, with flags that are understood."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.config import Config, RunConfig, load
from common.net import rendezvous
from learner.supervision import SUCCESSOR
from learner.work.server import WorkServer
from scripts.ops import supervise
from scripts.ops.health import find_problem
from scripts.ops.supervise import ChildFailed, Children
from scripts.pool import launch as pool_launch
from scripts.pool.launch import Process
from tests.support import processes
from tests.support.chat import serving

ROOT = Path(__file__).parents[2]
_PATIENCE_S = 240  # of what should come, on a busy machine
CONFIG = [str(ROOT / "configs" / name) for name in ("lrpo.toml", "models/qwen2.5-1.5b.toml")]
POOL = """
[gpus.h100]
[gpus.l40s]
[[nodes]]
role = "actor"
gpu = "l40s"
{where}
engines = 2
tp = 2
groups_in_flight = 7
[[nodes]]
role = "reward"
{reward}
[[nodes]]
role = "learner"
gpu = "h100"
{learner}
engines = 3
"""
HOSTS = {"where": 'hosts = ["alpha", "beta"]', "reward": 'hosts = ["alpha"]', "learner": 'hosts = ["gamma", "alpha"]'}
PARTITIONS = {
    "where": 'partition = "l40s"\ncount = 4', "reward": 'partition = "cpu"\ncount = 2',
    "learner": 'partition = "h100"\ncount = 2',
}  # fmt: skip


SCRIPT = (str(ROOT / "scripts" / "launch_pool.sh"),)
FORKED = (sys.executable, "-m", "scripts.pool.launch")  # what the script runs, without the start of an interpreter


def launch(
    path: Path, *arguments: str, pool: str = "", program: Sequence[str] = FORKED, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Gives the command; tests about what the script or ``lrpo`` set for it give that as the ``program``."""
    (path / "pool.toml").write_text(pool)
    command = [*program, str(path / "pool.toml"), *arguments]
    return processes.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
        timeout=_PATIENCE_S,
    )


def started(line: str) -> tuple[dict[str, str], str, Config]:
    """Environment, role and configuration of a command that starts a process."""
    words = shlex.split(line)
    assert words[0] == "env"
    place = next(n for n, word in enumerate(words) if word.startswith("scripts/launch_"))
    assert os.access(ROOT / words[place], os.X_OK)
    role = words[place].removeprefix("scripts/launch_").removesuffix(".sh")
    return dict(word.split("=", 1) for word in words[1:place]), role, load(words[place + 1 :])


def test_over_ssh_each_process_has_its_gpus_name_and_place(tmp_path: Path) -> None:
    told = launch(tmp_path, "--dry-run", *CONFIG, pool=POOL.format(**HOSTS), program=SCRIPT, LRPO_KEYS="/keys")
    assert told.returncode == 0, told.stderr
    found = [
        (shlex.split(line)[1], *started(shlex.split(line)[2]))
        for line in told.stdout.splitlines() if line.startswith("ssh ")
    ]  # fmt: skip
    assert [(host, role) for host, _, role, _ in found] == [
        ("gamma", "learner"), ("alpha", "learner"), ("alpha", "actor"), ("alpha", "actor"), ("beta", "actor"),
        ("beta", "actor"), ("alpha", "reward"),
    ]  # fmt: skip
    gpus = [environment["CUDA_VISIBLE_DEVICES"] for _, environment, _, _ in found]
    assert gpus == ["0,1,2", "0,1,2", "3,4", "5,6", "0,1", "2,3", ""]
    for host, environment, role, config in found:
        assert environment["LRPO_HOST"] == host and environment["LRPO_KEYS"] == "/keys"
        assert (SUCCESSOR in environment) == (role == "learner"), "it is started again when its connection breaks"
        assert (config.learner.nodes, config.learner.ranks, config.learner.torchrun) == (2, 3, "gamma:29400")
        assert config.run.rendezvous == config.run.dir / "rendezvous"
        assert config.learner.address == "tcp://*:5700" and config.reward.addresses == ("tcp://*:5701",)
        assert config.actor.engine_args.get("tp", 1) == (2 if role == "actor" else 1)
        assert role != "actor" or config.actor.groups_in_flight == 7
    names = [config.actor.name for *_, role, config in found if role == "actor"]
    assert len(set(names)) == 4


def test_addresses_of_the_user_hold(tmp_path: Path) -> None:
    """A pool of other ports: the learners' meeting place and the replicas' addresses are taken as they were given."""
    meeting, address = ["--learner.torchrun", "10.0.0.7:31000"], "tcp://10.0.0.9:31001"
    told = launch(
        tmp_path, "--dry-run", *CONFIG, *meeting, "--reward.addresses", json.dumps([address]),
        pool=POOL.format(**HOSTS),
    )  # fmt: skip
    for *_, config in over_ssh(told):
        assert config.learner.torchrun == "10.0.0.7:31000" and config.reward.addresses == (address,)
    other = ["--reward.addresses", json.dumps([address, "tcp://10.0.0.9:31002"])]
    told = launch(tmp_path, "--dry-run", *CONFIG, *other, pool=POOL.format(**HOSTS))
    assert (
        told.returncode == 2 and "so many reward replicas: 2; the pool has 1: give an address for each" in told.stderr
    )


def pool_of(*entries: str) -> str:
    """A pool file whose entries are given each as its role and what follows, as ``actor gpu="a" hosts=["b"]``."""
    tables = []
    for entry in entries:
        role, *rest = shlex.split(entry, posix=False)
        tables.append("\n".join(["[[nodes]]", f'role = "{role}"', *(word.replace("=", " = ", 1) for word in rest)]))
    return "\n".join(["[gpus.a]", *tables, ""])


LEARNER, ACTOR, REWARD = 'learner gpu="a" hosts=["alpha"]', 'actor gpu="a" hosts=["beta"]', 'reward hosts=["beta"]'


def test_the_width_of_an_engine_is_that_of_the_pool_and_of_the_configuration(tmp_path: Path) -> None:
    wide = ["--actor.engine_args.tp", "2"]
    named = f"{ACTOR} tp=2 engines=2"
    for entry, flags in ((f"{ACTOR} engines=2", wide), (named, []), (named, wide)):
        told = launch(tmp_path, "--dry-run", *CONFIG, *flags, pool=pool_of(LEARNER, entry, REWARD))
        found = [(own["CUDA_VISIBLE_DEVICES"], config) for own, role, config in over_ssh(told) if role == "actor"]
        assert [gpus for gpus, _ in found] == ["0,1", "2,3"]
        assert all(config.actor.engine_args["tp"] == 2 for _, config in found)
    for tp in (1, 4):
        told = launch(tmp_path, "--dry-run", *CONFIG, *wide, pool=pool_of(LEARNER, f"{ACTOR} tp={tp}", REWARD))
        assert told.returncode == 2
        assert f"actors of beta have tp = {tp}, and the configuration has actor.engine_args.tp = 2" in told.stderr
    (tmp_path / "wide.toml").write_text("[actor.engine_args]\ntp = 2\n")
    pool = pool_of('actor gpu="a" partition="p" count=3 engines=4')
    told = launch(tmp_path, "--dry-run", *CONFIG, str(tmp_path / "wide.toml"), pool=pool)
    assert told.returncode == 0 and "--gpus-per-task=2" in told.stdout


def test_each_kind_of_machine_has_flags_of_its_engines_own(tmp_path: Path) -> None:
    small = f'{ACTOR} engine_args={{mem_fraction_static=0.7,attention_backend="triton",enable_x=true}}'
    pool = pool_of(LEARNER, REWARD, small, 'actor gpu="a" partition="p" count=1')
    files = [*CONFIG, str(ROOT / "configs" / "gpus-1.toml")]  # which has mem_fraction_static = 0.95
    told = launch(tmp_path, "--dry-run", *files, pool=pool)
    flags = {role: config.actor.engine_args for _, role, config in over_ssh(told)}
    shared = {"max_total_tokens": 196608, "mem_fraction_static": 0.95}
    assert flags["actor"] == shared | {"mem_fraction_static": 0.7, "attention_backend": "triton", "enable_x": True}
    assert flags["learner"] == flags["reward"] == shared
    [job] = [shlex.split(line) for line in told.stdout.splitlines() if line.startswith("sbatch ")]
    assert load(job[job.index("actor") + 3 :]).actor.engine_args == shared
    wrong = {
        f"{ACTOR} engine_args={{port=1}}": "nodes: the actors of beta: configuration: actor.engine_args.port is set by",
        f"{ACTOR} engine_args={{tp=2}}": "engine_args.tp: write it as tp of the entry",
        f"{ACTOR} engine_args={{context-length=1000}}": "actors of beta have engine_args.context_length = 1000, and",
        f"{ACTOR} engine_args={{context_length=[1]}}": "engine_args.context_length",
        f"{REWARD} engine_args={{mem_fraction_static=0.7}}": "role = 'reward' has none: leave them out",
    }
    for entry, complaint in wrong.items():
        told = launch(tmp_path, "--dry-run", *files, pool=pool_of(LEARNER, REWARD, ACTOR, entry))
        assert told.returncode == 2 and complaint in told.stderr, told.stderr


def test_the_command_is_refused_where_the_processes_do_not_start(tmp_path: Path) -> None:
    """A relative path, in the command or in a file, would be another one there."""
    (tmp_path / "pool.toml").write_text(POOL.format(**PARTITIONS))
    (tmp_path / "mine.toml").write_text('[run]\ndir = "runs/mine"\n')
    command = [*SCRIPT, "pool.toml", "--dry-run", *CONFIG, "mine.toml"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=_PATIENCE_S)
    assert told.returncode == 2 and f"give this command in {ROOT}, where all processes start" in told.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "pools").glob("*.toml")), ids=lambda path: path.stem)
def test_the_pools_that_come_with_it_start_every_role(path: Path, tmp_path: Path) -> None:
    told = launch(tmp_path, "--dry-run", *CONFIG, pool=path.read_text())
    assert told.returncode == 0, told.stderr
    started_roles = re.findall(r"scripts/launch_(\w+)\.sh|pool\.sbatch (\w+) ", told.stdout)
    assert {ssh or slurm for ssh, slurm in started_roles} == {"learner", "actor", "reward"}


def test_two_nodes_of_eight_gpus_are_enough_for_the_pool_of_that_name(tmp_path: Path) -> None:
    told = launch(tmp_path, "--dry-run", *CONFIG, pool=(ROOT / "configs" / "pools" / "slurm-2x8.toml").read_text())
    jobs = [shlex.split(line) for line in told.stdout.splitlines() if line.startswith("sbatch ")]
    asked = [dict(word.lstrip("-").split("=") for word in job if word.startswith("--") and "=" in word) for job in jobs]
    assert [job["nodes"] for job in asked] == ["1", "1", "1"]
    gpus = [int(job["gpus-per-task"]) * int(job["ntasks-per-node"]) for job in asked]
    cores = [int(job["cpus-per-task"]) * int(job["ntasks-per-node"]) for job in asked]
    assert gpus == [8, 7, 1] and cores == [64, 56, 8], "the last two share a node"


def test_a_flag_for_the_learner_that_the_pool_contradicts_is_refused(tmp_path: Path) -> None:
    pool = pool_of(f"{LEARNER} engines=8", ACTOR, REWARD)
    for flags, complaint in (
        (["--learner.ranks", "3"], "the learner has 8 engines on each machine, and --learner.ranks says 3"),
        (["--learner.nodes=2", "--run.rendezvous", "x"], "the learner has 1 machines, and --learner.nodes says 2"),
    ):
        told = launch(tmp_path, "--dry-run", *CONFIG, *flags, pool=pool)
        assert told.returncode == 2 and complaint in told.stderr
    told = launch(tmp_path, "--dry-run", *CONFIG, "--learner.ranks", "8", pool=pool)
    assert {config.learner.ranks for *_, config in over_ssh(told)} == {8}, "whatever configs/lrpo.toml says"


def test_a_run_without_rewards_and_a_role_that_nobody_has_are_refused(tmp_path: Path) -> None:
    pool = pool_of(LEARNER, ACTOR)
    told = launch(tmp_path, "--dry-run", *CONFIG, pool=pool)
    assert told.returncode == 2 and "there is a learner, but no [[nodes]] has role = 'reward'" in told.stderr
    elsewhere = ["--reward.addresses", '["tcp://10.0.0.9:31001"]']
    assert len(over_ssh(launch(tmp_path, "--dry-run", *CONFIG, *elsewhere, pool=pool))) == 2
    told = launch(tmp_path, "--dry-run", "--role", "reward", *CONFIG, *elsewhere, pool=pool)
    assert told.returncode == 2 and "--role reward: no [[nodes]] of" in told.stderr and "role = 'reward'" in told.stderr


def test_a_user_of_ssh_is_no_part_of_the_name_of_a_host(tmp_path: Path) -> None:
    pool = pool_of('learner gpu="a" hosts=["me@alpha","beta"] engines=2', 'actor gpu="a" hosts=["alpha"]', REWARD)
    told = launch(tmp_path, "--dry-run", *CONFIG, pool=pool)
    lines = [shlex.split(line) for line in told.stdout.splitlines() if line.startswith("ssh ")]
    assert [words[1] for words in lines] == ["me@alpha", "beta", "alpha", "beta"]
    found = over_ssh(told)
    assert [own["LRPO_HOST"] for own, *_ in found] == ["alpha", "beta", "alpha", "beta"]
    assert [own["CUDA_VISIBLE_DEVICES"] for own, *_ in found] == ["0,1", "0,1", "2", ""], "of one machine"
    assert {config.learner.torchrun for *_, config in found} == {"alpha:29400"}


FOREVER = """#!/usr/bin/env bash
# ssh to processes of which the actors end with the run, and the others do not.
while [[ $1 == -o ]]; do shift 2; done
[[ $* != *launch_actor.sh* ]] || { sleep 2; exit 0; }
cat >/dev/null
"""


def tool(path: Path, name: str, script: str) -> None:
    (path / name).write_text(script)
    (path / name).chmod(0o755)


def keys_in(path: Path) -> Path:
    """A directory of keys."""
    subprocess.run([ROOT / "scripts" / "make_keys.sh", path], check=True, capture_output=True, timeout=_PATIENCE_S)
    return path


def test_the_command_ends_with_the_run_and_not_with_a_reward_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool(tmp_path, "ssh", FOREVER)
    tool(tmp_path, "sbatch", '#!/bin/sh\ntouch "$TOLD"\n')
    own = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LRPO_KEYS": str(keys_in(tmp_path / "keys"))}
    run = ["--run.dir", str(tmp_path / "run")]
    told = launch(tmp_path, *CONFIG, *run, pool=pool_of(REWARD, ACTOR), **own)  # beside a run that is going
    assert told.returncode == 0, told.stderr
    # The learner and the actors are Slurm's: what the learner writes for all hosts says when its run is over.
    place = {"address": "tcp://10.0.0.1:5700", "run": str(tmp_path / "run"), "life": 3, "over": True}
    meeting = tmp_path / "run" / "rendezvous" / "learner.json"
    meeting.parent.mkdir()
    meeting.write_text(json.dumps(place))
    batches = ['learner gpu="a" partition="p" count=1', 'actor gpu="a" partition="p" count=1']
    (tmp_path / "pool.toml").write_text(pool_of(REWARD, *batches))
    for name, value in (own | {"TOLD": str(tmp_path / "told")}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(pool_launch, "_OVER_S", 0.2)
    monkeypatch.chdir(ROOT)
    with ThreadPoolExecutor(1) as executor:
        here = executor.submit(pool_launch.main, [str(tmp_path / "pool.toml"), *CONFIG, *run])
        try:
            within(lambda: (tmp_path / "told").exists() or here.done())
            assert not wait([here], 1.5).done, "the run before this one is over"
        finally:
            meeting.write_text(json.dumps(place | {"life": 4}))
        here.result(_PATIENCE_S)


def test_the_end_of_a_run_that_was_going_already_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Actors that come to a run: nobody announces another learner, the one that runs only says that it is over."""
    monkeypatch.setattr(pool_launch, "_OVER_S", 0.0)
    run = RunConfig(dir=tmp_path, rendezvous=tmp_path / "rendezvous")
    for ends_before in (False, True):
        place = rendezvous.announce(run, "learner", "tcp://127.0.0.1:5700")
        if ends_before:
            rendezvous.retire(run, "learner", place)
        ends = pool_launch.RunEnds(run)
        assert not ends(), "it runs, or was over before"
        if ends_before:
            place = rendezvous.announce(run, "learner", "tcp://127.0.0.1:5700")
            assert not ends(), "another has started"
        rendezvous.retire(run, "learner", place)
        assert ends()


BROKEN = """#!/usr/bin/env bash
# ssh to a host that cannot run an actor; a learner runs until it is told, and ends well.
while [[ $1 == -o ]]; do shift 2; done
[[ $* != *launch_actor.sh* ]] || { echo "error: no GPU here"; echo >>"$TOLD"; exit 1; }
until (($(wc -l <"$TOLD") > 2)); do sleep 0.1; done
"""


@pytest.mark.parametrize("actors", ["both", "over ssh"])
def test_an_actor_over_ssh_that_fails_does_not_end_a_run_with_actors_of_slurm(actors: str, tmp_path: Path) -> None:
    tool(tmp_path, "ssh", BROKEN)
    tool(tmp_path, "sbatch", "#!/bin/sh\n")
    (tmp_path / "told").touch()
    own = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LRPO_KEYS": str(keys_in(tmp_path / "keys"))}
    parts = ['learner gpu="a" hosts=["alpha"]', 'reward partition="p" count=1', 'actor gpu="a" hosts=["beta"]']
    parts += ['actor gpu="a" partition="p" count=1'] * (actors == "both")
    run = ["--run.dir", str(tmp_path / "run")]
    told = launch(tmp_path, *CONFIG, *run, pool=pool_of(*parts), TOLD=str(tmp_path / "told"), **own)
    assert "error: no GPU here" in told.stdout + told.stderr
    assert (told.returncode == 0) == (actors == "both"), told.stderr
    assert ("starting actor-beta-0 again in 4 s" in told.stdout) == (actors == "both")


def test_one_job_of_all_partitions_ends_with_its_actors_and_not_with_a_reward_process(tmp_path: Path) -> None:
    pool = pool_of('reward partition="p" count=1', 'actor gpu="a" partition="p" count=1')
    told = launch(tmp_path, "--dry-run", "--together", *CONFIG, pool=pool)
    [command] = [shlex.split(line) for line in told.stdout.splitlines() if line.startswith("sbatch ")]
    assert [word for word in command if word in ("actor", "reward")] == ["actor", "reward"]


def test_keys_that_are_missing_are_told_before_anything_is_submitted(tmp_path: Path) -> None:
    tool(tmp_path, "sbatch", '#!/bin/sh\necho "$LRPO_KEYS" >"$TOLD"\n')
    told, keys = tmp_path / "told", keys_in(tmp_path / "keys")
    own = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TOLD": str(told)}
    pool = pool_of(*(f'{role} gpu="a" partition="p" count=1' for role in ("learner", "reward", "actor")))

    def refusal(**environment: str) -> str:
        done = launch(tmp_path, *CONFIG, pool=pool, **own, **environment)
        assert done.returncode == 1 and not told.exists()
        return done.stderr

    assert "is not loopback, and there are no keys" in refusal(LRPO_KEYS="")
    assert "server.key of LRPO_KEYS" in refusal(LRPO_KEYS=str(tmp_path / "nowhere"))
    for name in ("server.key_secret", "clients/actor.key_secret", "clients/actor.key"):
        text = (keys / name).read_text()
        (keys / name).unlink()
        assert f"cannot use the key {keys / name} of LRPO_KEYS" in refusal(LRPO_KEYS=str(keys))
        (keys / name).write_text(text)
    done = launch(tmp_path, *CONFIG, pool=pool, LRPO_KEYS=os.path.relpath(keys, ROOT), **own)
    assert done.returncode == 0 and (ROOT / told.read_text().strip()).samefile(keys), "all processes start in ROOT"
    (keys / "server.key_secret").unlink()
    more = pool_of('actor gpu="a" partition="p" count=1')
    assert launch(tmp_path, *CONFIG, pool=more, LRPO_KEYS=str(keys), **own).returncode == 0, "actors have no need of it"


SPREAD = """
[gpus.h100]
[[nodes]]
role = "reward"
hosts = ["alpha"]
[[nodes]]
role = "reward"
partition = "cpu"
count = 2
cpus = 12
memory = "48G"
[[nodes]]
role = "reward"
partition = "h100"
count = 1
engines = 2
memory = "0"
[[nodes]]
role = "reward"
hosts = ["alpha"]
[[nodes]]
role = "actor"
gpu = "h100"
hosts = ["alpha"]
engines = 2
[[nodes]]
role = "actor"
gpu = "h100"
hosts = ["alpha"]
tp = 2
[[nodes]]
role = "learner"
gpu = "h100"
partition = "h100"
count = 1
engines = 4
cpus = 12
memory = "400G"
"""


def over_ssh(told: subprocess.CompletedProcess[str]) -> list[tuple[dict[str, str], str, Config]]:
    assert told.returncode == 0, told.stderr
    return [started(shlex.split(line)[2]) for line in told.stdout.splitlines() if line.startswith("ssh ")]


def test_processes_of_several_nodes_entries_do_not_collide(tmp_path: Path) -> None:
    told = launch(tmp_path, "--dry-run", "--together", *CONFIG, pool=SPREAD)
    found = over_ssh(told)
    [command] = [shlex.split(line) for line in told.stdout.splitlines() if line.startswith("sbatch ")]
    assert slurm(tmp_path / "job", command, SLURM_HET_SIZE="3", TASKS="2", CALLS="5").wait(_PATIENCE_S) == 0
    calls = [json.loads(line) for line in (tmp_path / "job" / "told").read_text().splitlines()]
    replicas = [config.reward.replica for _, role, config in found if role == "reward"]
    replicas += [load(rest).reward.replica for _, script, *rest in calls if script == "launch_reward.sh"]
    assert sorted(replicas) == [*range(6)], "each is served by one process"
    configs = [config for *_, config in found] + [load(rest) for _, _, *rest in calls]
    assert {config.reward.addresses for config in configs} == {tuple(f"tcp://*:{5701 + n}" for n in range(6))}
    actors = [(config.actor.name, own["CUDA_VISIBLE_DEVICES"]) for own, role, config in found if role == "actor"]
    assert actors == [("actor-alpha-0", "0"), ("actor-alpha-1", "1"), ("actor-alpha-2", "2,3")]
    alone = over_ssh(launch(tmp_path, "--dry-run", "--role", "actor", *CONFIG, pool=POOL.format(**HOSTS)))
    assert [own["CUDA_VISIBLE_DEVICES"] for own, *_ in alone] == ["3,4", "5,6", "0,1", "2,3"], "beside the learner's"


def test_slurm_is_asked_for_cores_and_memory(tmp_path: Path) -> None:
    told = launch(tmp_path, "--dry-run", *CONFIG, pool=SPREAD)
    commands = [shlex.split(line) for line in told.stdout.splitlines() if line.startswith("sbatch ")]
    asked = [[word for word in command if re.match("--(cpus|mem)", word)] for command in commands]
    assert asked == [["--cpus-per-task=48", "--mem=400G"], ["--cpus-per-task=12", "--mem=48G"], ["--mem=0"]]
    mixed = launch(tmp_path, "--dry-run", "--together", *CONFIG, pool=SPREAD.replace('memory = "0"', ""))
    assert mixed.returncode == 2 and "name memory in every [[nodes]] with a partition" in mixed.stderr
    job = tmp_path / "job"
    assert slurm(job, commands[0], TASKS="1").wait(_PATIENCE_S) == 0
    assert (job / "told.srun").read_text().split() == ["--cpus-per-task=48", "--kill-on-bad-exit=0"]


def test_what_the_user_has_set_reaches_every_host_and_what_this_host_has_does_not(tmp_path: Path) -> None:
    (tmp_path / "sbatch").write_text('#!/bin/sh\nenv >"$TOLD"\n')
    (tmp_path / "sbatch").chmod(0o755)
    own = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TOLD": str(tmp_path / "told"), "OPENAI_API_KEY": "secret-key"}
    own |= {"LRPO_DEVICE": "", "LRPO_ENV_SET": "", "OMP_NUM_THREADS": "", "LRPO_KEYS": str(keys_in(tmp_path / "keys"))}
    for given in ("1", ""):
        own["HF_HUB_OFFLINE"] = given
        told = launch(tmp_path, "--dry-run", *CONFIG, pool=POOL.format(**HOSTS), program=SCRIPT, **own)
        for environment, *_ in over_ssh(told):
            assert environment.get("HF_HUB_OFFLINE", "") == given and "LRPO_DEVICE" not in environment
        assert "secret-key" not in told.stdout + told.stderr, "the list of processes shows a command to everybody"
        told = launch(tmp_path, *CONFIG, pool=POOL.format(**PARTITIONS), program=SCRIPT, **own)
        assert told.returncode == 0, told.stderr
        job = dict(line.split("=", 1) for line in (tmp_path / "told").read_text().splitlines() if "=" in line)
        assert job.get("HF_HUB_OFFLINE", "") == given and job["OPENAI_API_KEY"] == "secret-key"
        assert not job.keys() & {"LRPO_DEVICE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "LRPO_ENV_SET"}
    own["LRPO_DEVICE"] = "cpu"
    told = launch(tmp_path, "--dry-run", *CONFIG, pool=POOL.format(**HOSTS), program=SCRIPT, **own)
    assert all(environment["LRPO_DEVICE"] == "cpu" for environment, *_ in over_ssh(told)), "the user has said so"


def test_the_command_keeps_what_it_has_set_for_this_host_to_itself(tmp_path: Path) -> None:
    own = {"LRPO_ENV_SET": "", "LRPO_DEVICE": "", "CUDA_VISIBLE_DEVICES": ""}
    for given in ("", "0"):
        setting = f"HF_HUB_OFFLINE={given}" if given else "GIVEN="
        program = ["env", "-u", "HF_HUB_OFFLINE", "-u", "OMP_NUM_THREADS", setting]
        program += [sys.executable, "-m", "scripts.lrpo", "pool"]
        told = launch(tmp_path, "--dry-run", *CONFIG, pool=POOL.format(**HOSTS), program=program, **own)
        assert told.returncode == 0, told.stderr
        for environment, *_ in over_ssh(told):
            assert environment.get("HF_HUB_OFFLINE", "") == given and "OMP_NUM_THREADS" not in environment


def test_actors_that_come_later_ask_the_replicas_that_are_there(tmp_path: Path) -> None:
    more = '[gpus.l40s]\n[[nodes]]\nrole = "actor"\ngpu = "l40s"\nhosts = ["delta"]\n'
    meeting = tmp_path / "rendezvous"
    meeting.mkdir()
    for found in (0, 1, 3):
        if found:
            (meeting / f"reward-{found - 1}.json").write_text("{}")
        if found == 3:
            (meeting / "reward-1.json").write_text("{}")
        told = launch(tmp_path, "--dry-run", *CONFIG, "--run.rendezvous", str(meeting), pool=more)
        [(_, _, config)] = over_ssh(told)
        assert len(config.reward.addresses) == max(1, found)


def test_a_job_that_cannot_be_submitted_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "sbatch").write_text('#!/bin/sh\nn=$(cat "$0.n" 2>/dev/null)\necho 1 >"$0.n"\n[ -z "$n" ] || exit 3\n')
    (tmp_path / "sbatch").chmod(0o755)
    own = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LRPO_KEYS": str(keys_in(tmp_path / "keys"))}
    told = launch(tmp_path, *CONFIG, pool=POOL.format(**PARTITIONS), **own)
    assert told.returncode and "Traceback" not in told.stderr
    assert "error: sbatch submitted no job: ended with code 3; 1 of 3 jobs were submitted before it" in told.stderr


def test_the_keys_are_found_where_the_line_says_that_make_keys_prints(tmp_path: Path) -> None:
    keys = tmp_path / "my 'keys' $HOME"
    script = 'eval "$("$0" "$1")" && printf %s "$LRPO_KEYS"'
    done = subprocess.run(
        ["bash", "-c", script, str(ROOT / "scripts" / "make_keys.sh"), str(keys)],
        capture_output=True, text=True, check=False, timeout=_PATIENCE_S,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, str(keys.resolve())), done.stderr
    assert (keys / "server.key_secret").exists()


def test_keys_are_made_whole_or_again(tmp_path: Path) -> None:
    keys = tmp_path / "keys"

    def make(python: str = "") -> subprocess.CompletedProcess[str]:
        path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        script = [str(ROOT / "scripts" / "make_keys.sh"), str(keys)]
        if python:  # in place of that of the environment
            lines = (ROOT / "scripts" / "make_keys.sh").read_text().replace('"$LRPO_PYTHON"', python)
            (tmp_path / "scripts").mkdir(exist_ok=True)
            (tmp_path / "scripts" / "make_keys.sh").write_text(lines.replace('root="$(', f'root="{ROOT}" #"$('))
            script = ["bash", str(tmp_path / "scripts" / "make_keys.sh"), str(keys)]
        return subprocess.run(
            script, capture_output=True, text=True, check=False, env=os.environ | path, timeout=_PATIENCE_S
        )

    assert make("false").returncode and not list(keys.glob("**/*.key*"))
    done = make()
    assert done.returncode == 0, done.stderr
    files = sorted(str(file.relative_to(keys)) for file in keys.glob("**/*") if file.is_file())
    assert files == ["clients/actor.key", "clients/actor.key_secret", "server.key", "server.key_secret"]
    assert sorted(path.name for path in keys.iterdir()) == ["clients", "server.key", "server.key_secret"]
    assert "has keys already" in make().stderr
    (keys / "clients" / "actor.key_secret").unlink()
    assert "are incomplete: remove its server.key, server.key_secret and clients" in make().stderr


SSH = """#!/usr/bin/env bash
# ssh to a host that cannot be reached at first: another session, which has nothing of us but our input and its output.
while [[ $1 == -o ]]; do shift 2; done
echo "to $1" >>"$TOLD"
(($(wc -l <"$TOLD") > 1)) || exit 255
shift
exec setsid -w bash -c "$*"
"""
REMOTE = 'trap \'echo ended >>"$TOLD"; exit 130\' TERM; echo "started by $0" >>"$TOLD"; while :; do sleep 0.1; done'


def test_a_host_that_is_away_is_tried_again_and_ends_its_process_when_the_connection_does(tmp_path: Path) -> None:
    told = tmp_path / "told"
    (tmp_path / "ssh").write_text(SSH)
    (tmp_path / "ssh").chmod(0o755)
    process = Process("actor-alpha-0", "actor", "alpha", ["bash", "-c", REMOTE, "quoted 'name'"])
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "TOLD": str(told)}
    here = subprocess.Popen(process.over_ssh(), env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
    within(lambda: told.exists() and "started" in told.read_text())
    assert told.read_text().splitlines() == ["to alpha", "to alpha", "started by quoted 'name'"]
    os.killpg(here.pid, signal.SIGTERM)
    here.wait(_PATIENCE_S)
    within(lambda: told.read_text().endswith("ended\n"))


LOCKED = """import os, pathlib, signal, sys, time
from learner.run_lock import await_former, locked
run = pathlib.Path(os.environ["RUN"])
await_former(run)
with locked(run), (run / "told").open("a") as told:
    print("trains", file=told, flush=True)
    while not (run / "cut").exists():
        time.sleep(0.05)
    (run / "cut").unlink()
    if len((run / "told").read_text().splitlines()) == 1:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.kill(int((run / "ssh").read_text()), 9)  # the connection breaks, and this learner takes its time to save
        time.sleep(4)
        print("saved", file=told, flush=True)
    else:
        (run / "over").touch()
"""
CUT = """#!/usr/bin/env bash
# ssh whose connection breaks when it is killed: the other side, in a session of its own, goes on for a while.
while [[ $1 == -o ]]; do shift 2; done
shift
setsid -w bash -c "$*" <&0 &
echo $! >"$RUN/ssh"
wait $! || code=$?
((${code:-0} == 137)) && exit 255
exit "${code:-0}"
"""


def test_a_learner_goes_on_where_its_connection_broke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The learner before it holds the lock of run.dir for longer than it takes to connect again."""
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "ssh").write_text(CUT)
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("RUN", str(run))
    monkeypatch.setattr(supervise, "_AWAY_S", 1.0)
    learner = Process("learner-alpha-0", "learner", "alpha", [sys.executable, "-c", LOCKED])
    ends = iter([["trains"], ["trains", "saved", "trains"]])
    awaited = next(ends)

    def over() -> bool:
        """Cuts each learner off once it trains, and the first time while it saves; the second one ends."""
        nonlocal awaited
        if (run / "told").exists() and (run / "told").read_text().splitlines() == awaited:
            mistaken = subprocess.run(
                learner.command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
            )
            assert mistaken.returncode and "is in use by the learner with process id" in mistaken.stderr, "told at once"
            (run / "cut").touch()
            awaited = next(ends, ["over"])
        return (run / "over").exists()

    with Children(tmp_path / "logs") as children:
        node = Process("learner-beta-0", "learner", "beta", ["sleep", "600"])  # which ends with the learner alone
        again = {"learner": learner.once(again=True), "node": ["true"]}
        children.start_together({"learner": learner.once(), "node": node.once()}, again, 255)
        children.wait_until(over)
        children.wait_for("learner")


def test_a_node_that_fails_because_the_connection_to_another_broke_is_started_again(tmp_path: Path) -> None:
    def shell(text: str) -> list[str]:
        return ["bash", "-c", text]

    with Children(tmp_path) as children:
        first = {"beta": shell("exit 1"), "alpha": shell("sleep 2; exit 255")}
        children.start_together(first, {"beta": shell("echo again"), "alpha": shell("echo again")}, 255)
        children.wait_for("alpha")
        assert [children.log(name).read_text() for name in first] == ["again\n", "again\n"]
    with pytest.raises(ChildFailed, match="beta ended with code 1"), Children(tmp_path) as children:
        failed = {"beta": shell("exit 1"), "alpha": shell("sleep 1; exit 1")}
        children.start_together(failed, failed, 255)
        children.wait_for("alpha")


def test_the_code_of_a_process_that_ends_by_itself_comes_back(tmp_path: Path) -> None:
    (tmp_path / "ssh").write_text(SSH.replace("|| exit 255", ""))
    (tmp_path / "ssh").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "TOLD": str(tmp_path / "told")}
    command = Process("a", "actor", "alpha", ["bash", "-c", "exit 3"]).over_ssh()
    assert subprocess.run(command, env=environment, timeout=_PATIENCE_S, check=False).returncode == 3


def within(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


SRUN = """#!/usr/bin/env bash
# Slurm's srun as far as it matters here: the tasks of a component, one after the other.
group=0
while [[ $1 == --* ]]; do echo "$1" >>"$TOLD.srun"; [[ $1 != --het-group=* ]] || group=${1#*=}; shift; done
[[ -z ${CODE:-} ]] || exit "$CODE"
for ((task = 0; task < TASKS; task++)); do
    SLURM_PROCID=$task GROUP=$group "$@" &
    touch "$TOLD.$!"
    wait $!
    rm "$TOLD.$!"
done
"""
SCANCEL = """#!/usr/bin/env bash
[[ $* == "--signal=TERM 42" ]] || exit 1
for task in "$TOLD".[0-9]*; do [[ ! -e $task ]] || kill -TERM "${task##*.}"; done
"""
LAUNCH = """#!/usr/bin/env bash
trap 'echo ended >>"$TOLD"; exit 130' TERM
[[ -n $LRPO_SUCCESSOR ]] || exit 1 # another learner comes when this one is interrupted
python3 -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$GROUP" "$(basename "$0")" "$@" >>"$TOLD"
# A learner goes on until that many lines are written.
[[ $0 != *learner.sh ]] || while (($(wc -l <"$TOLD") < ${CALLS:-0})); do sleep 0.1; done
"""


def slurm(path: Path, command: list[str], **environment: str) -> subprocess.Popen[str]:
    """Runs a batch script as Slurm would, with launch scripts that only write down how they were called."""
    script = next(n for n, word in enumerate(command) if word.endswith("pool.sbatch"))
    (path / command[script]).parent.mkdir(parents=True)
    shutil.copy(ROOT / command[script], path / command[script])
    tools = {
        "srun": SRUN,
        "scancel": SCANCEL,
        "scontrol": '#!/bin/sh\nsleep "${SLOW:-0}"; [ "$1" = show ] && echo gamma || echo "$@" >>"$TOLD"\n',
    }
    tools |= {f"scripts/launch_{role}.sh": LAUNCH for role in ("learner", "reward", "actor")}
    for name, text in tools.items():
        (path / name).write_text(text)
        (path / name).chmod(0o755)
    own = {"PATH": f"{path}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(path), "TOLD": str(path / "told")}
    lists = {f"SLURM_JOB_NODELIST_HET_GROUP_{n}": "x" for n in range(3)}
    return subprocess.Popen(
        ["bash", command[script], *command[script + 1 :]], cwd=path, text=True,
        env={**os.environ, **own, **lists, "SLURM_JOB_NODELIST": "x", "SLURM_JOB_ID": "42", **environment},
    )  # fmt: skip


def test_slurm_gets_a_job_for_each_pool_or_one_of_all(tmp_path: Path) -> None:
    told = launch(tmp_path, "--dry-run", *CONFIG, pool=POOL.format(**PARTITIONS))
    commands = [shlex.split(line) for line in told.stdout.splitlines() if line.startswith("sbatch ")]
    options = [{*command[1 : command.index("scripts/deploy/slurm/pool.sbatch")]} for command in commands]
    wanted = [("h100", 2, 3, 1), ("l40s", 4, 2, 2), ("cpu", 2, 0, 1)]
    for have, (partition, nodes, gpus, tasks) in zip(options, wanted, strict=True):
        assert {f"--partition={partition}", f"--nodes={nodes}"} <= have
        assert f"--ntasks-per-node={tasks}" in have
        assert {word for word in have if "gpus" in word} == ({f"--gpus-per-task={gpus}"} if gpus else set())
    told = launch(tmp_path, "--dry-run", "--together", *CONFIG, pool=POOL.format(**PARTITIONS))
    [command] = [shlex.split(line) for line in told.stdout.splitlines() if line.startswith("sbatch ")]
    assert command.count(":") == 2 and command.count("--") == 2
    assert slurm(tmp_path / "job", command, SLURM_HET_SIZE="3", TASKS="2", CALLS="5").wait(_PATIENCE_S) == 0
    calls = [json.loads(line) for line in (tmp_path / "job" / "told").read_text().splitlines()]
    assert sorted((group, script) for group, script, *_ in calls) == [
        (str(n), f"launch_{role}.sh") for n, role in enumerate(("learner", "actor", "reward")) for _ in range(2)
    ]
    configs = {script: [load(rest) for _, name, *rest in calls if name == script] for _, script, *_ in calls}
    assert all(config.learner.torchrun == "gamma:29400" for config in configs["launch_learner.sh"])
    assert all(config.learner.nodes == 2 for config in configs["launch_actor.sh"])


def test_slurm_asks_the_learner_to_end_and_queues_the_job_again(tmp_path: Path) -> None:
    told = launch(tmp_path, "--dry-run", "--role", "learner", *CONFIG, pool=POOL.format(**PARTITIONS))
    [command] = [shlex.split(line) for line in told.stdout.splitlines() if line.startswith("sbatch ")]
    job = tmp_path / "job"
    process = slurm(job, command, TASKS="1", CALLS="99")
    within(lambda: (job / "told").exists() and (job / "told").read_text() and [*job.glob("told.[0-9]*")])
    process.send_signal(signal.SIGTERM)
    process.wait(_PATIENCE_S)
    assert (job / "told").read_text().splitlines()[1:] == ["ended", "requeue 42"]


@pytest.mark.parametrize("code", [0, 7])
def test_a_job_whose_first_step_ends_before_the_last_one_is_started_has_its_code(code: int, tmp_path: Path) -> None:
    words = ["actor", "0", "0", "flag", "--", "learner", "0", "0", "flag"]
    command = ["scripts/deploy/slurm/pool.sbatch", *words]
    job = slurm(tmp_path / "job", command, SLURM_HET_SIZE="2", TASKS="1", CODE=str(code), SLOW="1")
    assert job.wait(_PATIENCE_S) == code


def test_wrong_pools_are_refused(tmp_path: Path) -> None:
    uneven = POOL.format(**HOSTS) + '[[nodes]]\nrole = "learner"\ngpu = "h100"\nhosts = ["delta"]\nengines = 2\n'
    apart = (
        POOL.format(**HOSTS) + '[[nodes]]\nrole = "learner"\ngpu = "h100"\npartition = "a"\ncount = 1\nengines = 3\n'
    )
    wrong = {
        uneven: "same number of engines",
        apart: "give all learner nodes in one",
        POOL.format(**HOSTS) + "x = 1": "unknown key",
    }
    wrong |= {
        POOL.format(**HOSTS) + "cpus = 4": "gamma, alpha are reached by ssh",
        SPREAD.replace("48G", "48 GB"): "memory = '48 GB'",
    }
    for pool, complaint in wrong.items():
        told = launch(tmp_path, "--dry-run", *CONFIG, pool=pool)
        assert told.returncode == 2 and re.search(f"error: .*{complaint}", told.stderr), told.stderr


def manifests() -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = yaml.safe_load((ROOT / "scripts/deploy/k8s/run.yaml").read_text())["items"]
    return items


def test_kubernetes_starts_the_launch_scripts_and_asks_our_health(tmp_path: Path) -> None:
    jobset, actors = (one for one in manifests() if one["kind"] in ("JobSet", "Job"))
    jobs = {job["name"]: job["template"] for job in jobset["spec"]["replicatedJobs"]} | {"actor": actors}
    assert set(jobs) == {"learner", "reward", "actor"}
    for role, job in jobs.items():
        [container] = job["spec"]["template"]["spec"]["containers"]
        assert container["command"] == [f"scripts/launch_{role}.sh"]
        here = {"lrpo": ROOT, "config": ROOT / "scripts" / "deploy" / "k8s"}
        files = [str(here[Path(word).parts[1]].joinpath(*Path(word).parts[2:])) for word in container["args"]]
        config = load(files)
        assert container["livenessProbe"]["exec"]["command"] == ["scripts/ops/health.sh", role, *container["args"]]
        secrets = {item["path"] for item in job["spec"]["template"]["spec"]["volumes"][-1]["secret"]["items"]}
        assert ("server.key_secret" in secrets) == (role != "actor")
        if role == "actor":
            probe = container["livenessProbe"]
            patience_s = probe["periodSeconds"] * (probe["failureThreshold"] - 1)
            assert patience_s > config.actor.start_timeout_s, "an engine that failed has the time to start again"
    assert jobs["learner"]["spec"]["completions"] == config.learner.nodes
    assert config.learner.torchrun == "lrpo-learner-0-0.lrpo:29400" and jobset["spec"]["network"]["subdomain"] == "lrpo"


def test_the_manifests_agree_with_kubernetes_schemas() -> None:
    validate = pytest.importorskip(
        "kubernetes_validate", reason="pip install kubernetes-validate for the schemas"
    ).validate
    for one in manifests():
        if one["kind"] == "JobSet":  # its definition is published elsewhere; its jobs are Jobs
            for job in one["spec"]["replicatedJobs"]:
                validate(
                    {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, **job["template"]},
                    "1.30",
                    strict=True,
                )
        else:
            validate(one, "1.30", strict=True)


def test_the_manifest_agrees_with_the_published_models_of_jobset() -> None:
    """And each of its keys is one that they know."""
    models = pytest.importorskip(
        "kubeflow_trainer_api.models", reason="pip install --no-deps kubeflow-trainer-api for JobSet's models"
    )
    [jobset] = (one for one in manifests() if one["kind"] == "JobSet")
    for job in jobset["spec"]["replicatedJobs"]:
        del job["template"]["spec"]["template"]["spec"]["containers"][0]["resources"]  # models want quantities as texts
    known = models.JobsetV1alpha2JobSet.model_validate(jobset).model_dump(mode="json", by_alias=True, exclude_none=True)
    assert keys(jobset) <= keys(known)


def keys(value: Any, where: str = "") -> set[str]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {where}.union(*(keys(child, f"{where}.{key}") for key, child in children))


def test_kustomize_reads_the_manifests() -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl here")
    command = ["kubectl", "kustomize", str(ROOT / "scripts/deploy/k8s")]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert len([*yaml.safe_load_all(text)]) == len(manifests()) + 1, "and the configuration"
    assert "image: lrpo" not in text


def test_the_shell_scripts_pass_shellcheck(tmp_path: Path) -> None:
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("no shellcheck here")
    (tmp_path / "run.sh").write_text(
        "#!/bin/bash\n" + yaml.safe_load((ROOT / "scripts/deploy/skypilot.yaml").read_text())["run"]
    )
    scripts = [*(ROOT / "scripts").rglob("*.sh"), *(ROOT / "scripts/deploy/slurm").iterdir(), tmp_path / "run.sh"]
    done = subprocess.run(
        [shellcheck, "-x", "-P", str(ROOT), *scripts], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


SKY = """#!/usr/bin/env bash
echo "$0 $CUDA_VISIBLE_DEVICES" >>"$TOLD"
[[ $0 != *reward.sh ]] || exec sleep 60
[[ $0 != *learner.sh ]] || exit "$LEARNER"
exit "$((CUDA_VISIBLE_DEVICES < FAILING))"
"""


@pytest.mark.parametrize(
    ("rank", "learner", "failing", "code"), [(0, 0, 0, 0), (0, 7, 0, 7), (1, 0, 0, 0), (1, 0, 2, 0), (1, 0, 3, 1)]
)
def test_skypilot_hears_of_what_has_failed(tmp_path: Path, rank: int, learner: int, failing: int, code: int) -> None:
    """The node of the learner ends with its code; one of three actors fails with it if they all have failed."""
    (tmp_path / "scripts").mkdir()
    for role in ("learner", "reward", "actor"):
        tool(tmp_path / "scripts", f"launch_{role}.sh", SKY)
    script = yaml.safe_load((ROOT / "scripts/deploy/skypilot.yaml").read_text())["run"]
    own = {"SKYPILOT_NODE_RANK": rank, "SKYPILOT_NUM_GPUS_PER_NODE": 3, "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}
    own |= {"LEARNER": learner, "FAILING": failing, "TOLD": tmp_path / "told", "CONFIG": "a.toml"}
    environment = os.environ | {name: str(value) for name, value in own.items()}
    for options in ("-c", "-ec"):
        done = subprocess.run(
            ["bash", options, script], cwd=tmp_path, env=environment, check=False, timeout=_PATIENCE_S
        )
        assert done.returncode == code


def test_health_is_that_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--learner.address", f"ipc://{tmp_path}/queue", "--actor.engine_url", "http://127.0.0.1:9"]
    config = load(flags)
    server = WorkServer(config.learner.address, lease_timeout_s=60)
    assert find_problem("learner", config) == ""
    server.close()
    command = [sys.executable, "-m", "scripts.ops.health", "learner", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=_PATIENCE_S)
    assert done.returncode == 1 and "nothing answers at ipc://" in done.stderr
    with serving(lambda _: "by the proxy") as proxy:
        monkeypatch.setenv("http_proxy", proxy)
        assert "http://127.0.0.1:9 does not answer: <urlopen error [Errno 111]" in find_problem("actor", config)
    unknown = find_problem("actor", load(["--actor.engine_port", "0"]))
    assert "with actor.engine_port = 0 the engine has any free port" in unknown and "127.0.0.1:0" not in unknown
