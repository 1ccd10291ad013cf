"""Does any value of any setting end in a traceback?

    python -m experiments.benchmarks.robustness.config_keys [NUM_CASES] [SEED]

Each case sets one to four keys of a run, by the command line or in its file, to values of their type, to other words or
to anything; and now and then a key that there is not, a sweep over them, or a suite of them. Left out are the keys that
say where the run's folders are, and those that would start Ray, W&B or a download, or ask another machine.
"""

import json
import random
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from experiments.benchmarks.robustness.cases import command, play_all, use, write_inputs
from fedpft.config import Config
from fedpft.config.adversary import DEFAULT_SCALES, OMNISCIENT, ON_DATA
from fedpft.config.algorithms import AGGREGATORS, SERVER_OPTIMISERS
from fedpft.config.client import CLIENT_STEPS
from fedpft.config.flat import flat_settings
from fedpft.config.loading import config_keys

FIXED = {
    *("output_dir", "fm.path", "task.path", "public.path", "cache.dir", "tracking.wandb", "pool.kind", "pool.address"),
    *("public.name", "task.name", "tracking.notify", "tracking.mlflow_uri"),
}
KEYS = [key for key in config_keys() if key not in FIXED]
DEFAULTS = flat_settings(asdict(Config()))
TEXTS = [
    *("", " ", "on", "off", "yes", "No", "null", "~", "NULL", "true", "0x1F", "0o17", "017", "1_000", "1e5", ".5"),
    *("123e456", "20241128_0930", "2024-11-28", "2024-11-28 09:30", "12:30:45", "=", "<<", "!!int 3", "&a", "*a"),
    *("größe", "日本", "a b", "a\\tb", "a/b", "..", ".", "a: b", "a#b", "a #b", "[red]x[/red]", "${name}", "- a"),
    *("${oc.env:HOME}", "$", "a\nb", "'", '"', "\\\\", "{", "]", "%s", "{0}", "x" * 300, "-1", "+1", ".nan", ".inf"),
    *("text", "label", "auto"),
]
NUMBERS = [0, 1, -1, 2, 3, 7, 40, 100, 0.0, 0.5, 1.0, 1.5, -0.5, 1e-12, 1e-300, 1e30, 2**63, 10**30, "nan", "inf"]
OTHERS: list[Any] = [None, True, False, [], [1], ["a"], [None], [[1]], {}, {"a": 1}, {"rounds": 2}]
WORDS = {
    "method.name": ["full", "fedpft", "fedot", "x", "json:loads", "a:b", ":", "fedpft.methods.full_model:FullModel"],
    "method.plug_in": ["copy", "distil", "distill"],
    "align.layers.kind": ["none", "distill", "closed_form"],
    "align.neurons.kind": ["none", "distill", "closed_form"],
    "federated.sampling": ["md", "full", "poisson", "power_of_choice"],
    "federated.aggregator.kind": [*AGGREGATORS, "x", "json:loads", "fedpft.federated.aggregators.robust:median"],
    "federated.server.kind": [*SERVER_OPTIMISERS, "x", "json:loads"],
    "federated.client.kind": [*CLIENT_STEPS, "x", "json:loads"],
    "federated.client.optimiser": ["sgd", "adamw"],
    "federated.client.schedule": ["linear", "cosine"],
    "federated.lora_aggregation": ["ffa", "svd", "fedsvd", "alternate"],
    "federated.adversary.kind": [*DEFAULT_SCALES, *ON_DATA, *OMNISCIENT],
    "federated.adversary.trigger": ["w1", "w1 w2", "", "nowhere"],
    "stop.metric": ["accuracy", "mae", "fm", "loss", "x", "other/accuracy"],
    "federated.partition.kind": ["iid", "dirichlet", "shards", "natural", "x"],
    "task.kind": ["classification", "regression", "causal_lm"],
    "task.text_columns": [["text"], ["text", "text"], ["label"], ["text", "label"], []],
    "task.label_column": ["label", "text", "x", ""],
    "lora.target_modules": [["query"], ["LayerNorm"], ["dense", "query"], ["classifier"], ["embeddings"], [""], ["*"]],
    "task.metrics": [["accuracy"], ["f1"], ["mae"], ["x"], ["accuracy", "accuracy"]],
}
KINDS = [("bert", "classification"), ("bert", "classification"), ("llama", "causal_lm"), ("vit", "classification")]


