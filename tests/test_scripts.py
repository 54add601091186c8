"""The shell scripts: the command they start, and one clear line for each thing that is missing."""

import os
import re
import signal
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


@pytest.mark.parametrize("machines", [{}, dict(NNODES="2", NODE_RANK="1", MASTER_ADDR="10.0.0.1")])
def test_restarts_need_a_meeting_place_that_machines_may_leave(machines):
    command = started("dist_train.sh", CONFIG, "2", "--resume", MAX_RESTARTS="3", **machines)
    place = {"--standalone"}
    if machines:
        place = {"--nnodes=2", "--rdzv-backend=c10d", "--rdzv-endpoint=10.0.0.1:29500"}
    assert {"--max-restarts=3", *place} <= {*command}
    assert not any(part.startswith("--master_addr") for part in command)
    tested = started("dist_test.sh", CONFIG, "2", ANY_FILE, MAX_RESTARTS="3", **machines)
    assert not any("restarts" in part for part in tested)


@pytest.mark.fault("shell scripts, Slurm")
@pytest.mark.parametrize("order", [("4", ANY_FILE), (ANY_FILE, "4")])
def test_both_orders_of_dist_test_are_understood(order):
    command = started("dist_test.sh", CONFIG, *order, "--eval", "bbox")
    assert "--nproc_per_node=4" in command
    assert command[4:8] == [CONFIG, ANY_FILE, "--eval", "bbox"]


@pytest.mark.fault("shell scripts, Slurm")
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
    assert_named(run_script(script, *arguments), named)


@pytest.mark.fault("shell scripts, Slurm")
@pytest.mark.parametrize(
    ("restarts", "options", "named"),
    [("2", [], "MAX_RESTARTS needs --resume"), ("many", ["--resume"], "not 'many'")],
)
def test_restarts_that_would_not_go_on_are_refused(restarts, options, named):
    result = run_script("dist_train.sh", CONFIG, "2", *options, MAX_RESTARTS=restarts)
    assert_named(result, named)


def assert_named(result: subprocess.CompletedProcess, named: str) -> None:
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


@pytest.mark.fault("shell scripts, Slurm")
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
@pytest.mark.parametrize(
    ("status", "options", "queued"),
    [(75, ["--resume"], True), (1, ["--resume"], False), (75, [], False)],
)
def test_a_batch_job_that_is_told_to_end_is_queued_again(tmp_path, number, status, options, queued):
    """A stand-in for srun gets the signal, and ends with the status of the training."""
    log = tmp_path / "log.txt"
    os.mkfifo(tmp_path / "started")
    end = f"echo signal >> {log}; exit {status}"
    body = f"trap '{end}' USR1\necho > {tmp_path}/started\nwhile :; do sleep 0.05; done"
    make_command(tmp_path, "srun", body if options else f"exit {status}")
    make_command(tmp_path, "scontrol", f'echo "$@" >> {log}')
    command = ["bash", ROOT / "tools/slurm_train.sh", "part", "job", CONFIG, "work", *options]
    env = dict(os.environ, PATH=f"{tmp_path}:{os.environ['PATH']}", SLURM_JOB_ID="42")
    with subprocess.Popen(command, env=env) as job:
        if options:
            (tmp_path / "started").read_text()
            job.send_signal(number)
        assert job.wait(timeout=60) == status
    said = log.read_text().splitlines() if log.exists() else []
    assert said == ["signal"] * bool(options) + ["requeue 42"] * queued


@pytest.mark.parametrize(
    "script", ["dist_train", "dist_test", "slurm_train", "slurm_test", "quickstart"]
)
def test_help_is_no_error(run_tool, script):
    said = run_tool("bash", ROOT / f"tools/{script}.sh", "--help").stdout
    assert said.startswith("usage: ") and f"{script}.sh" in said
