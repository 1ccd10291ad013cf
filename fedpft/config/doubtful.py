"""Settings that change nothing in a run, or hardly what their author wants."""

from fedpft.config.adversary import DEFAULT_SCALES, AdversaryConfig
from fedpft.config.algorithms import SERVER_OPTIMISERS, AggregatorConfig, ServerOptimiserConfig
from fedpft.config.client import ClientConfig
from fedpft.config.federated import FederatedConfig
from fedpft.config.method import AdapterAlignConfig
from fedpft.config.pool import PoolConfig
from fedpft.config.privacy import PrivacyConfig
from fedpft.config.run import Config
from fedpft.config.stop import StopConfig
from fedpft.config.tracking import TrackingConfig
from fedpft.config.unread import unread_settings


def doubtful_settings(config: Config) -> list[str]:
    """Return one line for each setting that changes nothing in this run, or hardly what its author wants."""
    federated, neurons, lines = config.federated, config.align.neurons, []
    method = config.method
    if method.name == "fedpft" and neurons.kind != "none" and neurons.interval >= federated.rounds:
        lines.append(
            f"align.neurons.interval = {neurons.interval} has no effect with federated.rounds = {federated.rounds}: "
            "the sub-FM is re-aligned after every round that is a multiple of it, except the last"
        )
    if federated.sampling == "full" and federated.clients_per_round != federated.num_clients:
        lines.append("federated.clients_per_round has no effect with federated.sampling = full")
    busy = federated.num_clients if federated.sampling == "poisson" else federated.cohort_size
    if isinstance(config.pool.actors, int) and config.pool.actors > busy:
        lines.append(f"pool.actors = {config.pool.actors}: only {busy} can be busy in a round")
    together = config.pool.clients_per_batch
    if isinstance(together, int) and together > max(1, federated.cohort_size):
        lines.append(f"pool.clients_per_batch = {together}: a round has only {federated.cohort_size} clients")
    if federated.head_inputs == "standardized" and federated.head_lr_ratio != 1:
        lines.append(
            f"federated.head_lr_ratio = {federated.head_lr_ratio:g} is for raw features: a head on standardized ones "
            "learns at the rate of LoRA"
        )
    lines += _of_the_server_rule(federated)
    if federated.sampling == "md" and federated.aggregation == "weighted" and federated.aggregator.facts.weighs:
        lines.append(
            "federated.sampling = md already draws by data volume: aggregation = uniform is its unbiased partner"
        )
    if federated.sampling == "power_of_choice" and federated.aggregation == "weighted":
        lines.append(
            "federated.sampling = power_of_choice draws candidates by data volume: aggregation = uniform is its partner"
        )
    if federated.sampling == "power_of_choice" and federated.drawn_candidates == federated.clients_per_round:
        lines.append("federated.sampling = power_of_choice has no choice: there are only clients_per_round candidates")
    if federated.sampling != "power_of_choice" and federated.num_candidates is not None:
        lines.append("federated.num_candidates has no effect without federated.sampling = power_of_choice")
    if federated.sampling == "full" and federated.over_selection > 1:
        lines.append("federated.over_selection has no effect with federated.sampling = full")
    if federated.speed_sigma and federated.deadline is None and federated.over_selection == 1:
        lines.append("federated.speed_sigma has no effect without federated.deadline or federated.over_selection")
    lines += _of_early_stop(config)
    lines += _of_adversary(federated)
    lines += _of_tracking(config.tracking)
    if config.pool.kind == "sequential":
        defaults = PoolConfig()
        names = (
            *("actors", "memory_per_actor_gigabytes", "client_timeout_seconds", "start_timeout_seconds"),
            *("max_actor_memory_gigabytes", "matmul_precision"),
        )
        changed = [name for name in names if getattr(config.pool, name) != getattr(defaults, name)]
        lines += [f"pool.{name} has no effect with pool.kind = sequential" for name in changed]
    if config.server.devices > 1 and not config.distillations():
        lines.append(
            "server.devices has no effect without a distillation (align.layers.kind, "
            "align.neurons.kind, method.plug_in)"
        )
    if method.name != "full" and config.plugs_in_by == "copy" and config.align.adapter != AdapterAlignConfig():
        lines.append(f"align.adapter has no effect: the adapter is copied (method.plug_in = {method.plug_in})")
    lines += _idle_privacy(config)
    if unread := unread_settings(config, method.name):
        lines.append(f"no effect with method.name = {method.name}: {', '.join(unread)}")
    if (
        method.name == "fedot"
        and method.kept_layers == 2 * method.adapter_layers
        and config.align.layers.kind != "none"
    ):
        lines.append(
            f"align.layers.kind = {config.align.layers.kind} has no effect with method.kept_layers = "
            "2 * method.adapter_layers: there is no emulator to align"
        )
    return lines


