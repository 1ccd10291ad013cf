"""Settings of aggregators and server optimisers: what cannot work is refused, what does nothing is said."""

import pytest

from fedpft.config import ConfigError, doubtful_settings, load_config


def load(*settings):
    return load_config(None, [f"federated.{setting}" for setting in settings])


@pytest.mark.parametrize(("kind", "enough"), [("median", 4), ("trimmed_mean", 4), ("geometric_median", 4),
    ("centered_clipping", 4), ("krum", 3), ("multi_krum", 3), ("bulyan", 1)])  # fmt: skip
def test_a_cohort_that_is_too_small_for_its_bad_clients_is_refused(kind, enough):
    load(f"aggregator.kind={kind}", f"aggregator.num_byzantine={enough}")
    allowed = rf"{kind} needs [24] \* num_byzantine \+ [13] updates in a round, which has at most 10"
    with pytest.raises(
        ConfigError, match=rf"^federated\.aggregator\.num_byzantine: found {enough + 1}, allowed: {allowed}$"
    ):
        load(f"aggregator.kind={kind}", f"aggregator.num_byzantine={enough + 1}")


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("aggregator.kind=krumm", "aggregator.kind"),
        ("aggregator.num_byzantine=-1", "aggregator.num_byzantine"),
        ("aggregator.norm=0", "aggregator.norm"),
        ("aggregator.iterations=0", "aggregator.iterations"),
        ("server.kind=sgd", "server.kind"),
        ("server.lr=0", "server.lr"),
        ("server.head_lr=-1", "server.head_lr"),
        ("server.beta1=1", "server.beta1"),
        ("server.beta2=-0.1", "server.beta2"),
        ("server.tau=0", "server.tau"),
    ],
)
def test_what_cannot_work_is_refused(setting, key):
    with pytest.raises(ConfigError, match=rf"^federated\.{key}: found"):
        load(setting)


def test_multi_krum_cannot_choose_more_than_there_are():
    with pytest.raises(ConfigError, match=r"^federated\.aggregator\.num_selected: found 11, allowed: null or at most"):
        load("aggregator.kind=multi_krum", "aggregator.num_selected=11")
    assert load("aggregator.kind=multi_krum", "aggregator.num_selected=8").federated.aggregator.min_updates == 8


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["aggregator.kind=median"], "aggregator.kind = median ignores example counts"),
        (["aggregator.kind=krum"], "num_byzantine = 0: krum withstands no bad client"),
        (["aggregator.norm=2"], "federated.aggregator.norm has no effect with federated.aggregator.kind = mean"),
        (["head_inputs=standardized", "head_lr_ratio=8"], "federated.head_lr_ratio = 8 is for raw features"),
        (["server.tau=0.1"], "federated.server.tau has no effect with federated.server.kind = avg"),
        (
            ["server.kind=adagrad", "server.beta2=0.9"],
            "server.beta2 has no effect with federated.server.kind = adagrad",
        ),
        (
            ["sampling=md", "num_clients=10", "aggregator={kind: bulyan, num_byzantine: 1}"],
            "md draws 6.51 different clients on average: a round with fewer than the 7",
        ),
    ],
)
def test_what_has_no_effect_is_said(settings, said):
    assert [line for line in doubtful_settings(load(*settings)) if said in line]


def test_nothing_is_said_of_what_has_one():
    quiet = load("aggregator.kind=mean", "server.kind=adam", "server.tau=0.1", "server.lr=0.1")
    assert not [line for line in doubtful_settings(quiet) if "aggregator" in line or "server" in line]
