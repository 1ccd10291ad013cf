"""The rules of local steps, against torch, transformers and the fixed points that are known on quadratics."""

import sys
from functools import partial

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from fedpft.config import ClientConfig, Config, ConfigError, FederatedConfig, doubtful_settings, load_config
from fedpft.federated.client import LocalClient
from fedpft.federated.client_steps.base import Start
from fedpft.federated.client_steps.corrected import VARIATE, FedNova, Prox, Scaffold
from fedpft.federated.client_steps.optimisers import SGD, AdamW
from fedpft.federated.control_variates import ControlVariates, StatesInMemory, client_weights
from fedpft.federated.local_schedule import mean_normaliser, normaliser, num_steps, rate_factors
from fedpft.federated.messages import RoundPlan
from fedpft.interrupt import RunStoppedError
from fedpft.models.lora import get_adapter
from fedpft.models.weights import unpack_model
from tests.tiny import tiny_package

WIDTH = 48
ALL = slice(0, WIDTH)
COSINE = rate_factors(ClientConfig(schedule="cosine", warmup_steps=2), 6)


def start_of(adapter, shared=None, own=None):
    return Start(adapter=adapter, shared=shared or {}, own=own or {})


def trained(rule, start, gradients_of, factors):
    """Let one client make its steps on exact gradients; return what it sends."""
    values, memory = start.adapter[None].clone(), [row[None] for row in rule.begin(start)]
    for step, factor in enumerate(factors):
        gradients = gradients_of(values, step)
        rule.add_own(values, gradients, memory)
        rule(values, gradients, memory, step, factor)
    return rule.end(start, values[0], [rows[0] for rows in memory], factors)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(
    ("rule", "theirs"),
    [
        (SGD, torch.optim.SGD),
        (partial(SGD, momentum=0.9), partial(torch.optim.SGD, momentum=0.9)),
        (AdamW, torch.optim.AdamW),
    ],
)
def test_steps_have_the_bits_of_torchs_optimiser_with_the_same_rates(rule, theirs, weight_decay):
    generator = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(WIDTH, generator=generator), torch.randn(6, WIDTH, generator=generator)
    columns = [(slice(0, 32), 0.1), (slice(32, WIDTH), 0.3)]
    made = rule(rates=columns, weight_decay=weight_decay)
    found = trained(made, start_of(start), lambda values, step: gradients[step : step + 1].clone(), COSINE).adapter
    parts = [nn.Parameter(start[c].clone()) for c, _ in columns]
    groups = [{"params": [part], "lr": rate} for part, (_, rate) in zip(parts, columns, strict=True)]
    optimiser = theirs(groups, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: COSINE[min(step, 5)])
    for step in range(6):
        for part, (c, _) in zip(parts, columns, strict=True):
            part.grad = gradients[step][c].clone()
        optimiser.step()
        schedule.step()
    assert torch.equal(found, torch.cat([part.detach() for part in parts]))


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize(("warmup_steps", "steps"), [(0, 1), (0, 7), (3, 9), (9, 4)])
def test_the_schedule_is_that_of_transformers_without_its_step_of_rate_zero(schedule, warmup_steps, steps):
    name = schedule if schedule != "constant" else "constant_with_warmup"
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = transformers.get_scheduler(name, optimiser, warmup_steps + 1, steps + 1)
    expected = []
    for _ in range(steps):
        optimiser.step()
        theirs.step()
        expected.append(theirs.get_last_lr()[0])
    found = rate_factors(ClientConfig(schedule=schedule, warmup_steps=warmup_steps), steps)
    assert found == pytest.approx(expected, abs=1e-12)
    assert min(found) > 0


def test_steps_are_counted_as_epochs_are_cut():
    sizes = {"batch_size": 4, "num_epochs": 3}
    assert [num_steps(n, accumulate=1, **sizes) for n in (1, 4, 9)] == [3, 3, 9]
    assert [num_steps(n, accumulate=2, **sizes) for n in (1, 4, 9)] == [3, 3, 6]


# quadratics: client i's loss is sum(h_i / 2 * (y - b_i) ** 2), so that its gradient is h_i * (y - b_i)


