"""A key whose type is text takes text as written, wherever it is set; whatever is loaded comes back from its dump."""

import dataclasses
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpft.config import Config, ConfigError, TrackingConfig, dump_config, load_config
from fedpft.config.suite import load_suite
from fedpft.config.sweep import load_sweep
from fedpft.config.texts import quoted
from fedpft.config.trials import Trial, planned_trials
from fedpft.sweeps.suite import suite_trials

WRITTEN = [
    "20241128_0930",
    "123e456",
    "on",
    "1_000",
    "1:30",
    "0x10",
    "007",
    "1e3",
    "2024-01-01",
    ".inf",
    "yes",
    "3",
    "=x",
]
ONE_OF_EACH_KIND = ["1_000", "1e3", "on", "2024-01-01", "=x"]
"""What YAML takes for a whole number, a number, a truth value, a date, and what it cannot read."""
ONLY_ON_THE_COMMAND_LINE = ["@x", "%a", "a: b", "a #b", "- x", "!!x", "&a", "'", '"a']


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def comes_back(config):
    with tempfile.TemporaryDirectory() as folder:
        return load_config(write(Path(folder), "run.yaml", dump_config(config))) == config


@pytest.mark.parametrize("word", [*WRITTEN, *ONLY_ON_THE_COMMAND_LINE])
def test_an_override_is_taken_as_written(word):
    config = load_config(None, [f"name={word}", f"task.label_column={word}", f"tracking.group={word}"])
    assert (config.name, config.task.label_column, config.tracking.group) == (word, word, word)
    assert comes_back(config)


def test_what_cannot_be_null_is_a_text_that_says_so():
    assert [load_config(None, [f"name={word}"]).name for word in ("null", "~", "NULL")] == ["null", "~", "NULL"]


def test_quotes_of_an_override_are_yamls_and_null_is_nothing():
    config = load_config(None, ["name='on'", 'task.label_column="a\\tb"', "tracking.group=null", "cache.dir= x "])
    assert (config.name, config.task.label_column, config.tracking.group) == ("on", "a\tb", None)
    assert config.cache.dir == "x"


@pytest.mark.parametrize("word", ONE_OF_EACH_KIND)
def test_files_parts_sweeps_and_suites_take_it_as_written(tmp_path, word):
    write(tmp_path, "task/mine.yaml", f"task: {{label_column: {word}, text_columns: [{word}, b]}}\ncache.dir: {word}")
    base = write(tmp_path, "base.yaml", f"name: {word}\ntask: mine\ntracking: {{tags: [{word}], group: {word}}}\n")
    config = load_config(base)
    found = [config.name, config.task.label_column, *config.task.text_columns, config.cache.dir, *config.tracking.tags]
    assert found == [word, word, word, "b", word, word]
    text = f"base: base.yaml\nname: {word}\nrun: {{tracking.group: {word}, tracking: {{project: {word}}}}}\n"
    sweep = load_sweep(write(tmp_path, "s.yaml", f"{text}space: {{task.label_column: {{grid: [{word}, b]}}}}\n"))
    trials = [Trial.from_json(trial.to_json()) for trial in planned_trials(sweep)]
    assert sweep.name == word
    assert [trial.config.task.label_column for trial in trials] == [word, "b"]
    assert {trial.config.tracking.project for trial in trials} == {word}
    sweep = load_sweep(tmp_path / "s.yaml", [f"run.fm.path={word}", f"space={{fm.revision: {{grid: [{word}]}}}}"])
    assert sweep.run["fm"] == {"path": word}
    assert sweep.space == {"fm.revision": {"grid": [sweep.space["fm.revision"]["grid"][0]]}}
    heads = f"rows: [{{label: a, set: {{task.label_column: {word}}}}}]\ncolumns: [{{label: {word}}}]\n"
    suite = load_suite(write(tmp_path, "t.yaml", f"base: base.yaml\n{heads}"))
    assert [suite.columns[0].label, *(t.config.task.label_column for t in suite_trials(suite))] == [word, word]


def test_what_is_no_text_keeps_its_type(tmp_path):
    path = write(tmp_path, "run.yaml", "cache: {enabled: on}\nfm: {config: {a: on, b: 1_0, c: 1e3}}\npool.actors: 3")
    config = load_config(path, ["federated.lr=1e-3", "fm.config.d=on"])
    assert config.fm.config == {"a": True, "b": 10, "c": 1000.0, "d": True}
    assert (config.cache.enabled, config.pool.actors, config.federated.lr) == (True, 3, 1e-3)


def test_a_file_may_have_dotted_keys(tmp_path):
    text = "federated.rounds: 3\nfederated: {batch_size: 2}\nfederated.partition.kind: iid\nalign: {layers.lr: 0.5}\n"
    config = load_config(write(tmp_path, "run.yaml", f"{text}fm: {{config: {{a.b: 1}}}}\n"))
    assert (config.federated.rounds, config.federated.batch_size, config.align.layers.lr) == (3, 2, 0.5)
    assert (config.federated.partition.kind, config.fm.config) == ("iid", {"a.b": 1})
    with pytest.raises(ConfigError, match=r"^federated\.round: unknown key; did you mean federated\.rounds\?$"):
        load_config(write(tmp_path, "run.yaml", "federated.round: 3"))


@pytest.mark.parametrize("item", ["[a]", "{a: b}", "null"])
def test_a_list_of_texts_holds_texts_alone(item):
    with pytest.raises(ConfigError, match=r"^tracking\.tags: [^\n]*('None' for|a list of texts$)"):
        load_config(None, [f"tracking.tags=[x, {item}]"])


ANY_TEXT = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=12)
HARD = ANY_TEXT | st.text("\\${}'\"ab: #\n", min_size=1, max_size=12)


@settings(deadline=None, max_examples=20)
@given(HARD.filter(lambda name: name.strip("./ ")), HARD)
def test_any_text_comes_back_from_the_dump_of_a_run_and_of_a_trial(name, tag):
    config = dataclasses.replace(Config(output_dir="x"), name=name, tracking=TrackingConfig(tags=(tag,), group=tag))
    assert comes_back(config)
    trial = Trial(name=name, settings={}, config=config)
    assert Trial.from_json(trial.to_json()) == trial
    if "${" not in tag:
        assert load_config(None, [f"tracking.tags={quoted([tag])}"]).tracking.tags == (tag,)
