"""Folders as many runs leave them, with numbers that look like learning: to look at pages, and to measure them."""

import argparse
import json
import math
import os
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from fedpft.config import Config, dump_config, load_config

NUM_CLIENTS, COHORT = 20, 8
SETTINGS = [
    *("federated.num_clients=20", "task.name=qnli", "fm.path=google-bert/bert-base-uncased"),
    *("tracking.wandb=disabled", "evaluation.interval=1"),
]


def records(num_rounds: int, best: float, gap: float, seed: int, interval: int = 1) -> Iterator[dict[str, Any]]:
    """Yield the lines of a run whose metric rises towards `best`."""
    rng = random.Random(seed)
    for index in range(1, num_rounds + 1):
        clients = sorted(rng.sample(range(NUM_CLIENTS), COHORT))
        share = 1 - math.exp(-4 * index / num_rounds)
        record: dict[str, Any] = {
            "round": index, "clients": clients, "train_loss": 1.4 - share + rng.gauss(0, 0.03),
            "client_losses": [round(1.4 - share + rng.gauss(0, 0.15), 4) for _ in clients], "lr": 4e-3,
            "comm/bytes_up": 605_200 * COHORT, "comm/bytes_down": 605_200 * COHORT, "proxy_version": 0,
            "clients/flops": 4.3e9 * COHORT, "clients/flops_mean": 4.3e9, "clients/memory_bytes_max": 205_468_000,
            "memory/driver_rss_bytes": 722_149_376, "time/fit_seconds": 4.1, "seconds": 4.5 + rng.random(),
        }  # fmt: skip
        if rng.random() < 0.02:
            record |= {"dropped": clients[-1:], "failures": [f"client {clients[-1]}: out of memory (3 attempts)"]}
        if index % interval == 0 or index == num_rounds:
            fm = min(0.99, 0.5 + (best - 0.5) * share + rng.gauss(0, 0.006))
            scores = {"fm": fm, "sub_fm": fm - gap}
            record |= {**scores, "metric": "accuracy", "metric_goal": "max", "leakage_gap": gap}
            record["metrics"] = {key: {"accuracy": value} for key, value in scores.items()}
        yield record


def result_of(config: Config, lines: list[dict[str, Any]], best: float, gap: float) -> dict[str, Any]:
    """Return a finished run's result.json."""
    rng = random.Random(config.seed)
    last, ratio = lines[-1], config.method.retained_ratio
    fm, sub_fm, full = last["fm"], last["sub_fm"], 22_700_000
    layers = {name: [round(0.5 + 0.4 * ratio + rng.gauss(0, 0.05), 3) for _ in range(6)]
              for name in ("hidden_error", "gradient_cosine", "gradient_norm_ratio")}  # fmt: skip
    layers["total"] = {name: values[-1] for name, values in layers.items()}  # type: ignore[assignment]
    values = [min(1.0, max(0.0, rng.gauss(fm - 0.02, 0.04))) for _ in range(NUM_CLIENTS)]
    counts = {f"num_{kind}_{model}": int(full * share) for kind in ("params", "transformer_params")
              for model, share in (("fm", 1), ("sub_fm", 0.4 + ratio / 2))}  # fmt: skip
    return counts | {
        "name": config.name, "seed": config.seed, "method": config.method.name, "metric": "accuracy",
        "metric_goal": "max", "untuned_fm": 0.5, "fm": fm, "sub_fm": sub_fm, "rounds": len(lines),
        "metrics": {"untuned_fm": {"accuracy": 0.5}, "fm": {"accuracy": fm}, "sub_fm": {"accuracy": sub_fm}},
        "num_eval_examples": 872, "num_params_adapter": 150_000, "kind": "classification", "modality": "text",
        "bytes_up_total": sum(line["comm/bytes_up"] for line in lines), "bytes_up_per_client_round": 605_200,
        "bytes_down_total": sum(line["comm/bytes_down"] for line in lines), "bytes_down_per_client_round": 605_200,
        "client_flops_total": sum(line["clients/flops"] for line in lines), "client_flops_per_round": 4.3e9 * ratio,
        "client_memory_bytes": 205_468_000 * (0.5 + ratio), "align_seconds": 2.0, "rounds_seconds": 5.0 * len(lines),
        "construction": {"cached": False, "seconds": 9 + 10 * ratio, "key": None}, "wall_seconds": 5.4 * len(lines),
        "client_expected_accuracy": {"mean": fm - 0.02, "p10": sorted(values)[2], "min": min(values),
                                     "max": max(values), "clients": NUM_CLIENTS, "values": values},
        "fidelity": {"before": layers, "after": layers, "leakage_gap_before": gap / 2, "leakage_gap": gap,
                     "seconds": 3.0},
    }  # fmt: skip