class Quadratics:
    def __init__(self, num_clients=4, same_curvature=False):
        generator = torch.Generator().manual_seed(3)
        self.b = 3 * torch.randn(num_clients, WIDTH, generator=generator)
        h = torch.ones(num_clients, WIDTH) if same_curvature else torch.rand(num_clients, WIDTH, generator=generator)
        self.h = 0.5 + h
        self.sizes = np.arange(1, num_clients + 1) * 10
        self.weights = client_weights(self.sizes, "weighted")
        self.num_steps = [3, 17, 5, 9][:num_clients]

    def gradients_of(self, client):
        return lambda values, step: self.h[client] * (values - self.b[client])

    def mean(self, rows, weights=None):
        """Return the mean over clients, each number with weights of its own or the clients' own."""
        p = torch.tensor(self.weights, dtype=torch.float32)[:, None] * (1 if weights is None else weights)
        return (p * rows).sum(0) / p.expand_as(rows).sum(0)

    @property
    def optimum(self):
        return self.mean(self.b, self.h)

    def round(self, x, rule_of):
        sent = [
            trained(rule_of(i), start_of(x), self.gradients_of(i), [1.0] * self.num_steps[i])
            for i in range(len(self.b))
        ]
        return self.mean(torch.stack([end.adapter for end in sent]))

    def fixed_point(self, rule_of, rounds=400):
        x = torch.zeros(WIDTH)
        for _ in range(rounds):
            x = self.round(x, rule_of)
        return x


def distance(one, other):
    return float((one - other).abs().max())


@pytest.mark.parametrize("mu", [0.1, 3.0])
def test_fedprox_ends_where_its_closed_form_says(mu):
    """The minimiser of a client is (h b + mu x) / (h + mu); the rounds end at the mean of b with weights h/(h+mu)."""
    toy = Quadratics()
    toy.num_steps = [100] * 4
    rule = Prox(optimiser=SGD(rates=[(ALL, 0.2)], weight_decay=0.0), mu=mu)
    x = torch.ones(WIDTH)
    found = trained(rule, start_of(x), toy.gradients_of(1), [1.0] * 100).adapter
    assert distance(found, (toy.h[1] * toy.b[1] + mu * x) / (toy.h[1] + mu)) < 1e-5
    weights = toy.h / (toy.h + mu)
    assert distance(toy.fixed_point(lambda i: rule, rounds=50), toy.mean(toy.b, weights)) < 1e-4


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_fednova_ends_at_the_optimum_where_fedavg_is_drawn_to_those_who_make_more_steps(momentum):
    toy = Quadratics(same_curvature=True)
    lr = 2e-3 * (1 - momentum)
    sgd = SGD(rates=[(ALL, lr)], weight_decay=0.0, momentum=momentum)
    lengths = [normaliser([1.0] * steps, momentum) for steps in toy.num_steps]
    tau = float(np.dot(toy.weights, lengths))
    fedavg = toy.fixed_point(lambda i: sgd, rounds=400)
    fednova = toy.fixed_point(lambda i: FedNova(sgd=sgd, tau=tau), rounds=400)
    drawn_to = toy.mean(toy.b, torch.tensor(lengths)[:, None])
    assert distance(fedavg, toy.optimum) > 0.5
    assert distance(fedavg, drawn_to) < 0.1
    assert distance(fednova, toy.optimum) < 0.05


def test_the_mean_of_what_fednova_sends_is_the_papers_step():
    toy, x = Quadratics(), torch.ones(WIDTH)
    sgd = SGD(rates=[(ALL, 0.05)], weight_decay=0.0, momentum=0.5)
    lengths = [normaliser([1.0] * steps, 0.5) for steps in toy.num_steps]
    tau = float(np.dot(toy.weights, lengths))
    moved = [
        (trained(sgd, start_of(x), toy.gradients_of(i), [1.0] * toy.num_steps[i]).adapter - x) / lengths[i]
        for i in range(4)
    ]
    assert distance(toy.round(x, lambda i: FedNova(sgd=sgd, tau=tau)), x + tau * toy.mean(torch.stack(moved))) < 1e-5


def test_with_equal_steps_fednova_is_fedavg_to_the_bit():
    toy, x = Quadratics(), torch.ones(WIDTH)
    toy.num_steps = [5] * 4
    sgd = SGD(rates=[(ALL, 0.05)], weight_decay=0.0)
    assert torch.equal(toy.round(x, lambda i: FedNova(sgd=sgd, tau=5.0)), toy.round(x, lambda i: sgd))


