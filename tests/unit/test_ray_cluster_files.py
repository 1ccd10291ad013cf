"""The files of ray_cluster/: what can be checked of them without a cloud, a Kubernetes and a Slurm."""

import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "ray_cluster"
RAY_VERSION = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
SCRIPTS = [FOLDER / "start_on_premise.sh", FOLDER / "slurm/fedpft.sbatch"]

POD_TEMPLATE = {"metadata": {"labels"}, "spec": {"containers", "volumes"}}
"""Keys of a pod's template that we use; those of the custom resources below are from KubeRay's ray.io/v1 types."""
JOB_SPEC = {
    "activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint", "entrypointNumCpus",
    "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata", "rayClusterSpec", "runtimeEnvYAML",
    "shutdownAfterJobFinishes", "submissionMode", "submitterConfig", "submitterPodTemplate", "suspend",
    "ttlSecondsAfterFinished",
}  # fmt: skip
CLUSTER_SPEC = {
    "authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec",
    "headServiceAnnotations", "managedBy", "rayVersion", "suspend", "workerGroupSpecs",
}  # fmt: skip
HEAD_SPEC = {"enableIngress", "headService", "rayStartParams", "resources", "labels", "serviceType", "template"}
WORKER_SPEC = {
    "groupName", "idleTimeoutSeconds", "labels", "maxReplicas", "minReplicas", "numOfHosts", "rayStartParams",
    "replicas", "resources", "scaleStrategy", "suspend", "template",
}  # fmt: skip


def manifests(name):
    return list(yaml.safe_load_all((FOLDER / "kuberay" / name).read_text()))


