import json

import pytest

from fedpft.config import ConfigError
from fedpft.report.compare.runs import NEEDED, read_runs
from tests.run_folders import run_folder


def test_a_folder_of_folders_is_searched_and_a_run_given_twice_counts_once(tmp_path):
    first = run_folder(tmp_path / "sweep/deep/a", seed=1)
    second = run_folder(tmp_path / "sweep/b", seed=2)
    run_folder(first / "wandb/files", seed=9)
    runs, left_out = read_runs([tmp_path / "sweep", first])
    assert [run.folder for run in runs] == [second, first]
    assert left_out == []
    assert (runs[0].seed, runs[0].value, runs[0].partition["label_names"]) == (2, 0.8, ["no", "yes"])


def test_what_does_not_count_is_named_with_the_reason(tmp_path):
    good = run_folder(tmp_path / "a")
    (run_folder(tmp_path / "b", seed=2) / "result.json").unlink()
    (run_folder(tmp_path / "b2/x", seed=2) / "result.json").unlink()
    (tmp_path / "b2/x/ended.json").write_text(json.dumps({"kind": "failed", "reason": "no memory"}))
    run_folder(tmp_path / "c", "name=other", "pool.actors=2")
    run_folder(tmp_path / "d", seed=3, fm=float("nan"))
    run_folder(tmp_path / "e", seed=4, never_trained=[3])
    allowed = run_folder(tmp_path / "f", "federated.allow_dropped=true", seed=5, never_trained=[3])
    runs, left_out = read_runs([tmp_path])
    assert [run.folder for run in runs] == [good, allowed]
    assert [(left.folder.name, left.reason) for left in left_out] == [
        ("b", "not finished: no result.json"),
        ("x", "not finished: no memory"),
        ("c", f"same settings and seed as {good}"),
        ("d", "its accuracy is nan"),
        ("e", "never trained: 1 of the clients that were drawn, 3; rounds.jsonl has their failures"),
    ]


def test_runs_of_older_versions_may_lack_all_that_is_not_needed(tmp_path):
    folder = run_folder(tmp_path / "a", fidelity=None, construction=None, bytes_up_total=None, sub_fm=None)
    (folder / "partition.json").unlink()
    (run,), _ = read_runs([folder])
    assert run.partition is None


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.yaml", "federated: {round: 2}", "federated.round: unknown key"),
        ("result.json", "{", "result.json: not readable as JSON"),
        ("result.json", "[]", "result.json: found something else, allowed: JSON objects"),
        ("result.json", '{"fm": 1}', "result.json: found no name, seed, method"),
        ("result.json", json.dumps(dict.fromkeys(NEEDED, "x")), "result.json: metric: found 'x', allowed: accuracy, "),
        ("rounds.jsonl", '{"round": 1}\n{"rou', "rounds.jsonl: not readable as JSON"),
        ("partition.json", "", "partition.json: not readable as JSON"),
    ],
)
def test_a_broken_file_is_one_line_that_names_it(tmp_path, file, content, said):
    folder = run_folder(tmp_path / "a")
    (folder / file).write_text(content)
    with pytest.raises(ConfigError) as error:
        read_runs([folder])
    assert said in str(error.value)
    assert str(folder / file) in str(error.value)
    assert "\n" not in str(error.value)


def test_folders_without_runs_are_refused(tmp_path):
    run_folder(tmp_path / "a")
    for folder in (tmp_path / "empty", tmp_path / "absent"):
        with pytest.raises(ConfigError, match="found no run in"):
            read_runs([tmp_path / "a", folder])
        folder.mkdir(exist_ok=True)
    (tmp_path / "a/result.json").unlink()
    with pytest.raises(ConfigError, match=r"found no finished run .*no result\.json"):
        read_runs([tmp_path])
