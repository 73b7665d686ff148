"""recipes/slurm.sh: one launcher on each node, a checkpoint before the time limit, and the job's next turn."""

import os
import signal
import subprocess
import time

import pytest
from accelerate.commands import launch
from conftest import ROOT

from jet_hf.training import parse_arguments


# They stand for a cluster. `srun` runs the command once per node, with a `python` that records its arguments, and ends
# as RUN says; `scancel` signals the run, which ends after its checkpoint with the exit code of torch's launcher.
PROGRAMS = {
    "srun": """
for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@"; done
test "$RUN" = "until signalled" || exit "$RUN"
trap 'sleep 0.3; echo "saved" >> log; exit 1' TERM
echo $$ > running
while true; do sleep 0.05; done
""",
    "python": 'printf "%s\\n" "$@" > "node-$SLURM_NODEID"',
    "scontrol": 'test "$1" = show && printf "node7\\nnode8\\n" || echo "scontrol $*" >> log',
    "scancel": 'echo "scancel $*" >> log; kill -TERM "$(cat running)"',
}
RECIPE = "recipes/debug.yaml"


@pytest.fixture
def start(tmp_path):
    """Return a function that starts the script as Slurm would."""
    (tmp_path / "bin").mkdir()
    for name, text in PROGRAMS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "4217", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4"}
    variables = os.environ | job | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}

    def call(run: str, *words: str) -> subprocess.Popen:
        command = ["bash", str(ROOT / "recipes" / "slurm.sh"), *words]
        return subprocess.Popen(command, env=variables | {"RUN": run}, cwd=tmp_path)

    return call


@pytest.mark.parametrize("code", [0, 3])
def test_a_job_that_ends_by_itself_keeps_its_exit_code_and_is_not_requeued(start, tmp_path, code):
    assert start(str(code), "--config", RECIPE).wait(timeout=60) == code
    assert not (tmp_path / "log").exists()


def test_a_job_that_reaches_its_time_limit_saves_first_and_is_requeued(start, tmp_path):
    process = start("until signalled", "--config", RECIPE)
    deadline = time.monotonic() + 60
    while not (tmp_path / "running").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)  # `#SBATCH --signal=B:USR1@600`
    assert process.wait(timeout=60) == 0
    assert (tmp_path / "log").read_text() == "scancel --signal=TERM 4217\nsaved\nscontrol requeue 4217\n"


def test_the_nodes_share_one_run_whose_arguments_arrive_as_they_were_given(start, tmp_path):
    start("0", "--config", RECIPE, "--output_dir", "a folder", "--learning_rate=0.1").wait(timeout=60)
    for rank in range(2):
        script, *words = (tmp_path / f"node-{rank}").read_text().splitlines()
        arguments = launch.launch_command_parser().parse_args(words)
        assert script == "scripts/launch.py" and arguments.training_script == "scripts/train.py"
        assert (arguments.num_machines, arguments.machine_rank, arguments.num_processes) == (2, rank, 8)
        assert (arguments.main_process_ip, arguments.main_process_port) == ("node7", 24217)
        assert (ROOT / arguments.config_file).exists()
        training = arguments.training_script_args
        training[training.index(RECIPE)] = str(ROOT / RECIPE)
        run = parse_arguments(training)
        assert (run.resume_from_checkpoint, run.output_dir, run.learning_rate) == ("latest", "a folder", 0.1)
