import dataclasses

import pytest

from fedpft.config import Config, ConfigError, config_keys, doubtful_settings, dump_config, load_config


def write(folder, text):
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def message(path=None, overrides=()):
    """Return the error of a config that must not load, after checking that it is one line."""
    with pytest.raises(ConfigError) as error:
        load_config(path, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_defaults_are_a_valid_config():
    config = load_config()
    assert config == dataclasses.replace(Config(), output_dir="outputs/fedpft")
    assert (config.lora.rank, config.lora.lora_alpha, config.lora.dropout) == (8, 48, 0.1)


def test_defaults_come_back_from_their_own_dump(tmp_path):
    config = load_config()
    assert load_config(write(tmp_path, dump_config(config))) == config


def test_every_kind_of_value_comes_back_from_its_dump(tmp_path):
    config = load_config(
        overrides=[
            "name=x",
            "method.uncompressed_layers=[0,-1]",
            "fm.config.hidden_size=64",
            "federated.lr=1e-3",
            "pool.actors=3",
            "task.text_columns=[premise,hypothesis]",
            "task.max_train_examples=10",
            "tracking.wandb=disabled",
        ]
    )
    assert config.output_dir == "outputs/x"
    assert config.method.uncompressed_layers == (0, -1)
    assert config.fm.config == {"hidden_size": 64}
    assert config.pool.actors == 3
    assert load_config(write(tmp_path, dump_config(config))) == config


def test_overrides_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    path = write(tmp_path, "federated: {rounds: 7, batch_size: 2}")
    config = load_config(path, ["federated.rounds=9"])
    assert (config.federated.rounds, config.federated.batch_size, config.federated.local_epochs) == (9, 2, 1)


def test_an_empty_file_is_the_defaults(tmp_path):
    assert load_config(write(tmp_path, "")) == load_config()


def test_a_loaded_config_cannot_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_config().federated.rounds = 3


def test_keys_are_listed_with_their_sections():
    keys = config_keys()
    assert {"name", "federated.rounds", "federated.partition.kind", "align.neurons.interval"} <= set(keys)
    assert not any(key in keys for key in ("federated", "align.layers"))
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("federated.round=3", "federated.round: unknown key; did you mean federated.rounds?"),
        ("federatd.rounds=3", "federatd: unknown key; did you mean federated?"),
        ("align.neuron.interval=3", "align.neuron: unknown key; did you mean align.neurons?"),
        (
            "zzz=3",
            "zzz: unknown key; allowed: config_version, name, seed, output_dir, fm, task, public",
        ),
    ],
)
def test_unknown_key_names_itself_and_the_closest(override, expected):
    assert message(overrides=[override]).startswith(expected)