def test_the_normaliser_of_momentum_is_the_papers():
    rho, steps = 0.9, 13
    assert normaliser([1.0] * steps, 0.0) == steps
    assert normaliser([0.5] * steps, 0.0) == pytest.approx(steps / 2)
    assert normaliser([1.0] * steps, rho) == pytest.approx((steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho))


def test_tau_is_the_cohorts_mean_with_the_weights_of_the_aggregate():
    sizes, common = np.array([8, 100, 20]), {"batch_size": 4, "local_epochs": 2}
    weighted = FederatedConfig(client=ClientConfig(kind="fednova"), **common)
    uniform = FederatedConfig(client=ClientConfig(kind="fednova"), aggregation="uniform", **common)
    assert mean_normaliser(weighted, {0: 1, 2: 3}, sizes) == pytest.approx((8 * 4 + 3 * 20 * 10) / (8 + 3 * 20))
    assert mean_normaliser(uniform, {0: 1, 2: 3}, sizes) == pytest.approx((4 + 3 * 10) / 4)


def scaffold(toy, cohorts):
    """Run SCAFFOLD's rounds; return the adapter and the server's variate after them."""
    rule = Scaffold(rates=[(slice(0, 32), 0.05), (slice(32, WIDTH), 0.02)], weight_decay=0.0)
    server = ControlVariates(states=StatesInMemory(), weights=toy.weights)
    x, memory = torch.zeros(WIDTH), {}
    for round_index, cohort in enumerate(cohorts, start=1):
        shared, states = server.sent(memory, WIDTH)
        total = 0.0
        for i in cohort:
            own = {name: torch.tensor(array) for name, array in states.get(i, {}).items()}
            start = start_of(x, {name: torch.tensor(array) for name, array in shared.items()}, own)
            end = trained(rule, start, toy.gradients_of(i), [1.0] * toy.num_steps[i])
            server.states.write(i, round_index, {name: row.numpy() for name, row in end.own.items()})
            total = total + toy.weights[i] * end.adapter / sum(toy.weights[j] for j in cohort)
        x, memory = total, server.after_round(memory, cohort, round_index)
    return x, memory, server


@pytest.mark.parametrize("partial_cohorts", [False, True])
def test_scaffold_reaches_the_optimum_that_fedavg_misses(partial_cohorts):
    toy, rng = Quadratics(), np.random.default_rng(0)
    toy.num_steps = [10] * 4
    sgd = SGD(rates=[(ALL, 0.05)], weight_decay=0.0)
    cohorts = [sorted(rng.choice(4, 2, replace=False)) if partial_cohorts else range(4) for _ in range(400)]
    x, memory, server = scaffold(toy, [[int(i) for i in cohort] for cohort in cohorts])
    assert distance(toy.fixed_point(lambda i: sgd), toy.optimum) > 0.05
    assert distance(x, toy.optimum) < 1e-3
    states = server.sent(memory, WIDTH)[1]
    mean = sum(toy.weights[i] * states[i][VARIATE].astype(np.float64) for i in states)
    assert np.abs(memory["clients/variate"] - mean).max() < 1e-9, "the server's is the mean of the clients'"


def test_a_variate_is_the_mean_of_the_clients_gradients():
    """Of option II, since y = x - sum lr * (g - c_i + c): also where the rate changes, weighted by it."""
    generator = torch.Generator().manual_seed(1)
    x, c, own, *gradients = torch.randn(9, WIDTH, generator=generator)
    factors = COSINE
    rule = Scaffold(rates=[(slice(0, 32), 0.05)], weight_decay=0.0)
    start = start_of(x, {VARIATE: c}, {VARIATE: own})
    end = trained(rule, start, lambda values, step: gradients[step][None].clone(), factors)
    mean = sum(factor * gradient for factor, gradient in zip(factors, gradients, strict=True)) / sum(factors)
    assert distance(end.own[VARIATE][:32], mean[:32]) < 1e-5
    assert torch.equal(end.own[VARIATE][32:], own[32:]), "what is not tuned keeps its variate"
    assert torch.equal(end.adapter[32:], x[32:])


