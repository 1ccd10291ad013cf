import importlib.util

import numpy as np
import pytest

from fedpft.config import ConfigError, doubtful_settings, load_config
from fedpft.federated.secure_aggregation import SecureAggregation

ON = "privacy.secure_aggregation=true"
DP = [
    "privacy={kind: client, noise_multiplier: 1.0}",
    "federated={sampling: poisson, aggregation: uniform, clients_per_round: 30}",
]


@pytest.mark.parametrize(
    ("overrides", "key", "why"),
    [
        (["federated.clients_per_round=1"], "federated.clients_per_round", "the sum of one update is that update"),
        (["federated.aggregator.kind=krum"], "federated.aggregator.kind", "the server has only their sum"),
        (["federated.aggregator.kind=norm_bound"], "federated.aggregator.kind", "compare or bound single updates"),
        (["federated.lora_aggregation=svd"], "federated.lora_aggregation", "products of each client's factors"),
        (["federated.sampling=power_of_choice"], "federated.sampling", "draw by losses or sizes"),
        (["federated.sampling=md"], "federated.sampling", "draw by losses or sizes"),
        (["federated.client.kind=scaffold"], "federated.client.kind", "a state in the clear"),
        (["federated.client.kind=fednova"], "federated.client.kind", "normalised by each client's steps"),
        (
            ["federated.adversary.kind=sign_flip"],
            "federated.adversary.kind",
            "replace what is sent, where it is masked",
        ),
        ([*DP, "align.neurons.counts=clients"], "align.neurons.counts", "scaled before they are masked"),
        ([*DP, "federated.clients_per_round=5"], "federated.clients_per_round", "less likely than privacy.delta / 100"),
        (["privacy.secure_threshold=0.4"], "privacy.secure_threshold", "both secrets of a client could come together"),
        (["privacy.secure_bound=0"], "privacy.secure_bound", "a number > 0"),
    ],
)
def test_what_needs_a_single_update_is_refused_with_the_reason(overrides, key, why):
    with pytest.raises(ConfigError) as error:
        load_config(None, [ON, *overrides])
    line = str(error.value)
    assert line.startswith(f"{key}: found ")
    assert why in line
    assert "\n" not in line


@pytest.mark.parametrize(
    "overrides",
    [
        DP,
        ["federated.adversary.kind=label_flip"],
        ["federated.lora_aggregation=alternate", "federated.server.kind=adam"],
        ["federated.over_selection=1.3", "federated.deadline=9", "privacy.strict=true"],
    ],
)
def test_what_goes_with_it_is_taken(overrides):
    assert load_config(None, [ON, *overrides]).privacy.secure_aggregation


def test_sizes_that_leave_too_few_bits_and_a_missing_library_are_known_before_anything_starts(monkeypatch):
    config = load_config(None, [ON, "privacy.secure_bound=1e9"])
    with pytest.raises(ConfigError, match=r"privacy.secure_bound: found 1000000000.0, allowed: less: 100 clients"):
        SecureAggregation.of_run(config, np.array([5000, 3]))
    made = SecureAggregation.of_run(load_config(None, [ON]), np.array([5000, 3]))
    assert (made.most_weight, made.threshold(10), made.threshold(3), made.threshold(1)) == (8192, 6, 2, 2)
    assert SecureAggregation.of_run(load_config(None, []), np.array([1])) is None
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "fedpft.federated.secure_aggregation.find_spec", lambda name: None if name == "cryptography" else find(name)
    )
    with pytest.raises(ConfigError, match=r"cryptography, which is not installed, .* 'fedpft\[privacy\]'"):
        SecureAggregation.of_run(load_config(None, [ON]), np.array([5]))


def test_settings_that_nothing_reads_are_told():
    assert doubtful_settings(load_config(None, ["privacy.secure_bound=2"])) == [
        "no effect with privacy.secure_aggregation = false: privacy.secure_bound"
    ]
    with_clip = doubtful_settings(load_config(None, [ON, *DP, "privacy.secure_bound=2"]))
    assert "no effect with privacy.kind = client: privacy.secure_bound" in with_clip
