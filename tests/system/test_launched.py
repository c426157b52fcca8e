"""Whole runs started by the launchers themselves, over hosts that are network namespaces: ssh, Slurm, Kubernetes.

``pytest -m slow tests/system/test_launched.py``. Stand-ins of ssh and of a pod take the place of a cluster's, Slurm
is itself; what they are told to start is the product's, unchanged, and trains.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tomllib
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import pyarrow.parquet as pq
import pytest

from common.parent import die_with_parent
from tests.scripts.test_launchers import manifests
from tests.support.hosts import ROOT, Host, network
from tests.system.test_cluster import Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
_STEPS, _ENOUGH, _CUTS_STEPS = 3, 60, 30  # the others: for a run that is not over before it is interrupted
_PATIENCE = {"learner__lease_timeout_s": 60, "sync__timeout_s": 60}

SSH = """#!/usr/bin/env bash
# A session on that host, with nothing of ours but our input and our output.
while [[ $1 == -o ]]; do shift 2; done
host=$1
shift
exec ip netns exec "$SPACE-${host##*.}" setsid -w bash -c "$*"
"""
SSH_THAT_BREAKS = """#!/usr/bin/env bash
# As above, until a connection is cut: the session, whose input ends with it, goes on for as long as it takes to end.
while [[ $1 == -o ]]; do shift 2; done
host=$1
shift
ip netns exec "$SPACE-${host##*.}" setsid -w bash -c "$*" <&0 &
while kill -0 $! 2>/dev/null; do
    [[ ! -e $CUTS/$host ]] || { rm "$CUTS/$host"; echo "ssh: connection to $host reset" >&2; exit 255; }
    sleep 0.2
