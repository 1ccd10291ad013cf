"""How many clients a second one place trains, against how many of them train together; see README.md.

    python -m experiments.benchmarks.simulation.together steps [--models minilm bert-base] [--tokens 32 64 128]
    python -m experiments.benchmarks.simulation.together workload PEERS --workload typical
    python -m experiments.benchmarks.simulation.together partners PEERS
    python -m experiments.benchmarks.simulation.together show

`steps`: LoRA client steps a second, model x tokens x clients together, on a CPU or, with `--device cuda`, on a GPU.
`workload`: clients a second and memory of one place on a workload of the other programs. `partners`: what part of the
batches of `typical` meets another of its shape. `show`: both as tables and figures in Markdown, from what was measured
on this machine and others (`experiments/results/simulation/together.json`).
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULT = Path("experiments/results/simulation/together.json")
TURNS = RESULT.with_name("together_turns.json")
TOGETHER = (1, 2, 4, 8, 16, 32)
BATCH_SIZE = 8
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "minilm": (
        "bert", {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 384},
    ),
    "bert-base": ("bert", {"intermediate_size": 768}),
    "vit-small": (
        "vit",
        {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 384,
         "image_size": 96},
    ),
    "qwen2-0.5b": (
        "qwen2",
        {
            "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
            "intermediate_size": 1216, "pad_token_id": 0, "vocab_size": 30_000,
        },
    ),
}  # fmt: skip
"""Name -> family and the fields of a sub-FM with a quarter of the FFN's neurons; random weights take as long."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    steps = commands.add_parser("steps")
    steps.add_argument("--models", nargs="+", choices=MODELS, default=["minilm", "bert-base"])
    steps.add_argument("--tokens", nargs="+", type=int, default=[32, 64, 128])
    steps.add_argument("--together", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    steps.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    steps.add_argument("--precision", choices=["32-true", "bf16-mixed"], default="32-true")
    steps.add_argument("--repeats", type=int, default=5)
    for name in ("workload", "memory"):  # the second for a process of its own
        workload = commands.add_parser(name)
        workload.add_argument("peers", type=Path)
        workload.add_argument("--workload", choices=["minilm", "overhead", "typical"], required=True)
        workload.add_argument("--together", nargs="+", type=int, default=list(TOGETHER))
        workload.add_argument("--repeats", type=int, default=3)
    partners = commands.add_parser("partners")
    partners.add_argument("peers", type=Path)
    commands.add_parser("show")
    options = parser.parse_args()
    if "peers" in options:
        sys.path.insert(0, str(options.peers))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    run = {"steps": measure_steps, "workload": measure_workload, "memory": print_memory, "partners": print_partners}
    run.get(options.command, show)(options)


def measure_steps(options: argparse.Namespace) -> None:
    """Measure client steps a second in turns over the numbers of clients, and keep the best of the repeats' medians."""
    for model in options.models:
        for tokens in options.tokens if MODELS[model][0] != "vit" else [0]:
            packages = {k: step_package(model, tokens, k, options.device, options.precision) for k in options.together}
            rates = rates_of(packages, options.repeats)
            for together, rate in rates.items():
                key = f"{device_name(options.device)}, {options.precision}"
                keep("steps", key, f"{model} x {tokens or 'image'} x {together}", round(rate, 2))
                print(f"{key}: {model}, {tokens or 'image'}, {together} together: {rate:.1f} client steps a second")


def measure_workload(options: argparse.Namespace) -> None:
    """Measure clients a second of one place, in this process, and its resident memory."""
    from experiments.benchmarks.simulation.workload import make_package

    packages = {k: (make_package(options.workload, together=k), 1.0) for k in options.together}
    clients = {"minilm": 32, "overhead": 100, "typical": 64}[options.workload]
    for together, rate in rates_of(packages, options.repeats, clients).items():
        rss = peak_of_a_new_process(options.peers, options.workload, together)
        keep("workload", f"{device_name('cpu')}, {options.workload}", str(together), [round(rate, 2), rss])
        print(f"{options.workload}, {together} together: {rate:.1f} clients a second, {rss} MB")


def rates_of(packages: dict[int, tuple[Any, float]], repeats: int, num_clients: int | None = None) -> dict[int, float]:
    """Return the median clients (or steps) a second for each number together, in turns."""
    import torch

    from fedpft.federated.client import LocalClient
    from fedpft.federated.grouping import groups
    from fedpft.federated.messages import RoundPlan
    from fedpft.models.lora import get_adapter
    from fedpft.models.weights import unpack_model

    torch.set_num_threads(1)
    seconds: dict[int, list[float]] = {k: [] for k in packages}
    places = {k: LocalClient(package) for k, (package, _) in packages.items()}
    for repeat in range(repeats + 1):  # the first one warms up
        for together, (package, steps) in packages.items():
            adapter = get_adapter(unpack_model(package.proxy))
            plan = RoundPlan(round_index=1, lr=1e-4, adapter=adapter, count_activations=False)
            clients = range(num_clients or package.partition.num_clients)
            start = time.perf_counter()
            for group in groups(clients, package.settings, 1):
                places[together].fit_together(plan, group)
            if repeat:
                seconds[together].append((time.perf_counter() - start) / (len(clients) * steps))
    return {k: 1 / statistics.median(values) for k, values in seconds.items() if values}


def peak_of_a_new_process(peers: Path, workload: str, together: int) -> int:
    """Return the peak resident MB of a process with one place that trains one group."""
    command = [sys.executable, "-m", __spec__.name, "memory", str(peers), "--workload", workload]
    return int(subprocess.run([*command, "--together", str(together)], check=True, capture_output=True).stdout)


def print_memory(options: argparse.Namespace) -> None:
    """Train one group and print this process' peak."""
    from experiments.benchmarks.simulation.workload import make_package
    from fedpft.federated.memory import process_peak_memory_bytes

    (together,) = options.together
    rates_of({together: (make_package(options.workload, together=together), 1.0)}, 0, together)
    print(round(process_peak_memory_bytes() / 2**20))


def step_package(model: str, tokens: int, together: int, device: str, precision: str) -> tuple[Any, float]:
    """Return a package of as many clients as train together, and how many steps each makes."""
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSequenceClassification

    from fedpft.config import LoraConfig
    from fedpft.data.partition import Partition
    from fedpft.federated.messages import LocalSettings
    from fedpft.federated.package import ClientPackage
    from fedpft.models.lora import attach_lora
    from fedpft.models.weights import pack_model

    family, fields = MODELS[model]
    steps, rng = 2, np.random.default_rng(0)
    rows = together * steps * BATCH_SIZE
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, num_labels=2, **fields)
    auto = AutoModelForImageClassification if family == "vit" else AutoModelForSequenceClassification
    inputs: Any = (
        {"row": list(range(rows))} if family == "vit" else {"row": list(rng.integers(5, 20000, (rows, tokens)))}
    )
    package = ClientPackage(
        proxy=pack_model(attach_lora(auto.from_config(config), LoraConfig(), seed=0)),
        watched_layers=(),
        train=Dataset.from_dict({**inputs, "label": rng.integers(0, 2, rows).tolist()}),
        partition=Partition.of_sizes(np.arange(rows), np.full(together, steps * BATCH_SIZE)),
        collate=FullCollator(fields.get("image_size", 0)),
        settings=LocalSettings(
            seed=0, num_epochs=1, batch_size=BATCH_SIZE, head_lr_ratio=1.0, weight_decay=0.01, max_grad_norm=1.0,
            num_threads=1, precision=precision, accelerator=device, clients_per_batch=together,
        ),
    )  # fmt: skip
    return package, float(steps)