@pytest.mark.parametrize(
    ("override", "key", "found", "allowed"),
    [
        ("federated.rounds=abc", "federated.rounds", "'abc'", "Integer"),
        ("federated.lr=fast", "federated.lr", "'fast'", "Float"),
        ("seed=null", "seed", "'None'", "int"),
        ("federated.rounds=[1,2]", "federated.rounds", "[1, 2]", "Integer"),
        ("method.plug_in=paste", "method.plug_in", "'paste'", "['auto', 'copy', 'distill']"),
        ("method.scorer=magnitude", "method.scorer", "'magnitude'", "weight_norm, activation, greedy, random"),
        ("pool.actors=true", "pool.actors", "'true'", "auto, per_client or an integer > 0"),
    ],
)
def test_wrong_type_names_key_found_and_allowed(override, key, found, allowed):
    error = message(overrides=[override])
    assert error.startswith(f"{key}: ")
    assert found in error
    assert allowed in error


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("name=''", "name: found '', allowed: a name"),
        ("name=..", "name: found '..', allowed: a name"),
        ("seed=-1", "seed: found -1, allowed: an integer >= 0"),
        ("fm.path=''", "fm.path: found '', allowed: hub id, folder, package://... or scratch://model_type"),
        ("fm.max_length=4", "fm.max_length: found 4, allowed: an integer >= 8"),
        ("task.max_train_examples=0", "task.max_train_examples: found 0, allowed: null or an integer > 0"),
        ("task.name=custom", "task.path: found None, allowed: a hub id or folder, because task.name is custom"),
        ("public.chunk_length=1", "public.chunk_length: found 1, allowed: an integer >= 8"),
        ("method.retained_ratio=1.5", "method.retained_ratio: found 1.5, allowed: a fraction in (0, 1]"),
        ("method.retained_ratio=0", "method.retained_ratio: found 0.0, allowed: a fraction in (0, 1]"),
        ("lora.rank=0", "lora.rank: found 0, allowed: a number > 0"),
        ("lora.dropout=1", "lora.dropout: found 1.0, allowed: a fraction in [0, 1)"),
        ("align.layers.num_steps=0", "align.layers.num_steps: found 0, allowed: a number > 0"),
        ("align.layers.product_weight=-1", "align.layers.product_weight: found -1.0, allowed: a number >= 0"),
        ("align.neurons.interval=0", "align.neurons.interval: found 0, allowed: a number > 0"),
        ("align.neurons.update_ratio=2", "align.neurons.update_ratio: found 2.0, allowed: a fraction in (0, 1]"),
        ("stop.patience=0", "stop.patience: found 0, allowed: null or an integer > 0"),
        ("stop.target=.nan", "stop.target: found nan, allowed: null or a finite number"),
        ("stop.min_delta=-1", "stop.min_delta: found -1.0, allowed: a number >= 0"),
        ("federated.rounds=0", "federated.rounds: found 0, allowed: a number > 0"),
        ("federated.clients_per_round=101", "federated.clients_per_round: found 101, allowed: at most"),
        ("federated.partition.kind=natural", "federated.partition.column: found None, allowed: a column name"),
        ("pool.actors=many", "pool.actors: found 'many', allowed: auto, per_client or an integer > 0"),
        ("cache.dir=''", "cache.dir: found '', allowed: null or a folder"),
        (f"server.num_threads={2**40}", f"server.num_threads: found {2**40}, allowed: at most 1024"),
        (f"pool.threads_per_client={2**40}", f"pool.threads_per_client: found {2**40}, allowed: at most 1024"),
        ("cache.max_gigabytes=0", "cache.max_gigabytes: found 0.0, allowed: a number > 0"),
        ("federated.min_clients=0", "federated.min_clients: found 0, allowed: 1 to the clients of a round, 10"),
        ("federated.min_clients=11", "federated.min_clients: found 11, allowed: 1 to the clients of a round, 10"),
        ("federated.dropout_ratio=1", "federated.dropout_ratio: found 1.0, allowed: a fraction in [0, 1)"),
        ("federated.over_selection=0.9", "federated.over_selection: found 0.9, allowed: 1 to num_clients / "),
        ("federated.over_selection=10.1", "federated.over_selection: found 10.1, allowed: 1 to num_clients / "),
        ("federated.deadline=0", "federated.deadline: found 0.0, allowed: null or a finite number > 0"),
        ("federated.speed_sigma=-1", "federated.speed_sigma: found -1.0, allowed: a number in [0, 10]"),
        ("pool.max_retries=-1", "pool.max_retries: found -1, allowed: a number >= 0"),
        ("pool.client_timeout_seconds=0", "pool.client_timeout_seconds: found 0.0, allowed: null or a finite"),
        ("pool.start_timeout_seconds=0", "pool.start_timeout_seconds: found 0.0, allowed: a number > 0"),
        ("pool.max_actor_memory_gigabytes=0", "pool.max_actor_memory_gigabytes: found 0.0, allowed: null or"),
        ("pool.memory_per_actor_gigabytes=0", "pool.memory_per_actor_gigabytes: found 0.0, allowed: a number > 0"),
        ("pool.gpus_per_actor=1.5", "pool.gpus_per_actor: found 1.5, allowed: auto, or a number >= 0: a fraction up"),
        ("pool.gpus_per_actor=-1", "pool.gpus_per_actor: found -1, allowed: auto, or a number >= 0: a fraction up"),
        ("pool.gpus_per_actor=many", "pool.gpus_per_actor: found 'many', allowed: auto, or a number >= 0"),
        (
            "server.num_gpus=1.5",
            "server.num_gpus: found 1.5, allowed: auto, or a number >= 0: a fraction up to 1, or a",
        ),
        ("server.num_gpus=inf", "server.num_gpus: found 'inf', allowed: auto, or a number >= 0"),
        ("server.devices=0", "server.devices: found 0, allowed: an integer > 0"),
        ("server.devices=3", "server.devices: found 3, allowed: a divisor of align.layers.batch_size = 32, as all"),
        (
            "pool.accelerator=cuda",
            "pool.accelerator: found 'cuda', allowed: cuda with pool.gpus_per_actor > 0, or auto",
        ),
        ("evaluation.interval=0", "evaluation.interval: found 0, allowed: a number > 0"),
        ("evaluation.fidelity_examples=-1", "evaluation.fidelity_examples: found -1, allowed: a number >= 0"),
        ("output_dir=''", "output_dir: found '', allowed: a folder"),
        ("federated.lr=nan", "federated.lr: found nan, allowed: a number > 0"),
        ("federated.lr=inf", "federated.lr: found inf, allowed: a finite number"),
        ("federated.weight_decay=inf", "federated.weight_decay: found inf, allowed: a finite number"),
        ("federated.deadline=inf", "federated.deadline: found inf, allowed: null or a finite number > 0"),
        (
            "federated.partition.size_imbalance=11",
            "federated.partition.size_imbalance: found 11.0, allowed: a number in",
        ),
    ],
)
def test_value_out_of_range_names_key_found_and_allowed(override, expected):
    assert message(overrides=[override]).startswith(expected)


