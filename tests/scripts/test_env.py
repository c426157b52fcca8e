"""What scripts/env/env.sh says and does when things are missing; nothing here installs anything."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = [
    "awk",
    "bash",
    "cat",
    "chmod",
    "cksum",
    "cp",
    "dirname",
    "flock",
    "grep",
    "mkdir",
    "rm",
    "tail",
    "touch",
    "tr",
    "true",
    "wc",
]

CPU_WHEEL = '[[ "$*" != *--report* ]] || echo 2.13.0+cpu'
CUDA_WHEEL = '[[ "$*" != *--report* ]] || echo 2.13.0'
NO_WHEEL = '[[ "$*" != *--report* ]] || { echo "ERROR: No matching distribution" >&2; exit 1; }'

# Stands for an interpreter and for the one of the environment it makes; `pip` is what its pip does.
PYTHON = """#!{bash}
echo "$*" >> {calls}
case "$*" in
    *ensurepip*) exit {usable} ;;
    "-m venv --clear "*) mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
    *"sys.version_info[:3]"*) echo 3.11.7 ;;
    *metadata*) report=$(cat); [[ $report == *+cpu* ]] || exit 2 ;;
    *"-m pip "*) {pip} ;;
esac
"""


@dataclass
class Sandbox:
    """A copy of the scripts, and a PATH with nothing but the usual tools and what a test puts there."""

    root: Path

    @property
    def bin(self) -> Path:
        return self.root / "bin"

    def tool(self, name: str, script: str) -> None:
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(script)
        path.chmod(0o755)

    def python(self, name: str = "python3.11", *, pip: str = "true", usable: int = 0) -> None:
        bash = shutil.which("bash")
        self.tool(name, PYTHON.format(bash=bash, calls=self.root / "calls", pip=pip, usable=usable))

    def disk(self, kilobytes: int) -> None:
        bash = shutil.which("bash")
        self.tool("df", f"#!{bash}\necho Filesystem 1024-blocks Used Available\necho disk 9 9 {kilobytes} 9 /\n")

    def calls(self) -> str:
        path = self.root / "calls"
        return path.read_text() if path.exists() else ""

    def glibc(self, version: str) -> None:
        self.tool("getconf", f"#!{shutil.which('bash')}\n[[ -n '{version}' ]] && echo glibc {version}\n")

    def gpu(self, driver: str = "580.65.06", capability: str = "9.0") -> None:
        lines = f"{driver}, {capability}\n" * 2
        self.tool("nvidia-smi", f"#!{shutil.which('bash')}\necho '{lines}'\n")

    def run(self, function: str = "ensure_env", **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-euc", f'source {self.root}/scripts/env/env.sh; {function} || exit 1; echo "$LRPO_PYTHON"'],
            env={"PATH": str(self.bin), "LRPO_DEVICE": "cpu", **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    def refusal(self, **environment: str) -> str:
        """The error line of a run that has to fail and to leave nothing that passes for complete."""
        result = self.run(**environment)
        assert result.returncode == 1, result.stderr
        assert not (self.root / ".venv-cpu/complete").exists()
        errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and result.stderr.endswith(errors[0] + "\n"), result.stderr
        return errors[0]


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    shutil.copytree(ROOT / "scripts/env", tmp_path / "scripts/env")
    (tmp_path / "bin").mkdir()
    for name in TOOLS:
        if found := shutil.which(name):
            (tmp_path / "bin" / name).symlink_to(found)
    result = Sandbox(tmp_path)
    result.tool(
        "uname", f"#!{shutil.which('bash')}\n[[ $1 != -sm ]] || echo Linux x86_64\n[[ $1 != -s ]] || echo Linux\n"
    )
    result.disk(kilobytes=100_000_000)
    result.glibc("2.36")
    return result


def test_no_interpreter(sandbox: Sandbox) -> None:
    sandbox.python("python3.11", usable=1)
    assert "no Python >= 3.11" in sandbox.refusal()
    assert "set PYTHON" in sandbox.refusal(PYTHON="/nowhere/python")
    assert not (sandbox.root / ".venv-cpu").exists()


def test_broken_interpreters_are_passed_over(sandbox: Sandbox) -> None:
    sandbox.python("python3.11", usable=1)
    sandbox.python("python3.12", pip=CPU_WHEEL)
    result = sandbox.run()
    assert result.returncode == 0, result.stderr
    assert "with python3.12" in result.stderr


def test_no_network(sandbox: Sandbox) -> None:
    sandbox.python(pip='echo "WARNING: Retrying (Retry(total=0)) after connection broken" >&2; exit 1')
    assert "check the network" in sandbox.refusal()


def test_pip_fails(sandbox: Sandbox) -> None:
    sandbox.python(pip='echo "ERROR: something else" >&2; exit 1')
    assert "see .venv-cpu/install.log" in sandbox.refusal()
    assert "ERROR: something else" in (sandbox.root / ".venv-cpu/install.log").read_text()


def test_what_is_on_another_index_is_named(sandbox: Sandbox) -> None:
    """One requirement of SGLang is a stub, which downloads from NVIDIA's index while pip prepares it."""
    sandbox.python(pip='[[ "$*" != *common.txt* ]] || { echo "ERROR: Failed to build cuda-tile" >&2; exit 1; }')
    sandbox.gpu()
    result = sandbox.run(LRPO_DEVICE="gpu")
    assert result.returncode == 1
    assert "cuda-tile, which is on NVIDIA's own package index alone; add that index as" in result.stderr
    assert "PIP_EXTRA_INDEX_URL" in result.stderr