class FullCollator:
    """Rows of tokens, all of one length, or numbers of images, which are random."""

    def __init__(self, image_size: int) -> None:
        self._image_size = image_size

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        labels = torch.tensor([row["label"] for row in rows])
        if self._image_size:
            return {"pixel_values": torch.rand(len(rows), 3, self._image_size, self._image_size), "labels": labels}
        ids = torch.tensor([row["row"] for row in rows])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def print_partners(options: argparse.Namespace) -> None:
    """Print what part of the batches meets others, as clients come and with each one's texts sorted by length."""
    import numpy as np

    from experiments.benchmarks.simulation.workload import TYPICAL, typical_lengths
    from fedpft.federated.sampling import longest_first

    batches, lengths = typical_lengths()
    rng = np.random.default_rng(9)
    for is_sorted in (False, True):
        for together in (2, 4, 8, 16, 32):
            met = total = passes = 0
            for _ in range(20):
                cohort = rng.choice(len(batches), TYPICAL["sampled"], replace=False)
                order = longest_first(cohort.tolist(), batches)
                for start in range(0, len(order), together):
                    padded = [
                        padded_lengths(rng.permutation(lengths[c]), is_sorted) for c in order[start : start + together]
                    ]
                    for step in range(max(map(len, padded))):
                        shapes = Counter(client[step] for client in padded if step < len(client))
                        total += sum(shapes.values())
                        met += sum(count for count in shapes.values() if count > 1)
                        passes += len(shapes)
            how = "sorted by length within a client" if is_sorted else "in random order (the default)"
            print(f"{together} together, {how}: {met / total:.0%} meet another, {total / passes:.2f} in a pass")


