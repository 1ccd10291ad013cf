"""Does a long run hold its memory? 300 rounds on a tiny ViT, once with 2 Ray actors and once without Ray.

    python experiments/benchmarks/soak/soak.py [NUM_ROUNDS]

Evaluates and re-aligns neurons every 10 rounds. Writes experiments/results/soak.json: for each figure of the rounds'
`memory/*` its first and last value after the warm-up, and its least-squares slope over all rounds after the warm-up and
over the second half of the run, in bytes per round.
"""

import json
import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

WARM_UP_ROUNDS = 30
RESULT = Path(__file__).parents[2] / "results" / "soak.json"
POOLS = {"2 ray actors": ["pool.kind=ray", "pool.actors=2"], "sequential": ["pool.kind=sequential"]}
SETTINGS = [
    "name=soak",
    "fm.path=scratch://vit",
    "fm.config={hidden_size: 16, num_hidden_layers: 3, num_attention_heads: 2, intermediate_size: 24, image_size: 8, "
    "patch_size: 4}",
    "task={name: digits, max_train_examples: 200, max_eval_examples: 40}",
    "public={name: digits_public, max_examples: 64}",
    "lora={rank: 2, lora_alpha: 4}",
    "align.layers={num_steps: 3, batch_size: 4}",
    "align.neurons={interval: 10, num_steps: 3, batch_size: 4}",
    "federated={num_clients: 20, clients_per_round: 4, lr: 1e-3}",
    "evaluation.interval=10",
    "pool={accelerator: cpu}",
    "server={accelerator: cpu, num_threads: 1}",
    "tracking.wandb=disabled",
]


def soak(pool: str, num_rounds: int) -> dict[str, Any]:
    """Run once; return what its memory did."""
    from fedpft.config import load_config
    from fedpft.run.pipeline import run

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(None, [*SETTINGS, *POOLS[pool], f"federated.rounds={num_rounds}", f"output_dir={folder}"])
        run(config)
        records = [json.loads(line) for line in (Path(folder) / "rounds.jsonl").read_text().splitlines()]
    names = [name for name in records[-1] if name.startswith("memory/")]
    return {"seconds": time.perf_counter() - start} | {
        name: summary([record[name] for record in records[WARM_UP_ROUNDS:]]) for name in names
    }


def summary(values: list[int]) -> dict[str, float]:
    """Return the ends of a series and its slopes in bytes per round."""
    from fedpft.federated.memory import slope

    second_half = values[len(values) // 2 :]
    return {"first": values[0], "last": values[-1], "slope": slope(values), "slope_second_half": slope(second_half)}


def main() -> None:
    num_rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    found: dict[str, Any] = {"rounds": num_rounds, "warm_up_rounds": WARM_UP_ROUNDS}
    for pool in POOLS:  # each in a process of its own: the second should not inherit the first one's memory
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            found[pool] = process.submit(soak, pool, num_rounds).result()
    RESULT.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
