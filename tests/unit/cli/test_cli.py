import json
import os
import runpy
import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from fedpft.cli import main as cli
from tests.tiny import tiny_text_run


@pytest.fixture
def fails(monkeypatch, capsys, tmp_path):
    """Return a function that runs `fedpft ...`, checks exit code 2 and silence but for one line, which it returns."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, stages=False):
        monkeypatch.setattr(sys, "argv", ["fedpft", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        out, err = capsys.readouterr()
        assert exit_.value.code == 2
        assert out == "" or stages
        assert err.endswith("\n")
        (line,) = err.splitlines()
        assert not any(tmp_path.rglob("outputs")), "nothing was started"
        return line

    return run


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("name: x\nfederated: {rounds: 4}\nalign: {neurons: {interval: 2}}\n")
    return path


CONFIG_ERRORS = [
    (["federated.round=4"], "error: federated.round: unknown key; did you mean federated.rounds?"),
    (["federated.rounds=0"], "error: federated.rounds: found 0, allowed: a number > 0"),
    (
        ["method.retained_ratio=1.5"],
        "error: method.retained_ratio: found 1.5, allowed: a fraction in (0, 1]",
    ),
    (
        ["federated.clients_per_round=200"],
        "error: federated.clients_per_round: found 200, allowed: at most federated.num_clients = 100",
    ),
    (["pool.actors=many"], "error: pool.actors: found 'many', allowed: auto, per_client or an integer > 0"),
    (
        ["pool.address=ray://head:10001"],
        "error: pool.address: found 'ray://head:10001', allowed: null, auto or host:port; from outside a cluster: "
        "fedpft submit CONFIG --address http://HEAD:8265",
    ),
    (["rounds"], "error: override 'rounds': allowed: key=value, e.g. federated.rounds=4"),
]


@pytest.mark.parametrize("command", ["run", "plan", "submit"])
@pytest.mark.parametrize(("overrides", "expected"), CONFIG_ERRORS)
def test_a_setting_that_cannot_work_is_one_line_with_key_found_and_allowed(fails, config, command, overrides, expected):
    assert fails(command, config, *overrides) == expected


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("federated.sampling=uniforn", ("federated.sampling", "uniforn", "uniform", "md", "full", "power_of_choice")),
        ("federated.rounds=ten", ("federated.rounds", "ten")),
    ],
)
def test_wrong_types_and_choices_name_key_and_found(fails, config, override, parts):
    line = fails("run", config, override)
    assert all(part in line for part in parts), line


def test_a_missing_config_file_is_one_line(fails, tmp_path):
    assert fails("run", tmp_path / "nowhere.yaml") == f"error: config file '{tmp_path / 'nowhere.yaml'}': not found"


def test_a_typo_in_the_file_is_one_line(fails, config):
    config.write_text("federatd: {rounds: 4}\n")
    assert fails("run", config) == "error: federatd: unknown key; did you mean federated?"


def test_an_unreadable_file_is_one_line(fails, config):
    config.write_text("name: [unclosed\n")
    assert fails("run", config).startswith(f"error: {config}: not readable as YAML")


def test_a_part_that_does_not_exist_is_one_line_with_those_that_do(fails, config, tmp_path):
    (tmp_path / "fm").mkdir()
    (tmp_path / "fm" / "roberta.yaml").write_text("fm: {path: a}")
    assert fails("plan", config, "fm=robert").endswith(f"parts in {tmp_path}/fm: roberta (did you mean roberta?)")


def test_an_unknown_task_is_one_line_with_the_nearest_name(fails, config, tmp_path):
    line = fails("plan", config, *tiny_text_run(tmp_path), "task.name=sst3")
    assert line.startswith("error: task.name: found 'sst3', allowed: sst2, ")
    assert line.endswith("(did you mean sst2?)")


def test_a_missing_fm_is_one_line(fails, config, tmp_path):
    line = fails("plan", config, *tiny_text_run(tmp_path), "fm.path=/nowhere")
    assert line.startswith("error: fm.path: found '/nowhere', allowed: a hub id, a folder or package://")


@pytest.mark.cluster
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("command", ["run", "plan"])
def test_too_many_actors_are_one_line_with_both_numbers(fails, config, tmp_path, command):
    pool = ["pool.kind=ray", "pool.actors=40", "federated.clients_per_round=40", "federated.num_clients=40"]
    line = fails(command, config, *tiny_text_run(tmp_path), *pool, stages=True)
    assert line.startswith("error: pool.actors: asks 40 actors x 1 CPU, the cluster has 2 CPU on 1 node(s), room for 2")


def test_config_errors_come_before_torch_and_transformers_load(config):
    program = (
        "import sys, json; from fedpft.cli.main import main\n"
        f"sys.argv = ['fedpft', 'run', {str(config)!r}, 'federated.round=4']\n"
        "try: main()\n"
        "except SystemExit as e: code = e.code\n"
        "heavy = [m for m in ('torch', 'transformers', 'ray', 'datasets', 'lightning', 'wandb') if m in sys.modules]\n"
        "print(json.dumps([code, heavy]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True)
    assert json.loads(done.stdout) == [2, []]
    assert done.stderr == "error: federated.round: unknown key; did you mean federated.rounds?\n"


def test_plan_prints_partition_parameters_bytes_and_actors_and_writes_nothing(monkeypatch, config, tmp_path):
    monkeypatch.chdir(tmp_path)
    settings = tiny_text_run(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    done = CliRunner().invoke(cli.app, ["plan", str(config), *settings], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert sorted(tmp_path.rglob("*")) == before
    words = " ".join(done.output.split())
    for part in (
        "retained_ratio: 0.5",
        "Partition:",
        "4 clients, 48 examples",
        "parameters, FM 0.01 M",
        "parameters, sub-FM 0.01 M",
        "parameters, adapter",
        "traffic up 3.2 kB per client and round",
        "traffic down 3.2 kB",
        "actors 1 pool sequential",
    ):
        assert part in words, part


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Run once from the command line; return the folder that it worked in, what it printed and its result."""
    folder = tmp_path_factory.mktemp("ran")
    (folder / "run.yaml").write_text("align: {neurons: {interval: 2}}\n")
    settings = [*tiny_text_run(folder), "federated.rounds=1", "align.layers.num_steps=1"]
    done = CliRunner().invoke(cli.app, ["run", str(folder / "run.yaml"), *settings], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    return folder, done.output, json.loads((folder / "out/result.json").read_text())


def test_run_tells_about_doubtful_settings_and_prints_the_result(ran):
    folder, printed, result = ran
    assert "note: align.neurons.interval = 2 has no effect with federated.rounds = 1" in printed
    assert str(folder / "out/result.json") in printed
    assert f"{100 * result['fm']:.1f}" in printed


def test_address_is_the_pools(config):
    assert cli._load(config, ["federated.rounds=2"], "there:6379").pool.address == "there:6379"
    assert cli._load(config, None, None).pool.address is None


@pytest.mark.usefixtures("heeded_signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_with_its_exit_code_and_one_line_whatever_catches_keyboard_interrupts(
    monkeypatch, capsys, number, code
):
    def interrupted():
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt:
            return

    before = signal.getsignal(number)
    monkeypatch.setattr(cli, "app", interrupted)
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == code
    assert capsys.readouterr().err == "interrupted\n"
    assert signal.getsignal(number) is before


def test_verify_wants_rounds_to_resume_between(fails, config):
    assert fails("verify", config, "--rounds", "1") == "error: --rounds: found 1, allowed: an integer >= 2"


def test_resume_of_a_run_that_was_moved_prints_its_result_and_refuses_other_settings(monkeypatch, ran):
    folder, *_ = ran
    monkeypatch.chdir(folder)
    (folder / "out").rename("moved")
    done = CliRunner().invoke(cli.app, ["resume", "moved", "pool.actors=2"], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "moved: the run is finished" in done.output
    assert "moved/result.json" in done.output
    refused = CliRunner().invoke(cli.app, ["resume", "moved", "federated.lr=1"])
    assert "federated.lr: 0.01 -> 1.0" in str(refused.exception)


def test_resume_wants_the_folder_of_a_run(fails, tmp_path):
    line = fails("resume", tmp_path / "nowhere")
    assert (
        line == f"error: RUN_DIR: found '{tmp_path}/nowhere', allowed: the output_dir of a run (it has a config.yaml)"
    )


def test_python_m_fedpft_is_the_command_line_but_not_in_a_process_that_it_spawns(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fedpft", "--help"])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_module("fedpft", run_name="__main__")
    assert exit_.value.code == 0
    assert "Federated Proxy Fine-Tuning of foundation models." in capsys.readouterr().out
    runpy.run_module("fedpft", run_name="__mp_main__")
    assert capsys.readouterr() == ("", "")