def test_a_cpu_environment_is_made_beside_a_gpu_that_is_too_old(sandbox: Sandbox) -> None:
    sandbox.python(pip=CPU_WHEEL)
    sandbox.gpu(driver="470.1", capability="3.5")
    assert sandbox.run(LRPO_DEVICE="cpu").returncode == 0
    shown = sandbox.run("require_env && LRPO_PYTHON=[$CUDA_VISIBLE_DEVICES]", LRPO_DEVICE="cpu")
    assert shown.stdout == "[]\n", "no process is shown the GPU"


def test_what_is_set_for_this_host_is_told_from_what_the_user_has_set(sandbox: Sandbox) -> None:
    sandbox.python(pip=CPU_WHEEL)
    assert sandbox.run().returncode == 0
    show = (
        'require_env && LRPO_PYTHON="$LRPO_ENV_SET: $LRPO_DEVICE $OMP_NUM_THREADS $HF_HUB_OFFLINE'
        ' [$CUDA_VISIBLE_DEVICES]"'
    )

    def shown(**environment: str) -> str:
        return sandbox.run(show, **environment).stdout.strip()

    assert shown(LRPO_DEVICE="") == "LRPO_DEVICE CUDA_VISIBLE_DEVICES OMP_NUM_THREADS HF_HUB_OFFLINE: cpu 1 1 []"
    assert shown(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="0") == "CUDA_VISIBLE_DEVICES: cpu 1 0 []"
    assert shown(CUDA_VISIBLE_DEVICES="3") == "CUDA_VISIBLE_DEVICES OMP_NUM_THREADS HF_HUB_OFFLINE: cpu 1 1 []"
    # In a script that another one has started: all is set, and the names are those of the first.
    first = {"LRPO_ENV_SET": "OMP_NUM_THREADS CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    assert shown(**first) == "OMP_NUM_THREADS CUDA_VISIBLE_DEVICES: cpu 1 1 []"


def test_a_cuda_build_is_refused_before_it_is_fetched(sandbox: Sandbox) -> None:
    for name in ("python3.11", "python3.12"):
        sandbox.python(name, pip=CUDA_WHEEL)
    line = sandbox.refusal()
    assert "no CPU build of torch==" in line and "PIP_FIND_LINKS" in line and "python3.11 python3.12" in line
    assert "cpu.txt" not in sandbox.calls()


def test_another_interpreter_may_have_a_cpu_build(sandbox: Sandbox) -> None:
    sandbox.python("python3.11", pip=NO_WHEEL)
    sandbox.python("python3.12", pip=CPU_WHEEL)
    result = sandbox.run()
    assert result.returncode == 0, result.stderr
    assert sandbox.calls().count("common.txt") == 1


def test_full_disk(sandbox: Sandbox) -> None:
    sandbox.python()
    sandbox.disk(kilobytes=4_000_000)
    assert sandbox.refusal() == f"error: 3 GB free in {sandbox.root}, but .venv-cpu needs 5; free some space"


def test_wrong_device(sandbox: Sandbox) -> None:
    assert "set it to cpu or gpu" in sandbox.refusal(LRPO_DEVICE="tpu")


def test_what_is_current_is_left_alone_and_what_is_not_is_rebuilt(sandbox: Sandbox) -> None:
    sandbox.python(pip=CPU_WHEEL)
    assert sandbox.run().returncode == 0
    installed = sandbox.calls().count("-m pip")
    assert installed == 5
    again = sandbox.run()
    assert (again.returncode, again.stderr, again.stdout) == (0, "", f"{sandbox.root}/.venv-cpu/bin/python\n")
    assert sandbox.calls().count("-m pip") == installed
    with (sandbox.root / "scripts/env/dev.txt").open("a") as requirements:
        requirements.write("one-more==1.0\n")
    assert sandbox.run().returncode == 0
    assert sandbox.calls().count("-m pip") == 2 * installed


def test_each_device_has_its_own_environment(sandbox: Sandbox) -> None:
    sandbox.python(pip=CPU_WHEEL)
    assert sandbox.run().returncode == 0
    cpu = (sandbox.root / ".venv-cpu/complete").read_text()
    sandbox.gpu()
    made = sandbox.run(LRPO_DEVICE="gpu")
    assert made.returncode == 0 and made.stdout == f"{sandbox.root}/.venv-gpu/bin/python\n", made.stderr
    assert "gpu-no-deps.txt" in sandbox.calls()
    assert (sandbox.root / ".venv-cpu/complete").read_text() == cpu
    with (sandbox.root / "scripts/env/gpu.txt").open("a") as requirements:
        requirements.write("one-more==1.0\n")
    assert sandbox.run("require_env").returncode == 0, "the CPU's does not depend on the list for GPUs"


def test_other_commands_refuse_and_never_build(sandbox: Sandbox) -> None:
    sandbox.python(pip=CPU_WHEEL)
    missing = sandbox.run("require_env")
    assert missing.stderr == "error: .venv-cpu is missing: run LRPO_DEVICE=cpu ./scripts/setup.sh\n"
    assert missing.returncode == 1 and not sandbox.calls()
    assert sandbox.run().returncode == 0
    assert sandbox.run("require_env").returncode == 0
    before = sandbox.calls().count("-m pip")
    with (sandbox.root / "scripts/env/common.txt").open("a") as requirements:
        requirements.write("one-more==1.0\n")
    outdated = sandbox.run("require_env")
    assert outdated.returncode == 1 and outdated.stderr.count("\n") == 1
    assert ".venv-cpu is not what scripts/env/*.txt say" in outdated.stderr
    assert sandbox.calls().count("-m pip") == before
    sandbox.gpu()
    assert "or set LRPO_DEVICE=cpu to use .venv-cpu" in sandbox.run("require_env", LRPO_DEVICE="").stderr


def test_an_environment_in_use_is_not_rebuilt(sandbox: Sandbox) -> None:
    if shutil.which("flock") is None:
        pytest.skip("no flock here")
    sandbox.python(pip=CPU_WHEEL)
    assert sandbox.run().returncode == 0
    stamp = sandbox.root / ".venv-cpu/complete"
    user = f"source {sandbox.root}/scripts/env/env.sh; require_env; echo ready; read -r"
    with subprocess.Popen(
        ["bash", "-euc", user],
        env={"PATH": str(sandbox.bin), "LRPO_DEVICE": "cpu"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as running:  # fmt: skip
        assert running.stdout is not None and running.stdout.readline() == "ready\n"
        assert sandbox.run().returncode == 0, "nothing has to be built"
        with (sandbox.root / "scripts/env/dev.txt").open("a") as requirements:
            requirements.write("one-more==1.0\n")
        for builder in ("ensure_env", "update_env"):
            refused = sandbox.run(builder)
            assert refused.returncode == 1 and "running processes use it" in refused.stderr
        assert stamp.exists()
        running.communicate("\n")
    assert sandbox.run("update_env").returncode == 0
    assert sandbox.calls().count("venv --clear") == 1, "it was updated in place"
    assert sandbox.run("require_env").returncode == 0


@pytest.mark.parametrize(("version", "told"), [("2.27", "2.27"), ("", "no glibc")])
def test_an_old_c_library_is_named_before_anything_is_fetched(sandbox: Sandbox, version: str, told: str) -> None:
    sandbox.python()
    sandbox.glibc(version)
    line = sandbox.refusal()
    assert "glibc 2.28 or newer" in line and told in line
    sandbox.glibc("2.31")
    assert sandbox.run(LRPO_DEVICE="gpu").stderr.startswith("error: SGLang's wheel needs glibc 2.34")
    assert "pip" not in sandbox.calls()


def test_an_old_driver_or_gpu_is_named_before_anything_is_fetched(sandbox: Sandbox) -> None:
    sandbox.python()
    sandbox.gpu(driver="535.183.01")
    assert "driver is 535.183.01" in sandbox.run(LRPO_DEVICE="gpu").stderr
    sandbox.gpu(capability="7.0")
    assert "compute capability 7.0" in sandbox.run(LRPO_DEVICE="gpu").stderr
    sandbox.tool("nvidia-smi", f"#!{shutil.which('bash')}\nexit 9\n")
    assert "nvidia-smi lists no GPU" in sandbox.run(LRPO_DEVICE="gpu").stderr
    assert "pip" not in sandbox.calls()
    sandbox.gpu(driver="581.2", capability="7.5")
    assert sandbox.run(LRPO_DEVICE="gpu").returncode == 0


@pytest.mark.parametrize("broken", [False, True])
def test_a_process_that_was_given_a_gpu_does_not_begin_on_the_cpu(sandbox: Sandbox, broken: bool) -> None:
    sandbox.python(pip=CPU_WHEEL)
    assert sandbox.run().returncode == 0
    if broken:
        sandbox.tool("nvidia-smi", f"#!{shutil.which('bash')}\nexit 9\n")
    given = sandbox.run("require_env", LRPO_DEVICE="", CUDA_VISIBLE_DEVICES="3")
    assert given.returncode == 1 and given.stderr.count("\n") == 1
    assert "error: CUDA_VISIBLE_DEVICES is 3, and nvidia-smi lists no GPU; mend the driver" in given.stderr
    for named in ("", "-1", "NoDevFiles"):
        assert sandbox.run("require_env", LRPO_DEVICE="", CUDA_VISIBLE_DEVICES=named).returncode == 0
    assert sandbox.run("require_env", LRPO_DEVICE="cpu", CUDA_VISIBLE_DEVICES="3").returncode == 0


def test_a_link_to_what_the_lists_say_is_used(sandbox: Sandbox) -> None:
    sandbox.python(pip=CPU_WHEEL)
    assert sandbox.run().returncode == 0
    (sandbox.root / ".venv-cpu").rename(sandbox.root / "shared")
    (sandbox.root / ".venv-cpu").symlink_to(sandbox.root / "shared")
    assert sandbox.run("require_env").returncode == sandbox.run().returncode == 0


def test_an_environment_behind_a_link_is_never_cleared(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "precious").write_text("of others")
    (sandbox.root / ".venv-cpu").symlink_to(tmp_path / "shared")
    sandbox.python(pip=CPU_WHEEL)
    assert ".venv-cpu is a link" in sandbox.refusal()
    assert (tmp_path / "shared" / "precious").read_text() == "of others"
    assert "venv --clear" not in sandbox.calls()


def test_an_interrupted_installation_is_done_again(sandbox: Sandbox) -> None:
    sandbox.python(pip=CPU_WHEEL + '; [[ "$*" != *no-deps.txt* ]] || exit 1')
    sandbox.refusal()
    sandbox.python(pip=CPU_WHEEL)
    assert sandbox.run().returncode == 0
    assert (sandbox.root / ".venv-cpu/complete").exists()
