"""A word in place of a section stands for a file beside the config, with a place of its own in the order of layers."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fedpft.config import ConfigError, dump_config, load_config

PARTS = {
    "fm/small": "fm: {path: a/small, max_length: 16}",
    "fm/large": "fm: {path: a/large}\nfederated: {lr: 0.5}",
    "task/short": "task: {name: qnli}\nfm: {max_length: 32}",
    "federated/p0.5": "federated: {rounds: 7}",
}


@pytest.fixture
def grid(tmp_path):
    """Return a function that writes a config file beside the parts and returns its path."""
    write_parts(tmp_path, PARTS)

    def write(text):
        (tmp_path / "run.yaml").write_text(text)
        return tmp_path / "run.yaml"

    return write


def write_parts(folder, parts):
    for name, text in parts.items():
        file = Path(folder, f"{name}.yaml")
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)


def message(path, *overrides):
    """Return the error of a config that must not load, after checking that it is one line."""
    with pytest.raises(ConfigError) as error:
        load_config(path, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("text", ["fm: large", "parts: {fm: large}", "parts: {fm: small}\nfm: large"])
def test_a_word_in_the_file_or_on_the_command_line_is_the_same(grid, text):
    in_file = load_config(grid(text))
    assert (in_file.fm.path, in_file.federated.lr) == ("a/large", 0.5)
    assert in_file == load_config(grid(""), ["fm=large"]) == load_config(grid(""), ["parts.fm=large"])


def test_a_word_of_the_command_line_replaces_the_files_whose_part_is_not_read(grid):
    path = grid("parts: {fm: large, federated: missing}")
    config = load_config(path, ["fm=small", "federated=p0.5"])
    assert (config.fm.path, config.federated.rounds) == ("a/small", 7)
    assert config.federated.lr == load_config().federated.lr


def test_words_and_keys_of_one_section_go_together_in_any_order(grid):
    path = grid("parts: {fm: large}\nfm: {config: {hidden_size: 8}}")
    config = load_config(path, ["fm.max_length=64", "fm=small"])
    assert (config.fm.path, config.fm.max_length, config.fm.config) == ("a/small", 64, {"hidden_size": 8})


def test_later_sections_of_the_config_win_whatever_the_order_of_words(grid):
    words = ["task=short", "fm=small"]
    assert load_config(grid(""), words) == load_config(grid(""), words[::-1]) == load_config(grid("task: short"), words)
    assert load_config(grid(""), words).fm.max_length == 32


def test_a_name_tells_the_parts(grid):
    path = grid("name: ${parts.fm}_${parts.federated}_s${seed}\nparts: {fm: large, federated: p0.5}")
    config = load_config(path, ["fm=small", "seed=3"])
    assert (config.name, config.output_dir) == ("small_p0.5_s3", "outputs/small_p0.5_s3")


def test_the_dump_is_resolved_and_needs_no_parts(grid, tmp_path):
    config = load_config(grid("name: ${parts.fm}\nfm: small"))
    (tmp_path / "elsewhere").mkdir()
    dumped = tmp_path / "elsewhere" / "config.yaml"
    dumped.write_text(dump_config(config))
    assert "parts" not in dumped.read_text()
    assert load_config(dumped) == config
    assert "elsewhere/fm has none" in message(dumped, "fm=small")


def test_a_part_that_does_not_exist_is_answered_with_those_that_do(grid, tmp_path):
    assert message(grid("fm: smal")) == (
        f"fm: found 'smal', allowed: a section with keys of its own, or parts in {tmp_path}/fm: large, small "
        "(did you mean small?)"
    )
    assert message(grid(""), "lora=x").endswith(f"or no part, {tmp_path}/lora has none")
    assert message(None, "fm=small").endswith("parts stand beside a config file, here is none")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("federatd: {rounds: 4}", "federatd: unknown key; did you mean federated?"),
        ("fm: {max_lenght: 4}", "fm.max_lenght: unknown key; did you mean fm.max_length?"),
        ("fm: {max_length: ten}", "fm.max_length: Value 'ten'"),
        ("seed: 3\nfm: 4", "fm: found '4', allowed: a section with keys of its own"),
        ("task: short", "task: found 'short', allowed: keys; a part names no other part"),
        ("parts: {task: short}", "task: found 'short', allowed: keys; a part names no other part"),
        ("- 1", "found a list, allowed: sections and keys"),
        ("a: [b", "not readable as YAML: "),
    ],
)
def test_an_error_in_a_part_names_its_file(grid, tmp_path, text, expected):
    write_parts(tmp_path, {"fm/wrong": text})
    assert message(grid("fm: wrong")).startswith(f"{tmp_path}/fm/wrong.yaml: {expected}")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("parts=3", "parts: found 3, allowed: sections and words"),
        ("parts.fmm=x", "parts: found 'fmm', allowed: a section: fm, task, "),
        ("parts.name=x", "parts: found 'name', allowed: a section: fm, task, "),
        ("parts.fm=3", "parts.fm: found 3, allowed: a word"),
        ("parts.fm=null", "parts.fm: found None, allowed: a word"),
        ("parts.fm=../small", "parts.fm: found '../small', allowed: a word"),
        ("fm=../fm/small", "fm: found '../fm/small', allowed: a section with keys of its own"),
        ("federated.partition=p0.5", "federated.partition: found 'p0.5', allowed: a section with keys of its own"),
        ("fm=${task.nme}", "fm: Interpolation key 'task.nme' not found"),
        ("name=${parts.fm}", "name: Interpolation key 'parts.fm' not found"),
        ("fm={path: [", "override 'fm={path: [': not readable as YAML: "),
    ],
)
def test_what_is_no_word_for_a_section_is_one_line(grid, override, expected):
    assert message(grid(""), override).startswith(expected)


KEYS = {"seed": 42, "fm.max_length": 128, "federated.rounds": 100}
LAYER = st.fixed_dictionaries({}, optional=dict.fromkeys(KEYS, st.integers(10, 99)))


@settings(deadline=None, max_examples=12)
@given(
    st.fixed_dictionaries(dict.fromkeys(("file", "fm", "task", "federated", "command_line"), LAYER)),
    st.sets(st.sampled_from(["fm", "task", "federated"])),
    st.randoms(use_true_random=False),
)
def test_each_key_has_the_value_of_the_last_layer_that_sets_it(layers, named_in_file, random):
    words = dict.fromkeys(("fm", "task", "federated"), "word")
    overrides = [f"{key}={value}" for key, value in layers["command_line"].items()]
    overrides += [f"{section}=word" for section in words.keys() - named_in_file]
    random.shuffle(overrides)
    with tempfile.TemporaryDirectory() as folder:
        write_parts(folder, {f"{section}/word": nested(layers[section]) for section in words})
        file = Path(folder, "run.yaml")
        file.write_text(nested({**layers["file"], **{f"parts.{section}": "word" for section in named_in_file}}))
        config = load_config(file, overrides)
    expected = KEYS | layers["file"] | layers["fm"] | layers["task"] | layers["federated"] | layers["command_line"]
    assert {key: OmegaConf.select(OmegaConf.structured(config), key) for key in KEYS} == expected


def nested(flat):
    return OmegaConf.to_yaml(OmegaConf.from_dotlist([f"{key}={value}" for key, value in flat.items()]))