def write_run(
    folder: Path, config: Config, *, done: int, best: float, gap: float, finished: bool, interval: int = 1
) -> None:
    """Write a run that has done so many of its rounds."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(replace(config, output_dir=str(folder))))
    rng = random.Random(config.seed)
    table = [[rng.randint(0, 40) for _ in range(2)] for _ in range(NUM_CLIENTS)]
    (folder / "partition.json").write_text(json.dumps({"label_names": ["no", "yes"], "label_histogram": table}))
    lines = list(records(config.federated.rounds, best, gap, config.seed, interval))[:done]
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        (folder / "result.json").write_text(json.dumps(result_of(config, lines, best, gap)))


def hold(folder: Path, host: str = "node07", what: str = "run") -> None:
    """Pretend that a process works on a run."""
    holder = {"what": what, "pid": os.getpid(), "host": host, "since": time.strftime("%Y-%m-%d %H:%M:%S+00:00")}
    (folder / ".lock.json").write_text(json.dumps(holder))


def gallery(root: Path) -> None:
    """Write runs of all states, a comparison of three groups and a sweep under ASHA: what pages are looked at with."""
    for name, ratio, best in (("half", 0.5, 0.82), ("quarter", 0.25, 0.78)):
        for seed in (1, 2, 3):
            settings = [
                *SETTINGS,
                f"method.retained_ratio={ratio}",
                f"seed={seed}",
                "federated.rounds=40",
                f"name={name}",
            ]
            config = load_config(None, settings)
            is_last = seed == 3 and name == "quarter"
            folder = root / f"{name}_seed-{seed}"
            write_run(
                folder, config, done=23 if is_last else 40, best=best + seed / 100, gap=0.03, finished=not is_last
            )
            if is_last:
                hold(folder)
    for seed in (1, 2):
        config = load_config(None, [*SETTINGS, "method.name=fedot", "federated.rounds=40", f"seed={seed}"])
        folder = root / f"fedot_seed-{seed}"
        write_run(folder, config, done=40 if seed == 1 else 31, best=0.76, gap=0.05, finished=seed == 1)
        if seed == 2:
            hold(folder)
    config = load_config(None, [*SETTINGS, "method.name=full", "federated.rounds=40", "seed=1"])
    write_run(root / "full </script><b>\"quoted\" & 'odd'", config, done=12, best=0.86, gap=0.0, finished=False)
    config = load_config(None, [*SETTINGS, "task.name=sst2", "federated.rounds=200", "seed=1", "method.name=fedpft"])
    write_run(root / "lost_on_node03", config, done=77, best=0.9, gap=0.02, finished=False)
    hold(root / "lost_on_node03", host="node03")
    os.utime(root / "lost_on_node03" / ".lock.json", (time.time() - 3600,) * 2)
    for path in root.iterdir():
        if path.name.startswith("half"):
            os.utime(path / "rounds.jsonl", (time.time() - 86400,) * 2)
    sweep_under_asha(root / "compression")


def sweep_under_asha(folder: Path) -> None:
    """Write a sweep whose scheduler has stopped some trials, while others go on."""
    ratios, seeds = (0.125, 0.25, 0.5, 0.75), (1, 2, 3)
    space = {"method.retained_ratio": {"grid": [*ratios]}}
    settings = {"name": "compression", "base": "quickstart.yaml", "space": space,
                "seeds": [*seeds, 4], "search": "grid", "scheduler": "asha", "grace_rounds": 3, "reduction_factor": 3,
                "metric": "fm", "goal": None}  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "sweep.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    for number, (ratio, seed) in enumerate((ratio, seed) for ratio in ratios for seed in seeds):
        words = [
            *SETTINGS,
            f"method.retained_ratio={ratio}",
            f"seed={seed}",
            "federated.rounds=27",
            "method.scorer=random",
        ]
        done = (3, 9, 27, 14)[number % 4]
        trial = folder / "trials" / f"retained_ratio-{ratio}_seed-{seed}"
        write_run(trial, load_config(None, words), done=done, best=0.7 + ratio / 5, gap=0.02, finished=done == 27)
        if done == 14:
            hold(trial)
    hold(folder, what="sweep")


def many(root: Path, num_runs: int, num_rounds: int, seeds: int = 5) -> None:
    """Write many long runs: 9 of 10 are finished, the last ones are going on."""
    config = load_config(None, [*SETTINGS, f"federated.rounds={num_rounds}"])
    texts: dict[int, list[dict[str, Any]]] = {}
    for number in range(num_runs):
        point, seed = divmod(number, seeds)
        one = replace(config, seed=seed, lora=replace(config.lora, lora_alpha=float(point + 1)), name=f"point-{point}")
        folder = root / f"point-{point:03}_seed-{seed}"
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(dump_config(replace(one, output_dir=str(folder))))
        if seed not in texts:
            texts[seed] = list(records(num_rounds, 0.8, 0.03, seed))
            lines = [json.dumps(line) + "\n" for line in texts[seed]]
            (root / f".lines-{seed}").write_text("".join(lines))
        finished = number < 0.9 * num_runs
        content = (root / f".lines-{seed}").read_bytes()
        if not finished:
            content = b"".join(content.splitlines(keepends=True)[: num_rounds // 2])
        (folder / "rounds.jsonl").write_bytes(content)
        if finished:
            (folder / "result.json").write_text(json.dumps(result_of(one, texts[seed], 0.8, 0.03)))
        elif number % 10 == 0:
            hold(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--runs", type=int, default=0, help="so many long runs; 0: a gallery of all states")
    parser.add_argument("--rounds", type=int, default=1000)
    given = parser.parse_args()
    if given.runs:
        many(given.root, given.runs, given.rounds)
    else:
        gallery(given.root)
