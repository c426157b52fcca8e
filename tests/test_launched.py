"""Whole runs started by the launchers themselves, over hosts that are network namespaces: ssh, Slurm, Kubernetes.

``pytest -m slow tests/test_launched.py``. Stand-ins of ssh, sbatch, srun, scontrol and of a pod take the place of a
cluster's; what they are told to start is the product's, unchanged, and trains.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from common.process import die_with_parent
from tests.hosts import ROOT, Host, network
from tests.test_cluster import Run
from tests.test_launchers import manifests

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
_STEPS = 3
_PATIENCE = {"learner__lease_timeout_s": 60, "sync__timeout_s": 60}

SSH = """#!/usr/bin/env bash
# A session on that host, with nothing of ours but our input and our output.
while [[ $1 == -o ]]; do shift 2; done
host=$1
shift
exec ip netns exec "$SPACE-${host##*.}" setsid -w bash -c "$*"
"""
SBATCH = """#!/usr/bin/env bash
# The next hosts for each component of the job, which begins at once.
export SLURM_SUBMIT_DIR="$PWD" SLURM_JOB_ID=1 SLURM_JOB_NODELIST=x SLURM_HET_SIZE=0
next=1
while [[ $1 != *.sbatch ]]; do
    if [[ $1 == --nodes=* ]]; then
        hosts=""
        for ((n = 0; n < ${1#*=}; n++)); do hosts+="10.77.0.$((next++)) "; done
        export "SLURM_JOB_NODELIST_HET_GROUP_$((SLURM_HET_SIZE++))=$hosts"
    fi
    shift
done
exec bash "$@"
"""
SRUN = """#!/usr/bin/env bash
# A task on each host of the component, whose name means its address.
while [[ $1 == --* ]]; do
    [[ $1 != --het-group=* ]] || list="SLURM_JOB_NODELIST_HET_GROUP_${1#*=}"
    shift
done
trap 'kill -TERM $(jobs -p)' TERM
task=0
for host in ${!list}; do
    SLURM_PROCID=$((task++)) LRPO_HOST=$host ip netns exec "$SPACE-${host##*.}" "$@" &
done
wait
wait
"""
SCONTROL = '#!/bin/sh\nprintf "%s\\n" $3\n'
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
SSH_POOL = {"learner": 'hosts = ["10.77.0.1", "10.77.0.2"]', "reward": 'hosts = ["10.77.0.3"]'}
SSH_POOL |= {"actor": 'hosts = ["10.77.0.4"]\nengines = 2'}
SLURM_POOL = {"learner": 'partition = "a"\ncount = 2', "reward": 'partition = "b"\ncount = 1'}
SLURM_POOL |= {"actor": 'partition = "c"\ncount = 1'}


@pytest.mark.parametrize(("pool", "options"), [(SSH_POOL, []), (SLURM_POOL, ["--together"])], ids=["ssh", "slurm"])
def test_a_pool_file_becomes_a_run_that_trains(pool: dict[str, str], options: list[str], tmp_path: Path) -> None:
    run = Run(tmp_path, tmp_path, _STEPS, **_PATIENCE)
    (tmp_path / "pool.toml").write_text(POOL.format(**pool))
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in {"ssh": SSH, "sbatch": SBATCH, "srun": SRUN, "scontrol": SCONTROL}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    with network(4) as hosts, run.log("launcher").open("wb") as log:
        own = {"PATH": f"{tools}:{os.environ['PATH']}", "SPACE": hosts[0].space.removesuffix("-1")}
        launcher = subprocess.Popen(
            [ROOT / "scripts" / "launch_pool.sh", tmp_path / "pool.toml", *options, *run.flags],
            cwd=ROOT, env={**os.environ, **run.environment, **own}, stdout=log, stderr=log,
            stdin=subprocess.DEVNULL, preexec_fn=die_with_parent,
        )  # fmt: skip
        summary = run.summary()
        assert launcher.wait(60) == 0
        run.until(lambda: not any(host.pids() for host in hosts), "over on every host")
    assert summary["steps"] == _STEPS and run.ledger() == [*range(4 * _STEPS)]
    assert summary["config"]["learner"]["nodes"] == 2
    place = json.loads((tmp_path / "rendezvous" / "learner.json").read_text())
    assert place["address"] in ("tcp://10.77.0.1:5700", "tcp://10.77.0.2:5700") and place["key"]


POD = """
# A pod in a mount namespace of its own: this machine's programs, and the volumes where the manifest has them.
root=$1 name=$2 volumes=$3
shift 3
hostname "$name"
mount -t tmpfs none "$root"
for path in /*; do
    if [[ -L $path ]]; then cp -P "$path" "$root$path"; elif [[ -d $path ]]; then
        mkdir "$root$path"
        mount --rbind "$path" "$root$path"
    fi
done
mount --bind "$volumes/hosts" "$root/etc/hosts"
mkdir "$root"/{lrpo,config,keys,shared}
mount --bind "$PWD" "$root/lrpo"
for volume in config keys shared; do mount --bind "$volumes/$volume" "$root/$volume"; done
exec chroot "$root" bash -c 'cd /lrpo && exec "$@"' "$name" "$@"
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
    for section, settings in tomllib.loads((ROOT / "scripts/k8s/run.toml").read_text()).items():
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
    environment = [f"{one['name']}={one.get('value', host.address)}" for one in container["env"]]
    inside = ["env", *environment, "PYTHONPATH=/lrpo/tests/light", *command]
    return ["unshare", "--uts", "--mount", "bash", "-euc", POD, "pod", str(place / "root"), name, str(place), *inside]


def test_the_manifests_become_a_run_that_trains_is_well_and_ends_when_told(tmp_path: Path) -> None:
    """Two learner pods, a reward pod and two actors; probes as Kubernetes runs them, in the containers."""
    run = Run(tmp_path, tmp_path, 10_000, **_PATIENCE)
    shutil.copy(tmp_path / "train.parquet", tmp_path / "heldout.parquet")
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