def cluster_spec(name):
    (manifest,) = manifests(name)
    return manifest["spec"] if manifest["kind"] == "RayCluster" else manifest["spec"]["rayClusterSpec"]


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_cloud_files_pass_the_schema_of_the_installed_launcher(name):
    util = pytest.importorskip("ray.autoscaler._private.util", reason="Ray is not installed")
    config = yaml.safe_load((FOLDER / name).read_text())
    complete = util.prepare_config(config)
    util.validate_config(complete)
    assert complete["available_node_types"]["worker"]["min_workers"] > 0, "a run counts the nodes that are up"
    with pytest.raises(Exception, match="max_wrkers"):
        util.validate_config(complete | {"max_wrkers": 1})


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_cloud_clusters_want_a_token_and_keep_the_dashboard_to_themselves(name):
    config = yaml.safe_load((FOLDER / name).read_text())
    (head,) = [command for command in config["head_start_ray_commands"] if "ray start" in command]
    (worker,) = [command for command in config["worker_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in head
    assert "RAY_AUTH_MODE=token ray start" in head
    assert "RAY_AUTH_MODE=token ray start" in worker
    assert config["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    assert not any("0.0.0.0/0" in str(value) for value in config.values())


def test_the_image_has_the_ray_of_the_constraints_and_what_it_copies_is_let_in():
    dockerfile = (FOLDER / "Dockerfile").read_text()
    assert set(re.findall(r"rayproject/ray:([\d.]+)-py311", dockerfile)) == {RAY_VERSION}
    copied = [part for line in re.findall(r"^COPY --chown=\S+ (.*)$", dockerfile, re.M) for part in line.split()[:-1]]
    let_in = re.findall(r"^!(.*)$", (FOLDER / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    assert sorted(copied) == sorted(let_in)
    assert all((ROOT / path).exists() for path in copied)


def test_every_node_of_every_kind_has_the_same_image():
    files = [path for path in FOLDER.rglob("*") if path.suffix == ".yaml" or path.name == "Dockerfile"]
    images = {image for path in files for image in re.findall(r"REGISTRY/\S+?:[\w.]+", path.read_text())}
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert images == {f"REGISTRY/fedpft:{version}"}


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_manifests_have_only_keys_that_kuberay_knows(name):
    (manifest,) = manifests(name)
    assert manifest["apiVersion"] == "ray.io/v1"
    assert set(manifest) == {"apiVersion", "kind", "metadata", "spec"}
    if manifest["kind"] == "RayJob":
        assert set(manifest["spec"]) <= JOB_SPEC
    spec = cluster_spec(name)
    assert set(spec) <= CLUSTER_SPEC
    assert spec["rayVersion"] == RAY_VERSION
    assert spec["authOptions"] == {"mode": "token"}
    assert set(spec["headGroupSpec"]) <= HEAD_SPEC
    for group in spec["workerGroupSpecs"]:
        assert set(group) <= WORKER_SPEC
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        template = group["template"]
        assert {key: set(value) for key, value in template.items()} == POD_TEMPLATE
        for container in template["spec"]["containers"]:
            assert set(container) == {"name", "image", "resources", "volumeMounts"}
            assert container["resources"]["requests"] == container["resources"]["limits"]


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_manifests_refer_to_volumes_claims_and_labels_that_exist(name):
    claim, wall = manifests("storage.yaml")
    spec = cluster_spec(name)
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        template = group["template"]
        assert template["metadata"]["labels"] == wall["spec"]["podSelector"]["matchLabels"]
        volumes = {volume["name"]: volume["persistentVolumeClaim"] for volume in template["spec"]["volumes"]}
        assert volumes == {"shared": {"claimName": claim["metadata"]["name"]}}
        mounts = [mount for container in template["spec"]["containers"] for mount in container["volumeMounts"]]
        assert [mount["name"] for mount in mounts] == ["shared"]


def test_the_wall_lets_the_submitter_of_the_job_in():
    _, wall = manifests("storage.yaml")
    (job,) = manifests("rayjob.yaml")
    ours, others = wall["spec"]["ingress"]
    admitted = [peer["podSelector"]["matchLabels"] for peer in ours["from"]]
    assert admitted == [
        wall["spec"]["podSelector"]["matchLabels"],
        {"batch.kubernetes.io/job-name": job["metadata"]["name"]},
    ]
    assert others["ports"] == [{"port": 8265}], "the operator sees the dashboard only"


def test_both_manifests_make_the_same_cluster():
    assert cluster_spec("raycluster.yaml") == cluster_spec("rayjob.yaml")


def test_the_job_s_entrypoint_is_a_command_that_fedpft_takes_and_its_config_is_in_the_image(monkeypatch):
    from typer.testing import CliRunner

    from fedpft.cli import main as cli

    (manifest,) = manifests("rayjob.yaml")
    program, *arguments = shlex.split(manifest["spec"]["entrypoint"])
    assert program == "fedpft"
    arguments = [argument.replace("/home/ray/fedpft", str(ROOT)) for argument in arguments]
    seen = []
    monkeypatch.setattr(cli, "_run", lambda config, resume, form: seen.append((config, resume)))
    assert CliRunner().invoke(cli.app, arguments).exit_code == 0
    ((config, resume),) = seen
    assert resume, "each retry has a new cluster and goes on"
    assert (config.pool.address, config.output_dir) == ("auto", "/shared/outputs/quickstart")
    environment = yaml.safe_load(manifest["spec"]["runtimeEnvYAML"])
    assert int(environment["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) > 60


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash(script):
    subprocess.run(["bash", "-n", script], check=True, timeout=300)


@pytest.mark.parametrize(("given", "expected"), [(None, "token"), ("token", "token"), ("disabled", "disabled")])
def test_on_premise_head_and_workers_agree_on_the_token_and_find_their_python_by_name(tmp_path, given, expected):
    programs = {
        "ray": """[[ $1 != get-auth-token ]] || { [[ $# -gt 1 ]] || echo secret; exit; }
            echo "$HOME $1 $RAY_AUTH_MODE $(command -v python)" >>$LOG""",
        "ssh": """mkdir -p $LOG.$5; HOME=$LOG.$5 PATH=/usr/bin:/bin exec bash -c "$6" """,
        "python": "",
    }
    for name, body in programs.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    log = tmp_path / "log"
    environment = {k: v for k, v in os.environ.items() if k != "RAY_AUTH_MODE"} | {
        "PATH": f"{tmp_path}:/usr/bin:/bin", "LOG": str(log), "HOME": "head", "RAY_BIN": str(tmp_path / "ray"),
    }  # fmt: skip
    environment |= {"RAY_AUTH_MODE": given} if given else {}
    command = ["bash", SCRIPTS[0], "start", "10.0.0.11", "worker"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    python = tmp_path / "python"
    assert log.read_text().splitlines() == [f"{home} start {expected} {python}" for home in ("head", f"{log}.worker")]
    secret = tmp_path / "log.worker/.ray/auth_token"
    assert secret.exists() == (expected == "token")
    assert not secret.exists() or (secret.read_text(), secret.stat().st_mode & 0o777) == ("secret\n", 0o600)


FAKES = {
    "srun": """while [[ $1 == --* ]]; do echo "srun $1" >>$LOG; shift; done; exec "$@" """,
    "scontrol": """echo "scontrol $*" >>$LOG; echo "JobId=7 JobState=$STATE Reason=None" """,
    "ray": """echo "ray $*" >>$LOG
        case $1 in
            start) touch $LOG.up.$$; trap 'rm $LOG.up.$$; echo "ray ends" >>$LOG; exit' TERM
                   while :; do sleep 0.05; done ;;
            status) for _ in $LOG.up.*; do [[ ! -e $_ ]] || echo " 1 node_x"; done ;;
        esac""",
    "fedpft": """echo "fedpft $*" >>$LOG; echo "token ${#RAY_AUTH_TOKEN} in $PWD" >>$LOG
        trap 'sleep 0.2; echo "checkpoint" >>$LOG; exit 143' TERM
        for _ in {1..200}; do [[ -z $EXIT ]] || exit $EXIT; sleep 0.05; done""",
}
"""Programs that note how they are called; `ray start` and `fedpft` last until SIGTERM, or end with $EXIT."""


@pytest.fixture
def slurm(tmp_path):
    """Return a function that starts the batch script among made-up programs, and the file where they note things."""
    for name, body in FAKES.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    log = tmp_path / "log"
    started = []

    def start(state="RUNNING", exit_code=""):
        environment = os.environ | {
            "FEDPFT_BIN": str(tmp_path), "LOG": str(log), "STATE": state, "EXIT": str(exit_code), "SLURM_JOB_ID": "7",
            "SLURM_NNODES": "2", "SLURM_CPUS_PER_TASK": "4", "SLURMD_NODENAME": "node1",
            "SLURM_SUBMIT_DIR": str(tmp_path),
        }  # fmt: skip
        command = ["bash", SCRIPTS[1], "run.yaml", "seed=1"]
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start, log
    for process in started:
        process.kill()
        process.stdout.close()


def wait_for_driver(log):
    deadline = time.monotonic() + 300
    while not (log.exists() and "token" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("code", [0, 3])
def test_slurm_starts_head_and_workers_and_ends_them_after_the_run(slurm, code):
    start, log = slurm
    process = start(exit_code=code)
    assert process.wait(300) == code
    lines = log.read_text().splitlines()
    head, workers = (line for line in lines if line.startswith("ray start"))
    assert "--head" in head
    assert "--dashboard-host=127.0.0.1" in head
    address = re.search(r"--address=(\S+:20007)", workers)[1]
    (run,) = (line for line in lines if line.startswith("fedpft"))
    assert run == f"fedpft run run.yaml output_dir=outputs/slurm-7 seed=1 --address {address} --resume"
    assert f"token 64 in {log.parent}" in lines
    assert lines.index(run) > lines.index(workers) > lines.index(head)
    assert [line for line in lines if line == "ray ends"] == ["ray ends"] * 2
    assert not any("requeue" in line for line in lines)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_slurm_stops_the_run_with_its_checkpoint_and_queues_it_again(slurm, number):
    start, log = slurm
    process = start()
    wait_for_driver(log)
    process.send_signal(number)
    assert process.wait(300) == 143
    ending = [line for line in log.read_text().splitlines() if line in ("checkpoint", "scontrol requeue 7", "ray ends")]
    assert ending == ["checkpoint", "scontrol requeue 7", "ray ends", "ray ends"]


def test_slurm_does_not_queue_again_what_scancel_ended(slurm):
    start, log = slurm
    process = start(state="CANCELLED")
    wait_for_driver(log)
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == 143
    assert "checkpoint" in log.read_text()
    assert "requeue" not in log.read_text()


def test_links_in_the_readmes_lead_somewhere():
    for readme in FOLDER.rglob("*.md"):
        for link in re.findall(r"\]\(([^)#:]+)\)", readme.read_text()):
            assert (readme.parent / link).exists(), f"{readme}: {link}"