done
wait $!
"""
SLURM_CONF = """
ClusterName=lrpo
SlurmctldHost=n1({first})
AuthType=auth/none
AuthInfo=cred_expire=5
CredType=cred/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation={path}/state
SlurmdSpoolDir={path}/spool-%n
SlurmdPidFile={path}/%n.pid
SlurmctldPidFile={path}/slurmctld.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
GresTypes=gpu
MpiDefault=none
ReturnToService=2
"""
NODE = """
# On a node of the cluster, which has a name that means its address.
hostname "$0"
mount --bind "$1" /etc/hosts
unset LRPO_HOST
shift
exec "$@"
"""
POOL = """
[gpus.x]
[[nodes]]
role = "learner"
gpu = "x"
{learner}
[[nodes]]
role = "reward"
{reward}
[[nodes]]
role = "actor"
gpu = "x"
{actor}
"""
HOSTS = {"learner": 'hosts = ["10.77.0.1", "10.77.0.2"]', "reward": 'hosts = ["10.77.0.3"]'}
HOSTS |= {"actor": 'hosts = ["10.77.0.4"]\nengines = 2'}
# Two entries of one role, whose processes must not take each other's places; and what Slurm has to give to each.
PARTITIONS = {"learner": 'partition = "a"\ncount = 2\ncpus = 2\nmemory = "900M"'}
PARTITIONS |= {"actor": 'partition = "c"\ncount = 1\nengines = 2\nmemory = "800M"'}
_SECOND = '[[nodes]]\nrole = "reward"\npartition = "d"\ncount = 1\nmemory = "600M"'
PARTITIONS |= {"reward": f'partition = "b"\ncount = 1\nmemory = "700M"\n{_SECOND}'}
_GIVEN = ["a 4 900M", "b 1 700M", "c 2 800M", "d 1 600M"]  # partition, cores, memory of a node


def pool(run: Run, kind: dict[str, str], *options: str) -> list[str]:
    """The command that starts it."""
    path = run.directory / "pool.toml"
    path.write_text(POOL.format(**kind))
    return [str(ROOT / "scripts" / "launch_pool.sh"), str(path), *options, *run.flags]


def check(run: Run, steps: int) -> None:
    """A run over two learner nodes is over, and nothing of it lost or doubled."""
    summary = run.summary()
    assert summary["steps"] == steps and run.ledger() == [*range(4 * steps)]
    assert summary["config"]["learner"]["nodes"] == 2
    place = json.loads((run.directory / "rendezvous" / "learner.json").read_text())
    assert place["address"] in ("tcp://10.77.0.1:5700", "tcp://10.77.0.2:5700") and place["key"]


def launch(
    run: Run, hosts: Sequence[Host], log: IO[bytes], tools: Path, ssh: str, **own: str
) -> subprocess.Popen[bytes]:
    """Starts the launcher of a pool, with a script in place of ssh, which is put into ``tools``."""
    tools.mkdir()
    (tools / "ssh").write_text(ssh)
    (tools / "ssh").chmod(0o755)
    own |= {"PATH": f"{tools}:{os.environ['PATH']}", "SPACE": hosts[0].space.removesuffix("-1")}
    return subprocess.Popen(
        pool(run, HOSTS), cwd=ROOT, env={**os.environ, **run.environment, **own}, stdout=log, stderr=log,
        stdin=subprocess.DEVNULL, preexec_fn=die_with_parent,
    )  # fmt: skip


def test_a_pool_of_hosts_becomes_a_run_that_trains(tmp_path: Path) -> None:
    run = Run(tmp_path, tmp_path, _STEPS, **_PATIENCE)
    with network(4) as hosts, run.log("launcher").open("wb") as log:
        launcher = launch(run, hosts, log, tmp_path / "tools", SSH)
        check(run, _STEPS)
        assert launcher.wait(60) == 0
        run.until(lambda: not any(host.pids() for host in hosts), "over on every host")


def test_a_pool_goes_on_when_the_connection_to_a_learner_node_breaks(tmp_path: Path) -> None:
    """To either of two nodes, one after the other. All save, and begin again from that checkpoint."""
    run = Run(tmp_path, tmp_path, _CUTS_STEPS, **_PATIENCE)
    with network(4) as hosts, run.log("launcher").open("wb") as log:
        tools = tmp_path / "tools"
        launcher = launch(run, hosts, log, tools, SSH_THAT_BREAKS, CUTS=str(tools), LIGHT_TOKEN_S="0.02")

        def steps() -> int:
            return len(run.told("launcher", r" step \d+/"))

        def resumed() -> int:
            return len(run.told("launcher", r"resuming after step \d+"))

        for cut, host in enumerate(("10.77.0.1", "10.77.0.2")):
            wanted = steps() + 2
            run.until(partial(lambda wanted: steps() >= wanted, wanted), "training")
            (tools / host).touch()
            run.until(partial(lambda cut: resumed() > cut, cut), "resumed")
        check(run, _CUTS_STEPS)
        assert launcher.wait(60) == 0
        run.until(lambda: not any(host.pids() for host in hosts), "over on every host")
    saved = run.told("launcher", r"interrupted after step (\d+); the same command resumes")
    assert run.told("launcher", r"resuming after step (\d+)") == saved


def slurm(directory: Path, hosts: list[Host]) -> Callable[..., subprocess.Popen[bytes]]:
    """A Slurm cluster of five nodes: partition a of the first two, then b, c and d. Returns what runs on a node."""
    path = directory / "slurm"
    for name in ("state", *(f"spool-n{n}" for n in range(1, 6))):
        (path / name).mkdir(parents=True)
    names = {f"n{n}": host.address for n, host in enumerate(hosts, start=1)}
    nodes = [f"NodeName={name} NodeAddr={address} CPUs=2 RealMemory=1000 Gres=gpu:2" for name, address in names.items()]
    partitions = [
        f"PartitionName={name} Nodes={of}" for name, of in {"a": "n[1-2]", "b": "n3", "c": "n4", "d": "n5"}.items()
    ]
    text = SLURM_CONF.format(first=hosts[0].address, path=path) + "\n".join([*nodes, *partitions]) + "\n"
    (path / "slurm.conf").write_text(text)
    (path / "gres.conf").write_text("Name=gpu File=/dev/tty[0-1]\n")  # devices that are there, and that nobody opens
    (path / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # the one that does nothing until it is asked
    (path / "hosts").write_text("127.0.0.1 localhost\n" + "".join(f"{a} {n}\n" for n, a in names.items()))

    def on(n: int, log: Path, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        inside = ["unshare", "--uts", "--mount", "bash", "-euc", NODE, f"n{n}", str(path / "hosts"), *command]
        return hosts[n - 1].start(inside, log, {**environment, "SLURM_CONF": str(path / "slurm.conf")})

    on(1, directory / "slurm.log", "slurmctld", "-D")
    for n in range(1, len(hosts) + 1):
        on(n, directory / "slurm.log", "slurmd", "-D", "-N", f"n{n}")
    return on


@pytest.mark.skipif(shutil.which("slurmctld") is None, reason="apt-get install slurmctld slurmd slurm-client")
def test_partitions_become_a_slurm_job_that_trains_and_goes_on_when_it_is_queued_again(tmp_path: Path) -> None:
    """One heterogeneous job under Slurm itself. Its time is nearly over; it saves, is queued again and resumes."""
    run = Run(tmp_path, tmp_path, _ENOUGH, **_PATIENCE)
    run.environment["LIGHT_TOKEN_S"] = "0.02"
    with network(5) as hosts:
        on = slurm(tmp_path, hosts)

        def told(*command: str) -> list[str]:
            answer = tmp_path / "answer"
            answer.unlink(missing_ok=True)
            on(1, answer, *command).wait(60)
            return answer.read_text().splitlines()

        run.until(lambda: [line.split()[-1] for line in told("sinfo", "-h", "-N")] == ["idle"] * 5, "waiting for jobs")
        own = {**run.environment, "SBATCH_OUTPUT": str(run.log("learner"))}
        assert on(1, run.log("launcher"), *pool(run, PARTITIONS, "--together"), **own).wait(60) == 0
        run.until(lambda: run.step() >= 3, "training")
        rewards = {path.name for path in (run.directory / "rendezvous").glob("reward-*")}
        assert rewards == {"reward-0.json", "reward-1.json"}
        assert sorted(told("squeue", "-h", "-o", "%P %C %m")) == _GIVEN
        steps = "\n".join(told("scontrol", "show", "step"))
        assert "TresPerTask=cpu:2,gres:gpu:1" in steps, "the learner's tasks have what the job has been given for them"
        told("scancel", "--batch", "--signal=TERM", "1")
        run.until(lambda: run.told("learner", r"resuming after step \d+"), "resumed")
        check(run, _ENOUGH)
        [saved] = run.told("learner", r"interrupted after step (\d+); the same command resumes")
        assert run.told("learner", r"resuming after step (\d+)") == [saved]
        run.until(lambda: not told("squeue", "-h"), "over for Slurm")


POD = """
# A pod in a mount namespace of its own: this machine's programs, and the volumes where the manifest has them.
root=$1 name=$2 volumes=$3 directory=$4 mounts=$5
shift 5
hostname "$name"
mount -t tmpfs none "$root"
for path in /*; do
    if [[ -L $path ]]; then cp -P "$path" "$root$path"; elif [[ -d $path ]]; then
        mkdir "$root$path"
        mount --rbind "$path" "$root$path"
    fi
done
mount --bind "$volumes/hosts" "$root/etc/hosts"
mkdir "$root/lrpo"
mount --bind "$PWD" "$root/lrpo"
for each in $mounts; do
    mkdir "$root${each#*:}"
    mount --bind "$volumes/${each%:*}" "$root${each#*:}"
done
exec chroot "$root" bash -c 'cd "$0" && exec "$@"' "$directory" "$@"
"""


def run_toml(flags: list[str], **own: object) -> str:
    """The cluster's file of the repository, over small settings of a test; ``own`` over both."""
    values: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for flag, text in zip(flags[::2], flags[1::2], strict=True):
        section, key = flag.removeprefix("--").split(".")
        try:
            values[section][key] = tomllib.loads(f"x = {text}")["x"]
        except tomllib.TOMLDecodeError:
            values[section][key] = text
    for section, settings in tomllib.loads((ROOT / "scripts/deploy/k8s/run.toml").read_text()).items():
        values[section] |= settings
    for name, value in own.items():
        section, key = name.split("__")
        values[section][key] = value
    lines = (
        f"{key} = {json.dumps(value)}\n" if key else f"[{section}]\n"
        for section, settings in values.items()
        for key, value in {"": None, **settings}.items()
    )
    return "".join(lines)


def pod(run: Run, name: str, host: Host, spec: dict[str, Any], command: list[str]) -> list[str]:
    """Runs ``command`` as the one container of a pod."""
    place = run.directory / "pods" / f"{name}-{len(list(run.directory.glob('pods/*')))}"
    (place / "root").mkdir(parents=True)
    for volume, target in {"shared": "", "config": "config", "hosts": "config/hosts"}.items():
        (place / volume).symlink_to(run.directory / target)
    secret = {path.name: path for path in run.directory.glob("keys/**/*.key*")}
    [items] = [volume["secret"]["items"] for volume in spec["volumes"] if volume["name"] == "keys"]
    for item in items:
        target = place / "keys" / item["path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(secret[item["key"]], target)
    [container] = spec["containers"]
    environment = [
        f"{one['name']}={one.get('value', host.address)}"
        for one in container["env"]
        if "secretKeyRef" not in one.get("valueFrom", {})
    ]
    inside = ["env", *environment, "PYTHONPATH=/lrpo/tests/support/light", *command]
    mounts = " ".join(f"{one['name']}:{one['mountPath']}" for one in container["volumeMounts"] if one["name"] != "shm")
    own = [str(place / "root"), name, str(place), container["workingDir"], mounts]
    return ["unshare", "--uts", "--mount", "bash", "-euc", POD, "pod", *own, *inside]


def test_the_manifests_become_a_run_that_trains_is_well_and_ends_when_told(tmp_path: Path) -> None:
    """Two learner pods, a reward pod and two actors; probes as Kubernetes runs them, in the containers."""
    run = Run(tmp_path, tmp_path, 10_000, **_PATIENCE)
    questions = pq.read_table(tmp_path / "train.parquet")
    pq.write_table(questions.slice(2), tmp_path / "train.parquet")
    pq.write_table(questions.slice(0, 2), tmp_path / "heldout.parquet")
    (tmp_path / "pairs.csv").write_text("lang_a,lang_b,count,mean,std\nGerman,English,50,0.6,0.1\n")
    (tmp_path / "config").mkdir()
    own = {"learner__ranks": 1, "reward__embedder": "use", "sync__backend": "gloo", "learner__record": "/shared/record"}
    (tmp_path / "config" / "run.toml").write_text(run_toml(run.flags, **own))
    jobset, actors = (one["spec"] for one in manifests() if one["kind"] in ("JobSet", "Job"))
    jobs = {job["name"]: job["template"]["spec"] for job in jobset["replicatedJobs"]} | {"actors": actors}
    pods = [("learner", 0), ("learner", 1), ("reward", 0), ("actors", 0), ("actors", 1)]
    assert jobs["learner"]["completions"] == 2
    with network(len(pods)) as hosts:
        places = {f"lrpo-{job}-0-{n}": (job, host) for (job, n), host in zip(pods, hosts, strict=True)}
        names = [f"{host.address} {name} {name}.lrpo\n" for name, (_, host) in places.items()]
        (tmp_path / "config" / "hosts").write_text("127.0.0.1 localhost\n" + "".join(names))
        started = {}
        for name, (job, host) in places.items():
            spec = jobs[job]["template"]["spec"]
            container = spec["containers"][0]
            started[name] = host.start(
                pod(run, name, host, spec, container["command"] + container["args"]), run.log(job), {}
            )
        run.until(lambda: run.step() >= 2, "training")
        for name, (job, host) in places.items():
            spec = jobs[job]["template"]["spec"]
            probe = spec["containers"][0]["livenessProbe"]["exec"]["command"]
            assert host.start(pod(run, name, host, spec, probe), run.log("probes"), {}).wait(60) == 0, name
        learners = [process for name, process in started.items() if name.startswith("lrpo-learner")]
        for process in learners:
            process.terminate()
        run.until(lambda: all(process.poll() is not None for process in learners), "ended")
    [saved] = run.told("learner", r"interrupted after step (\d+); the same command resumes")
    assert (tmp_path / "run" / "checkpoints" / f"step-{int(saved):06d}" / "manifest.json").exists()
    found = run.ledger()
    assert len(set(found)) == len(found) == 4 * int(saved)
