"""Whatever is set, a config loads and comes back from its dump, or one line says what cannot be."""

import dataclasses
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fedpft.config import Config, ConfigError, changed_settings, config_keys, dump_config, load_config

KEYS = sorted(config_keys())
DEFAULTS = OmegaConf.structured(Config)
NUMBERS = [
    key
    for key in KEYS
    if isinstance(value := OmegaConf.select(DEFAULTS, key), int | float) and not isinstance(value, bool)
]
TEXTS = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="$"), max_size=12)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=5
)
VALID: dict[str, st.SearchStrategy[Any]] = {
    "name": TEXTS.filter(lambda name: name.strip("./ ")),
    "seed": st.integers(0, 2**70),
    "output_dir": TEXTS.filter(bool),
    "fm.max_length": st.integers(8, 10**6),
    "fm.config": st.dictionaries(st.sampled_from(["hidden_size", "hidden_act"]), st.integers() | TEXTS),
    "task.max_train_examples": st.none() | st.integers(1, 10**9),
    "task.text_columns": st.lists(TEXTS, max_size=2),
    "method.retained_ratio": st.floats(0, 1, exclude_min=True),
    "method.uncompressed_layers": st.lists(st.integers(-9, 9), max_size=4),
    "lora.dropout": st.floats(0, 1, exclude_max=True),
    "align.layers.kind": st.sampled_from(["distill", "none"]),
    "align.layers.lr": st.floats(0, 1, exclude_min=True),
    "federated.rounds": st.integers(1, 10**6),
    "federated.sampling": st.sampled_from(["uniform", "md", "full", "poisson", "power_of_choice"]),
    "federated.deadline": st.none() | st.floats(0, 1e300, exclude_min=True),
    "federated.partition.size_imbalance": st.floats(0, 10),
    "pool.actors": st.sampled_from(["auto", "per_client"]) | st.integers(1, 10**6),
    "tracking.tags": st.lists(TEXTS, max_size=3),
    "cache.enabled": st.booleans(),
}
"""Keys and values that are fine, whatever the others are."""


def load_nested(flat: dict[str, Any]) -> Config:
    """Load a config file with these dotted keys."""
    nested = OmegaConf.create()
    for key, value in flat.items():
        OmegaConf.update(nested, key, value, force_add=True)
    return load_text(OmegaConf.to_yaml(nested))


def load_text(text: str) -> Config:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.yaml")
        path.write_text(text, encoding="utf-8")
        return load_config(path)


@settings(deadline=None, max_examples=20)
@given(st.fixed_dictionaries({}, optional=VALID))
def test_valid_settings_are_taken_over_and_come_back_from_their_dump(flat):
    config = load_nested(flat)
    for key, value in flat.items():
        found: Any = config
        for name in key.split("."):
            found = getattr(found, name)
        assert found == (tuple(value) if isinstance(value, list) else value), key
    again = load_text(dump_config(config))
    assert again == config
    assert changed_settings(json.loads(json.dumps(dataclasses.asdict(config))), again) == []


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([*KEYS, "federated", "fm", ""]), st.text("abcdefgz_", min_size=1, max_size=12), SCALARS)
def test_an_unknown_key_is_always_one_line_that_names_it(near, name, value):
    key = f"{near.rpartition('.')[0]}.{name}".lstrip(".")
    assume(not any(known == key or known.startswith(f"{key}.") for known in KEYS))
    assume(not key.startswith("fm.config."))  # a dictionary of the model's own
    with pytest.raises(ConfigError, match=r"^[^\n]+$") as error:
        load_nested({key: value})
    assert str(error.value).startswith(f"{key}: unknown key; ")


def refusal(load: Callable[[], Config]) -> str | None:
    """Return the one line of the ConfigError, or None for what loads; anything else that is raised fails the test."""
    try:
        load()
    except ConfigError as error:
        line = str(error)
    else:
        return None
    assert "\n" not in line
    return line


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(KEYS), VALUES)
def test_whatever_a_key_is_set_to_it_loads_or_is_one_line_that_names_its_section(key, value):
    line = refusal(lambda: load_nested({key: value}))
    assert line is None or key.partition(".")[0] in line.partition(":")[0]


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from(NUMBERS),
    st.sampled_from(["nan", "inf", "-inf", "-1", "0", "-0.0", "1e400", "-1e-320", str(10**400), str(-(10**400))]),
)
def test_numbers_beyond_the_ends_are_one_line_and_others_come_back(key, number):
    line = refusal(lambda: load_config(overrides=[f"{key}={number}"]))
    if line is not None:
        assert key.partition(".")[0] in line  # perhaps as what another key has to fit
        return
    assert math.isfinite(float(number[:300]))
    config = load_config(overrides=[f"{key}={number}"])
    assert load_text(dump_config(config)) == config


@pytest.mark.parametrize("number", [10**400, 2**62, 3])
def test_more_devices_than_share_a_batch_are_refused_by_the_key_that_was_set(number):
    line = refusal(lambda: load_config(overrides=[f"server.devices={number}"]))
    assert line is not None
    assert line.startswith("server.devices: found ")


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(["", "name", "federated.lr", "fm.config"]), st.text(max_size=20))
def test_any_text_as_an_override_is_taken_or_is_one_line(key, text):
    refusal(lambda: load_config(overrides=[text, f"{key}={text}"]))
    refusal(lambda: load_config(overrides=[f"{key}={text}"]))


@settings(deadline=None, max_examples=30)
@given(st.text(st.characters(blacklist_categories=["Cs"]), max_size=40))
def test_any_text_as_a_file_is_taken_or_is_one_line(text):
    refusal(lambda: load_text(text))
