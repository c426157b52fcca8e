"""What scripts/env/env.sh says and does when things are missing; nothing here installs anything."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ["awk", "bash", "cat", "chmod", "cksum", "cp", "dirname", "flock", "grep", "mkdir", "rm", "tail", "touch", "wc"]

CPU_WHEEL = '[[ "$*" != *--report* ]] || echo 2.13.0+cpu'
CUDA_WHEEL = '[[ "$*" != *--report* ]] || echo 2.13.0'
NO_WHEEL = '[[ "$*" != *--report* ]] || { echo "ERROR: No matching distribution" >&2; exit 1; }'

# Stands for an interpreter and for the one of the .venv it makes; `pip` is what its pip does.
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

    def run(self, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-euc", f'source {self.root}/scripts/env/env.sh; ensure_env || exit 1; echo "$LRPO_PYTHON"'],
            env={"PATH": str(self.bin), "LRPO_DEVICE": "cpu", **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    def refusal(self, **environment: str) -> str:
        """The error line of a run that has to fail and to leave nothing that passes for complete."""
        result = self.run(**environment)
        assert result.returncode == 1, result.stderr
        assert not (self.root / ".venv/complete").exists()
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
    result.tool("uname", f"#!{shutil.which('bash')}\necho Linux x86_64\n")
    result.disk(kilobytes=100_000_000)
    return result


def test_no_interpreter(sandbox: Sandbox) -> None:
    sandbox.python("python3.11", usable=1)
    assert "no Python >= 3.11" in sandbox.refusal()
    assert "set PYTHON" in sandbox.refusal(PYTHON="/nowhere/python")
    assert not (sandbox.root / ".venv").exists()


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
    assert "see .venv/install.log" in sandbox.refusal()
    assert "ERROR: something else" in (sandbox.root / ".venv/install.log").read_text()


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
    assert sandbox.refusal() == f"error: 3 GB free in {sandbox.root}, but .venv needs 5; free some space"


def test_wrong_device(sandbox: Sandbox) -> None:
    assert "set it to cpu or gpu" in sandbox.refusal(LRPO_DEVICE="tpu")


def test_what_is_current_is_left_alone_and_what_is_not_is_rebuilt(sandbox: Sandbox) -> None:
    sandbox.python(pip=CPU_WHEEL)
    assert sandbox.run().returncode == 0
    installed = sandbox.calls().count("-m pip")
    assert installed == 4
    again = sandbox.run()
    assert (again.returncode, again.stderr, again.stdout) == (0, "", f"{sandbox.root}/.venv/bin/python\n")
    assert sandbox.calls().count("-m pip") == installed
    with (sandbox.root / "scripts/env/dev.txt").open("a") as requirements:
        requirements.write("one-more==1.0\n")
    assert sandbox.run().returncode == 0
    assert sandbox.calls().count("-m pip") == 2 * installed
    assert sandbox.run(LRPO_DEVICE="gpu").returncode == 0
    assert "gpu-no-deps.txt" in sandbox.calls()


def test_an_environment_behind_a_link_is_never_cleared(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "precious").write_text("of others")
    (sandbox.root / ".venv").symlink_to(tmp_path / "shared")
    sandbox.python(pip=CPU_WHEEL)
    assert ".venv is a link" in sandbox.refusal()
    assert (tmp_path / "shared" / "precious").read_text() == "of others"
    assert "venv --clear" not in sandbox.calls()


def test_an_interrupted_installation_is_done_again(sandbox: Sandbox) -> None:
    sandbox.python(pip=CPU_WHEEL + '; [[ "$*" != *no-deps.txt* ]] || exit 1')
    sandbox.refusal()
    sandbox.python(pip=CPU_WHEEL)
    assert sandbox.run().returncode == 0
    assert (sandbox.root / ".venv/complete").exists()