def _of_the_server_rule(federated: FederatedConfig) -> list[str]:
    """Return lines about the aggregator, the server's optimiser and the clients' steps."""
    aggregator, server, lines = federated.aggregator, federated.server, []
    if not aggregator.facts.weighs:
        lines.append(
            f"federated.aggregator.kind = {aggregator.kind} ignores example counts, which a bad client could invent: "
            "federated.aggregation has no effect"
        )
    is_random = federated.sampling in ("md", "poisson") and aggregator.min_updates > 1
    if is_random and aggregator.min_updates >= federated.expected_clients:
        lines.append(
            f"federated.sampling = {federated.sampling} draws {federated.expected_clients:.3g} different clients on "
            f"average: a round with fewer than the {aggregator.min_updates} that federated.aggregator.kind = "
            f"{aggregator.kind} needs does not count"
        )
    if aggregator.kind in ("trimmed_mean", "krum", "multi_krum", "bulyan") and aggregator.num_byzantine == 0:
        lines.append(f"federated.aggregator.num_byzantine = 0: {aggregator.kind} withstands no bad client")
    if federated.client.base == "sgd" and not federated.client.is_own and federated.lr == FederatedConfig().lr:
        lines.append(f"federated.lr = {federated.lr:g} is AdamW's: SGD usually needs 10 to 100 times as much")
    of_server = SERVER_OPTIMISERS.get(server.kind)
    for section, part, default, read in (
        ("aggregator", aggregator, AggregatorConfig(), aggregator.facts.reads),
        ("server", server, ServerOptimiserConfig(), of_server),
        ("client", federated.client, ClientConfig(), federated.client.reads),
    ):
        changed = [name for name, value in vars(part).items() if value != getattr(default, name) and name != "kind"]
        lines += [
            f"federated.{section}.{name} has no effect with federated.{section}.kind = {part.kind}"
            for name in changed
            if read is not None and name not in read  # None: a part of others
        ]
    return lines


def _of_early_stop(config: Config) -> list[str]:
    stop, rounds, interval = config.stop, config.federated.rounds, config.evaluation.interval
    num_evaluations = -(-rounds // interval)
    if stop.patience is not None and stop.patience > num_evaluations - 2:  # the first sets the mark, the last ends all
        return [f"stop.patience = {stop.patience} has no effect: the run evaluates {num_evaluations} times"]
    if not stop.is_active and stop != StopConfig():
        return ["stop.metric and stop.min_delta have no effect without stop.patience or stop.target"]
    return []


def _of_adversary(federated: FederatedConfig) -> list[str]:
    adversary, number = federated.adversary, round(federated.adversary.fraction * federated.num_clients)
    if adversary.kind == "none":
        return [] if adversary == AdversaryConfig() else ["federated.adversary has no effect with its kind = none"]
    if not number:
        found = f"federated.adversary.fraction = {adversary.fraction:g}"
        return [f"{found} of {federated.num_clients} clients is nobody: there is no adversary"]
    if adversary.scale is not None and adversary.kind not in DEFAULT_SCALES:
        return [f"federated.adversary.scale has no effect with its kind = {adversary.kind}"]
    return []


def _idle_privacy(config: Config) -> list[str]:
    """Return lines for settings of DP and secure aggregation that nothing reads."""
    privacy, defaults, lines = config.privacy, PrivacyConfig(), []
    adaptive, secure = ["clip_quantile", "clip_lr", "clip_count_noise"], ["secure_threshold", "secure_bound"]
    of_dp = [name for name in vars(defaults) if name not in ("kind", "strict", "secure_aggregation", *secure)]
    unread = [
        (not privacy.is_on, "privacy.kind = none", of_dp),
        (not privacy.secure_aggregation, "privacy.secure_aggregation = false", secure),
        (privacy.is_of_clients and privacy.secure_aggregation, "privacy.kind = client", ["secure_bound"]),
        (privacy.is_on and privacy.clipping == "fixed", "privacy.clipping = fixed", adaptive),
        (privacy.is_on and config.counts_neurons_on == "public", "align.neurons.counts = public", ["counts_share"]),
    ]
    for is_idle, reason, names in unread:
        changed = [f"privacy.{name}" for name in names if getattr(privacy, name) != getattr(defaults, name)]
        if is_idle and changed:
            lines.append(f"no effect with {reason}: {', '.join(changed)}")
    changed = [] if config.federated.max_grad_norm == FederatedConfig().max_grad_norm else ["federated.max_grad_norm"]
    changed += [] if config.pool.clients_per_batch == PoolConfig().clients_per_batch else ["pool.clients_per_batch"]
    if privacy.is_of_examples and changed:
        why = "gradients are clipped one by one, and what is computed together are examples"
        lines.append(f"no effect with privacy.kind = example: {', '.join(changed)}; {why}")
    return lines


def _of_tracking(tracking: TrackingConfig) -> list[str]:
    lines = []
    for key, service, default in (("wandb", "wandb", "offline"), ("mlflow_uri", "mlflow", None)):
        if service not in tracking.to and getattr(tracking, key) not in (default, "disabled"):
            lines.append(f"tracking.{key} has no effect: tracking.to does not name {service}")
    if tracking.wandb == "disabled" and "wandb" in tracking.to and len(tracking.to) > 1:
        lines.append("tracking.to: no wandb, as tracking.wandb = disabled")
    return lines