def test_text_that_came_as_the_bytes_of_utf8_is_text_and_a_path_of_other_bytes_is_one_line():
    assert load_config(None, ["name=gr\udcc3\udcb6\udcc3\udc9fe"]).name == "größe"
    with pytest.raises(ConfigError, match=r"^output_dir: found 'gr\\udcf6', allowed: a path without '\\udcf6', which"):
        Config(output_dir="gr\udcf6")


@pytest.mark.parametrize(
    "key",
    [
        *("federated.num_clients", "federated.rounds", "federated.clients_per_round", "federated.local_epochs"),
        *("federated.aggregator.iterations", "pool.max_retries", "fm.pretrain.num_epochs"),
        *("align.layers.num_steps", "align.neurons.num_steps", "align.adapter.num_steps"),
    ],
)
def test_what_would_be_done_for_ever_is_refused(key):
    with pytest.raises(ConfigError, match=rf"^{key}: found {2**63 - 1}, allowed: at most 1000000$"):
        load_config(None, ["federated.sampling=md", f"{key}={2**63 - 1}"])
    others = ["federated.num_clients=1000000", "federated.clients_per_round=1000000"]
    load_config(None, [*others, f"{key}=1000000"])


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["stop.patience=2"], False),
        (["stop.patience=3"], True),
        (["stop.target=0.5"], False),
        (["stop.min_delta=0.1"], True),
        (["stop.metric=accuracy"], True),
    ],
)
def test_a_rule_that_cannot_stop_a_run_of_4_evaluations_is_doubted(overrides, says):
    given = ["federated.rounds=20", *overrides]
    assert any("stop." in line for line in doubtful_settings(load_config(None, given))) == says


@pytest.mark.parametrize(
    ("setting", "found"),
    [("over_selection=1.5", "over_selection: found 1.5, allowed: 1 with"), ("clients_per_round=101", "at most")],
)
def test_poisson_keeps_all_that_it_draws_with_a_probability(setting, found):
    with pytest.raises(ConfigError, match=found):
        load_config(None, ["federated.sampling=poisson", f"federated.{setting}"])


