"""A real Slurm on two machines made of namespaces runs the batch script; see `make cluster-test`."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.benchmarks.simulation.machines import Machines, wait_until, why_impossible
from experiments.benchmarks.simulation.nodes import CONFIG, ENVIRONMENT, adapter, rounds, run_here

SCRIPT = Path("ray_cluster/slurm/fedpft.sbatch").resolve()
OVERRIDES = ["federated.rounds=6", "fm.pretrain.num_epochs=2", "align.layers.num_steps=20", "checkpoint.interval=1"]
MUNGE = "/run/munge.socket"
SLURM_CONF = """
ClusterName=fedpft
SlurmctldHost=node0({head})
SlurmUser=root
AuthInfo=socket={munge},cred_expire=5
StateSaveLocation={folder}/controller
SlurmdSpoolDir=/run/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile={folder}/controller.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
KillWait=60
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
{nodes}
PartitionName=patient Nodes=ALL Default=YES PriorityTier=1 GraceTime=180
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""
# cred_expire: a job that was queued again waits for that long

TOOLS = ("slurmctld", "slurmd", "munged", "sbatch")
MISSING = [tool for tool in TOOLS if shutil.which(tool) is None]
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(why_impossible()), reason=f"several machines: {why_impossible()}"),
    pytest.mark.skipif(bool(MISSING), reason=f"a real Slurm: {', '.join(MISSING)} not installed (slurm-wlm)"),
]


class Slurm:
    """Two nodes of one CPU each."""

    def __init__(self, machines, folder):
        self.folder, self.head = folder, machines[0]
        self.environment = {
            **ENVIRONMENT,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "FEDPFT_BIN": str(Path(sys.executable).parent),
        }
        nodes = [f"NodeName=node{i} NodeAddr={machine.ip} CPUs=1" for i, machine in enumerate(machines)]
        (folder / "slurm.conf").write_text(
            SLURM_CONF.format(head=self.head.ip, munge=MUNGE, folder=folder, nodes="\n".join(nodes))
        )
        (folder / "controller").mkdir()
        (folder / "munge.key").write_bytes(b"0123456789abcdef" * 8)
        (folder / "munge.key").chmod(0o400)
        for machine in machines:
            munge = ["munged", "--force", "--foreground", f"--key-file={folder / 'munge.key'}", f"--socket={MUNGE}"]
            own = ["--pid-file=/run/munged.pid", "--seed-file=/run/munged.seed", "--log-file=/run/munged.log"]
            machine.start([*munge, *own], stderr=subprocess.DEVNULL)
        self.head.start(["slurmctld", "-D"], env=self.environment, stderr=subprocess.DEVNULL)
        for machine in machines:
            machine.start(["slurmd", "-D"], env=self.environment, stderr=subprocess.DEVNULL)
        wait_until(lambda: "idle" in self("sinfo", "--noheader", "--states=idle", "--format=%t"), 60, "Slurm's nodes")

    def __call__(self, *command):
        """Return what a command says on the first node."""
        process = self.head.start(
            command, env=self.environment, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        return process.communicate()[0].strip()

    def state(self, job_id):
        return dict(
            field.split("=", 1) for field in self("scontrol", "show", "job", "-o", job_id).split() if "=" in field
        )


def test_a_job_that_an_urgent_one_pushed_aside_goes_on_and_ends_with_the_bits_of_the_straight_run(tmp_path):
    shutil.copy(CONFIG, tmp_path / "config.yaml")
    with Machines(2) as machines:
        slurm = Slurm(machines, tmp_path)
        job_id = slurm(
            "sbatch", "--parsable", "--cpus-per-task=1", "--output=job.log", str(SCRIPT), "config.yaml", *OVERRIDES,
            "tracking.wandb=disabled",
        )  # fmt: skip
        run = tmp_path / "outputs" / f"slurm-{job_id}"
        wait_until(lambda: (run / "rounds.jsonl").exists() and len(rounds(run)) >= 2, 400, "two rounds")
        slurm("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=urgent.log", "--wrap=sleep 3")
        wait_until(lambda: slurm.state(job_id)["Restarts"] == "1", 200, "the job's place in the queue again")
        done_before = len(rounds(run))
        wait_until(
            lambda: slurm.state(job_id)["JobState"] in ("COMPLETED", "FAILED", "CANCELLED"), 400, "the job's end"
        )
        assert slurm.state(job_id)["JobState"] == "COMPLETED", (tmp_path / "job.log").read_text()
    assert 2 <= done_before < 6
    assert [line["round"] for line in rounds(run)] == [1, 2, 3, 4, 5, 6]
    log = (tmp_path / "job.log").read_text()
    assert "time limit or pre-emption: queued again" in log
    run_here(tmp_path / "here", OVERRIDES)
    assert adapter(run) == adapter(tmp_path / "here")
