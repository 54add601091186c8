"""The shell scripts: the command they start, and one clear line for each thing that is missing."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from conftest import NANO_CONFIG, ROOT

CONFIG = str(NANO_CONFIG)
ANY_FILE = str(ROOT / "README.md")


def run_script(script: str, *arguments: str, **env: str) -> subprocess.CompletedProcess:
    """Run a script, with ``echo`` in the place of Python."""
    command = ["bash", str(ROOT / "tools" / script), *arguments]
    env = {**os.environ, "PYTHON": "echo", **env}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)


def started(script: str, *arguments: str, **env: str) -> list[str]:
    """The words of the command that the script starts."""
    result = run_script(script, *arguments, **env)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


@pytest.mark.parametrize(("given", "passed"), [((), []), ((ANY_FILE,), ["--pretrained", ANY_FILE])])
def test_one_machine_finds_a_free_port_and_takes_a_pretrained_file(given, passed):
    command = started("dist_train.sh", CONFIG, "2", *given, "--amp")
    assert command[:3] == [str(ROOT / "tools/dist_run.py"), "--standalone", "--nproc_per_node=2"]
    assert command[4:] == [CONFIG, *passed, "--amp", "--launcher", "pytorch"]


def test_several_machines_meet_at_the_master():
    env = dict(NNODES="2", NODE_RANK="1", MASTER_ADDR="10.0.0.1", PORT="29501")
    command = started("dist_train.sh", CONFIG, "8", **env)
    parts = {"--nnodes=2", "--node_rank=1", "--master_addr=10.0.0.1", "--master_port=29501"}
    assert parts <= {*command} and "--standalone" not in command


@pytest.mark.parametrize("order", [("4", ANY_FILE), (ANY_FILE, "4")])
def test_both_orders_of_dist_test_are_understood(order):
    command = started("dist_test.sh", CONFIG, *order, "--eval", "bbox")
    assert "--nproc_per_node=4" in command
    assert command[4:8] == [CONFIG, ANY_FILE, "--eval", "bbox"]


@pytest.mark.parametrize(
    ("script", "arguments", "named"),
    [
        ("dist_train.sh", [CONFIG], "usage: dist_train.sh"),
        ("dist_train.sh", ["no.py", "2"], "config no.py does not exist"),
        ("dist_train.sh", [CONFIG, "two"], "not 'two'"),
        ("dist_train.sh", [CONFIG, "0"], "not '0'"),
        ("dist_train.sh", [CONFIG, "2", "no.pth"], "PRETRAINED no.pth does not exist"),
        ("dist_test.sh", [CONFIG, "2"], "usage: dist_test.sh"),
        ("dist_test.sh", [CONFIG, "a", "b"], "not 'a'"),
        ("dist_test.sh", [CONFIG, "2", "no.pth"], "checkpoint no.pth does not exist"),
        ("slurm_train.sh", ["part", "job", "no.py", "work"], "config no.py does not exist"),
        ("slurm_test.sh", ["part", "job", CONFIG, "no.pth"], "checkpoint no.pth does not exist"),
    ],
)
def test_a_wrong_argument_is_named_in_one_line(script, arguments, named):
    result = run_script(script, *arguments)
    assert result.returncode == 1
    assert re.fullmatch(rf"error: .*{re.escape(named)}.*\n", result.stderr)


def make_command(folder: Path, name: str, body: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


def test_slurm_starts_a_process_per_gpu(tmp_path):
    make_command(tmp_path, "srun", 'echo "$@"')
    env = dict(PATH=f"{tmp_path}:{os.environ['PATH']}", GPUS="16", SRUN_ARGS="--quiet --mem=8G")
    command = started("slurm_train.sh", "part", "job", CONFIG, "work", "--amp", **env)
    parts = {"part", "--ntasks=16", "--ntasks-per-node=8", "--gres=gpu:8", "--mem=8G"}
    assert parts <= {*command}
    assert command[-6:] == [CONFIG, "--work-dir", "work", "--amp", "--launcher", "slurm"]
