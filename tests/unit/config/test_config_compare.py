import json
from dataclasses import asdict

import pytest

from fedpft.config import changed_settings, load_config
from fedpft.config.compare import HARMLESS, HARMLESS_ON_CPU


def changed(before=(), now=()):
    saved = json.loads(json.dumps(asdict(load_config(None, before))))
    return changed_settings(saved, load_config(None, now))


def test_a_config_equals_itself_after_a_trip_through_json():
    settings = ["method.uncompressed_layers=[0,-1]", "fm.config={a: 1}", "tracking.tags=[x]"]
    assert changed(settings, settings) == []


def test_every_change_is_listed_by_key_from_saved_to_now():
    now = ["federated.lr=0.5", "method.uncompressed_layers=[1]", "task.path=x"]
    assert changed([], now) == [
        "federated.lr: 0.0008 -> 0.5",
        "method.uncompressed_layers: [] -> [1]",
        'task.path: null -> "x"',
    ]


WHERE = "name=x output_dir=x pool.kind=sequential pool.actors=7 pool.address=auto pool.cpus_per_actor=2"
SIZES = "pool.gpus_per_actor=auto pool.memory_per_actor_gigabytes=2 server.num_gpus=1"
WHO = "tracking.tags=[x] tracking.wandb=disabled checkpoint.interval=9"
NUMBERS = "seed=1 federated.rounds=9 pool.threads_per_client=2 server.num_threads=3 pool.precision=bf16-mixed"
MORE_NUMBERS = "pool.accelerator=cpu pool.quantize=nf4 evaluation.interval=9 fm.config.hidden_dropout_prob=0.0"


@pytest.mark.parametrize("setting", [*WHERE.split(), *SIZES.split(), *WHO.split()])
def test_where_it_runs_and_who_watches_may_change(setting):
    assert changed([], [setting]) == []


@pytest.mark.parametrize("setting", [*NUMBERS.split(), *MORE_NUMBERS.split()])
def test_what_numbers_depend_on_may_not(setting):
    assert len(changed([], [setting])) == 1
    assert len(changed([setting], [])) == 1


@pytest.mark.parametrize(
    ("where", "is_harmless"),
    [
        ([], True),
        (["pool.accelerator=cpu", "pool.kind=sequential"], True),
        (["pool.kind=sequential"], False),
        (["pool.gpus_per_actor=0.5"], False),
        (["pool.precision=bf16-mixed"], False),
        (["pool.quantize=nf4"], True),
    ],
)
def test_how_many_clients_train_together_may_change_where_no_bit_depends_on_it(where, is_harmless):
    found = changed(where, [*where, "pool.clients_per_batch=auto"])
    assert found == ([] if is_harmless else ['pool.clients_per_batch: 1 -> "auto"'])


def test_the_harmless_keys_exist():
    keys = {
        f"{section}.{key}"
        for section, value in asdict(load_config()).items()
        if isinstance(value, dict)
        for key in value
    }
    keys |= asdict(load_config()).keys() | {f"{section}.*" for section in asdict(load_config())}
    assert {*HARMLESS, *HARMLESS_ON_CPU} <= keys


def test_settings_that_only_one_of_them_has_are_listed():
    saved = asdict(load_config())
    saved["old"] = {"key": 1}
    del saved["seed"]
    assert changed_settings(saved, load_config()) == ["old.key: 1 -> not set", "seed: not set -> 42"]