def test_a_variate_stays_where_the_rate_is_zero():
    own = torch.ones(WIDTH)
    rule = Scaffold(rates=[(ALL, 0.0)], weight_decay=0.0)
    end = trained(rule, start_of(own, own={VARIATE: own}), lambda values, step: values.clone(), [1.0])
    assert torch.equal(end.own[VARIATE], own)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"kind": "scaffold", "optimiser": "adamw"},
            "federated.client.optimiser: found 'adamw', allowed: null or sgd with federated.client.kind = scaffold, "
            "which assumes SGD",
        ),
        (
            {"kind": "fednova", "optimiser": "adamw"},
            "federated.client.optimiser: found 'adamw', allowed: null or sgd with federated.client.kind = fednova, "
            "which assumes SGD",
        ),
        (
            {"kind": "sgd", "optimiser": "adamw"},
            "federated.client.optimiser: found 'adamw', allowed: null or sgd with federated.client.kind = sgd",
        ),
        (
            {"kind": "scaffold", "momentum": 0.9},
            "federated.client.momentum: found 0.9, allowed: 0 with federated.client.kind = scaffold: its control "
            "variates are means of plain gradients",
        ),
        ({"momentum": 1.0}, "federated.client.momentum: found 1.0, allowed: a fraction in [0, 1)"),
        ({"mu": 0.0}, "federated.client.mu: found 0.0, allowed: a number > 0"),
        ({"warmup_steps": -1}, "federated.client.warmup_steps: found -1, allowed: a number >= 0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_in_one_line(settings, message):
    with pytest.raises(ConfigError) as error:
        ClientConfig(**settings)
    assert str(error.value) == message


OWN = """
import torch
from fedpft.federated.client_steps.base import PlainStep

class SignStep(PlainStep):
    def __init__(self, settings, plan, rates):
        self.rates = rates
    def begin(self, start):
        return []
    def __call__(self, values, gradients, memory, steps_done, factor):
        for columns, rate in self.rates:
            values[:, columns] -= rate * factor * gradients[:, columns].sign()

class Stateful(SignStep):
    def end(self, start, values, memory, factors):
        end = super().end(start, values, memory, factors)
        return type(end)(adapter=end.adapter, own={"mine": values})

class Raises(SignStep):
    def begin(self, start):
        raise KeyError("no such thing")

class Shy:
    def __init__(self):
        pass
"""


@pytest.fixture
def own_steps(tmp_path, monkeypatch):
    (tmp_path / "own_steps.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield lambda name: tiny_package(shard_sizes=(4, 3), weight_decay=0, client=ClientConfig(kind=f"own_steps:{name}"))
    sys.modules.pop("own_steps", None)


def fit(package):
    adapter = get_adapter(unpack_model(package.proxy))
    plan = RoundPlan(round_index=1, lr=0.25, adapter=adapter, count_activations=False)
    return [update.adapter - adapter for update in LocalClient(package).fit_together(plan, [0, 1])]


def test_a_rule_of_others_makes_the_steps(own_steps):
    for moved in fit(own_steps("SignStep")):
        assert np.unique(np.abs(moved).round(5)).tolist() == [0, 0.25]


@pytest.mark.parametrize(
    ("name", "why"),
    [("Stateful", r"it sends \['mine'\]"), ("Raises", r"KeyError: 'no such thing' \(own_steps.py, line 21\)")],
)
def test_what_a_rule_of_others_gets_wrong_is_one_line_with_its_name(own_steps, name, why):
    with pytest.raises(RunStoppedError, match=rf"^federated\.client\.kind = own_steps:{name} failed: .*{why}") as error:
        fit(own_steps(name))
    assert "\n" not in str(error.value)


def test_a_rule_that_cannot_be_made_or_that_nobody_has_is_refused(own_steps):
    with pytest.raises(ConfigError, match=r"^federated\.client\.kind: found 'own_steps:Shy', which fails: TypeError"):
        fit(own_steps("Shy"))
    with pytest.raises(ConfigError, match=r"^federated\.client\.kind: found 'nobodys', allowed: .* plug-in's name"):
        ClientConfig(kind="nobodys")


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["kind=sgd", "mu=1"], "federated.client.mu has no effect with federated.client.kind = sgd"),
        (["momentum=0.5"], "federated.client.momentum has no effect with federated.client.kind = adamw"),
        (["kind=scaffold"], "federated.lr = 0.0008 is AdamW's: SGD usually needs 10 to 100 times as much"),
    ],
)
def test_settings_without_effect_are_told(settings, line):
    assert line in doubtful_settings(load_config(None, [f"federated.client.{setting}" for setting in settings]))
    assert not any("client" in line for line in doubtful_settings(Config()))