def test_power_of_choice_needs_as_many_candidates_as_it_chooses():
    chosen = ["federated.sampling=power_of_choice", "federated.aggregation=uniform"]
    assert load_config(None, chosen).federated.drawn_candidates == 20
    assert load_config(None, [*chosen, "federated.num_clients=12"]).federated.drawn_candidates == 12
    for wrong in (9, 101):
        with pytest.raises(ConfigError, match=rf"num_candidates: found {wrong}, allowed: null or 10 to 100"):
            load_config(None, [*chosen, f"federated.num_candidates={wrong}"])
    with pytest.raises(ConfigError, match=r"over_selection: found 3\.0, allowed: 1 to candidates"):
        load_config(None, [*chosen, "federated.over_selection=3"])
    assert doubtful_settings(load_config(None, chosen)) == []
    assert len(doubtful_settings(load_config(None, [*chosen, "federated.num_candidates=10"]))) == 1
    assert len(doubtful_settings(load_config(None, ["federated.num_candidates=10"]))) == 1
    assert len(doubtful_settings(load_config(None, chosen[:1]))) == 1


def test_actors_are_too_many_only_beyond_all_clients_that_a_round_may_have():
    def doubtful(sampling, actors):
        return doubtful_settings(load_config(None, [f"federated.sampling={sampling}", f"pool.actors={actors}"]))

    assert [any("can be busy" in line for line in doubtful(sampling, 50)) for sampling in ("uniform", "full")] == [1, 0]
    assert [any("can be busy" in line for line in doubtful("poisson", actors)) for actors in (50, 101)] == [0, 1]


def test_sampling_with_replacement_may_draw_more_clients_than_there_are():
    overrides = ["federated.sampling=md", "federated.num_clients=2", "federated.clients_per_round=10"]
    federated = load_config(overrides=overrides).federated
    assert (federated.num_clients, federated.clients_per_round) == (2, 10)


def test_more_devices_than_the_claimed_gpus_are_refused():
    claimed = "server.devices: found 4, allowed: at most server.num_gpus = 2, what it claims"
    assert message(overrides=["server.devices=4", "server.num_gpus=2"]) == claimed
    assert load_config(overrides=["server.devices=2", "server.num_gpus=2"]).server.devices == 2


def test_settings_without_effect_are_named():
    overrides = ["pool.kind=sequential", "pool.client_timeout_seconds=5", "federated.speed_sigma=0.5"]
    lines = doubtful_settings(load_config(overrides=overrides))
    assert "pool.client_timeout_seconds has no effect with pool.kind = sequential" in lines
    assert "federated.speed_sigma has no effect without federated.deadline or federated.over_selection" in lines
    assert not any("pool.actors" in line for line in lines)
    untrained = ["server.devices=2", "align.layers.kind=closed_form", "align.neurons.kind=none", "method.plug_in=copy"]
    assert any(line.startswith("server.devices has no") for line in doubtful_settings(load_config(overrides=untrained)))
    assert doubtful_settings(load_config(overrides=["server.devices=2"])) == []
    assert doubtful_settings(load_config()) == []


def test_an_override_without_a_value_is_explained():
    assert message(overrides=["federated.rounds"]) == (
        "override 'federated.rounds': allowed: key=value, e.g. federated.rounds=4"
    )


def test_a_missing_file_is_named(tmp_path):
    assert message(tmp_path / "no.yaml") == f"config file '{tmp_path}/no.yaml': not found"


@pytest.mark.parametrize("text", ["a: [b", "\x00\x01", "a: b: c"])
def test_a_file_that_is_not_yaml_is_named(tmp_path, text):
    path = write(tmp_path, text)
    assert message(path).startswith(f"{path}: not readable as YAML: ")


def test_a_file_with_a_list_is_explained(tmp_path):
    path = write(tmp_path, "- 1\n- 2")
    assert message(path).startswith(f"{path}: found a list, allowed: sections and keys")


def test_a_value_in_place_of_a_section_names_the_section(tmp_path):
    path = write(tmp_path, "federated: 3")
    assert message(path) == "federated: found '3', allowed: a section with keys of its own"
    assert message(write(tmp_path, "align: {layers: 3}")).startswith("align.layers: found '3'")


def test_an_unknown_interpolation_names_the_key(tmp_path):
    assert message(write(tmp_path, "output_dir: ${nme}")).startswith("output_dir: ")