def drawn_value(key: str, draw: random.Random) -> Any:
    """Return a value for a key: likely or not."""
    default = json.loads(DEFAULTS[key]) if key in DEFAULTS else None
    chance = draw.random()
    if key in WORDS and chance < 0.6:
        return draw.choice(WORDS[key])
    if chance < 0.75:
        if isinstance(default, bool):
            return not default
        if isinstance(default, int | float) and chance < 0.5:
            return type(default)(default * draw.choice([0.5, 1, 2]))
        return draw.choice(TEXTS if isinstance(default, str) else NUMBERS)
    return draw.choice([*TEXTS, *NUMBERS, *OTHERS])


def as_override(key: str, value: Any, draw: random.Random) -> str:
    """Return `key=value` with the text as somebody types it, or in quotes."""
    plain = isinstance(value, str) and draw.random() < 0.7
    return f"{key}={value if plain else json.dumps(value, ensure_ascii=False)}"


def drawn_key(draw: random.Random) -> str:
    """Return a key of a run, seldom one that is misspelt, a section, or none."""
    key = draw.choice(draw.choice([KEYS, [*WORDS]]))
    if draw.random() < 0.95:
        return key
    return draw.choice([key[:-1], key.upper(), f"{key}.x", key.rpartition(".")[0] or key, "", ".", f"{key}[0]", "a b"])


def many_runs(folder: Path, settings: list[str], chosen: dict[str, Any], draw: random.Random) -> None:
    """Try the values as a sweep's space, or as a suite's cells."""
    (folder / "base.yaml").write_text("{}\n", encoding="utf-8")
    run = dict(item.split("=", 1) for item in settings if not item.startswith("output_dir"))
    space = {key: draw.choice([{"grid": [value]}, {"choice": [value, value]}, {"uniform": [0, value]}, value])
             for key, value in chosen.items()}  # fmt: skip
    rows = [{"label": str(number), "set": {key: value}} for number, (key, value) in enumerate(chosen.items())]
    kind = draw.choice(["sweep", "suite"])
    own = {"space": space} if kind == "sweep" else {"rows": rows, "columns": [{"label": "a", "set": {}}]}
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in own.items()]
    lines += ["base: base.yaml", f"output_dir: {folder / 'many'}", "run:"]
    lines += [f"  {key}: {value}" for key, value in run.items()]
    (folder / "many.yaml").write_text("\n".join(lines), encoding="utf-8")
    command(kind, folder / "many.yaml")


def attempt(folder: Path, draw: random.Random) -> tuple[str, Callable[[], None]]:
    """Write a case; return it in words, and what plays it."""
    family, kind = draw.choice(KINDS)
    settings = write_inputs(folder, family, kind)
    keys = [drawn_key(draw) for _ in range(draw.choice([1, 1, 2, 3, 4]))]
    chosen = {key: drawn_value(key, draw) for key in keys}
    if draw.random() < 0.15:
        return f"{family} many {chosen}", partial(many_runs, folder, settings, chosen, draw)
    if draw.random() < 0.3:
        play = partial(use, folder, settings, draw, json.dumps(chosen, ensure_ascii=False))
        return f"{family} {kind} in the file {chosen}", play
    changed = [as_override(key, value, draw) for key, value in chosen.items()]
    return f"{family} {kind} {changed}", partial(use, folder, [*settings, *changed], draw)


if __name__ == "__main__":
    sys.exit(play_all("config_keys", attempt))