def padded_lengths(lengths: Any, is_sorted: bool) -> Sequence[int]:
    """Return the padded length of each batch of a client."""
    ordered = sorted(lengths) if is_sorted else lengths
    return [int(max(ordered[start : start + BATCH_SIZE])) for start in range(0, len(ordered), BATCH_SIZE)]


def show(options: argparse.Namespace) -> None:
    """Print tables and figures in Markdown."""
    show_turns()
    results = json.loads(RESULT.read_text())
    steps: dict[str, dict[str, float]] = results.get("steps", {})
    cells = [row.split(" x ") for row in dict.fromkeys(row for column in steps.values() for row in column)]
    columns = sorted({int(together) for *_, together in cells})
    print("| client steps a second | model x tokens | " + " | ".join(f"{k} together" for k in columns) + " |")
    print("| --- | --- |" + " --- |" * len(columns))
    for device in steps if any("NVIDIA" in key for key in steps) else [*steps, "a GPU, bf16-mixed"]:
        for what in dict.fromkeys(f"{model} x {tokens}" for model, tokens, _ in cells):
            rates = [str(steps.get(device, {}).get(f"{what} x {k}", "")) for k in columns]
            print(f"| {device} | {what} | " + " | ".join(rates) + " |")
    for name, measured in results.get("workload", {}).items():
        rates = [rate for rate, _ in measured.values()]
        print(f"\n| {name} | clients/s | MB |\n| --- | --- | --- |")
        print(
            "\n".join(f"| {together} together | {rate} | {rss or ''} |" for together, (rate, rss) in measured.items())
        )
        print(f'\n```mermaid\nxychart-beta\n    title "{name}"\n    x-axis "clients together" [{", ".join(measured)}]')
        print(f'    y-axis "clients a second" 0 --> {max(rates) * 1.1:.0f}\n    line {rates}\n```')


def show_turns() -> None:
    """Print each program's rounds over raw2's of the same turns: median (quartiles) of seconds, median of CPU time."""
    programs = json.loads(TURNS.read_text())
    print("\n| in turns with raw2 | processor | clients together | x raw2's wall | x raw2's CPU |")
    print("| --- | --- | --- | --- | --- |")
    for program in programs:
        (raw2,) = (p for p in programs if p["group"] == program["group"] and p["program"] == "raw2")
        if program is not raw2:
            wall, cpu = (ratios(program[kind], raw2[kind]) for kind in ("round_s", "round_cpu_s"))
            name = program["program"].removeprefix("fedpft, ") + (f" ({program['note']})" if "note" in program else "")
            low, middle, high = statistics.quantiles(wall, n=4)
            row = [program["workload"], program["processor"], name, f"{middle:.2f} ({low:.2f}-{high:.2f})"]
            print(f"| {' | '.join(row)} | {statistics.median(cpu):.2f} |")


def ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    return [value / other for value, other in zip(values, others, strict=True)]


def keep(kind: str, key: str, row: str, value: Any) -> None:
    """Write a number beside those of other machines."""
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    results.setdefault(kind, {}).setdefault(key, {})[row] = value
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(results, indent=1) + "\n")


def device_name(device: str) -> str:
    """Return what the processor or GPU is, as far as it says."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    has_bf16 = any("avx512_bf16" in line or "amx_bf16" in line for line in lines)
    return f"{', '.join(sorted(names)) or platform.processor()}{', with bf16 units' if has_bf16 else ''}, 1 thread"


if __name__ == "__main__":
    main()
