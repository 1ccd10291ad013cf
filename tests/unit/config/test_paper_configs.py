"""The paper's grid: every word a part, every cell a config of its own, every published number a cell."""

import json
import random
import re
from dataclasses import asdict
from itertools import product
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fedpft.config import Config, dump_config, load_config

EXPERIMENTS = Path(__file__).parents[3] / "experiments"
BASE = EXPERIMENTS / "configs/paper/base.yaml"
SECTIONS = ("fm", "task", "method", "federated")
FILES = sorted(BASE.parent.glob("*/*.yaml"))
WORDS = {section: [file.stem for file in FILES if file.parent.name == section] for section in SECTIONS}
VALUES = OmegaConf.to_container(OmegaConf.load(EXPERIMENTS / "suites/paper_values.yaml"))


def load_cell(fm="bert", task="sst2", method="fedpft", federated="iid", seed=42) -> Config:
    words = {"fm": fm, "task": task, "method": method, "federated": federated, "seed": seed}
    return load_config(BASE, [f"{key}={word}" for key, word in words.items()])


def leaves(settings, prefix=""):
    """Return dotted keys and values of nested settings."""
    found = {}
    for key, value in settings.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def read_part(section, word):
    return leaves(OmegaConf.to_container(OmegaConf.load(BASE.parent / section / f"{word}.yaml")))


def settings_of(config):
    return leaves(json.loads(json.dumps(asdict(config))))


def test_the_folders_are_the_words_that_base_chooses():
    assert {file.parent.name for file in FILES} == set(SECTIONS)
    assert load_config(BASE) == load_cell()


@pytest.mark.parametrize(("section", "word"), [(section, word) for section in SECTIONS for word in WORDS[section]])
def test_every_part_takes_effect_as_it_stands(section, word):
    part, found = read_part(section, word), settings_of(load_cell(**{section: word}))
    assert {key: found[key] for key in part} == part


CELLS = list(product(*WORDS.values()))


@pytest.mark.parametrize("cell", random.Random(0).sample(CELLS, 8), ids="-".join)
def test_a_cell_is_named_after_its_words_has_the_keys_of_its_parts_and_comes_back_from_its_dump(cell, tmp_path):
    config = load_cell(*cell, seed=7)
    assert config.output_dir == f"outputs/paper/{'_'.join(cell)}_s7"
    parts: dict[str, object] = {}
    for section, word in zip(SECTIONS, cell, strict=True):
        parts |= read_part(section, word)
    assert {key: settings_of(config)[key] for key in parts} == parts
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config


def test_no_two_cells_have_the_same_name():
    names = ["_".join([*words, f"s{seed}"]) for words in CELLS for seed in (1, 42)]
    assert len(names) == len(set(names)) > 1000


def test_the_default_cell_has_the_authors_settings():
    config = load_cell()
    federated, align = config.federated, config.align
    assert (federated.num_clients, federated.clients_per_round, federated.local_epochs) == (100, 10, 1)
    assert (federated.lr, federated.batch_size, federated.lr_schedule) == (8e-4, 4, "linear")
    assert (config.lora.rank, config.lora.lora_alpha, config.lora.dropout) == (8, 48, 0.1)
    assert (config.method.retained_ratio, config.method.uncompressed_layers) == (768 / 3072, (0, -1))
    epoch = config.public.max_examples / align.layers.batch_size
    assert align.layers.num_steps == 5 * epoch
    assert align.neurons.num_steps == pytest.approx(0.02 * epoch, abs=0.5)
    assert (align.layers.lr, align.layers.product_weight, align.layers.warmup_ratio) == (6e-4, 0.01, 0.048)
    assert (align.neurons.interval, align.neurons.update_ratio) == (10, 0.5)


@pytest.mark.parametrize(
    ("method", "layers", "neurons"),
    [
        ("fedpft", "distill", "distill"),
        ("fedpft_n", "none", "none"),
        ("fedpft_b", "distill", "none"),
        ("fedpft_d", "none", "distill"),
    ],
)
@pytest.mark.parametrize("fm", ["roberta", "vit", "minilm"])
def test_an_ablation_differs_from_the_method_in_its_alignments_alone(fm, method, layers, neurons):
    differs = {"name", "output_dir", "align.layers.kind", "align.neurons.kind"}
    whole, ablated = (settings_of(load_cell(fm=fm, method=name)) for name in ("fedpft", method))
    assert {key for key in whole if whole[key] != ablated[key]} <= differs
    assert (ablated["align.layers.kind"], ablated["align.neurons.kind"]) == (layers, neurons)


def test_vision_follows_the_papers_alignment():
    config = load_cell(fm="vit", task="cifar10", federated="dirichlet_5")
    assert (config.align.layers.lr, config.align.neurons.lr, config.align.layers.product_weight) == (1e-3, 1e-3, 0)
    partition = config.federated.partition
    assert (partition.kind, partition.dirichlet_alpha, partition.concentration) == ("dirichlet", 5.0, "total")


def test_every_published_value_is_that_of_one_cell():
    rows = [row for table in VALUES.values() for row in table]
    assert {name: len(table) for name, table in VALUES.items()} == {
        "iid": 24, "non_iid": 36, "ablation": 6, "parameters": 8,
    }  # fmt: skip
    for row in rows:
        assert all(row[section] in WORDS[section] for section in SECTIONS), row
        assert 50 < row["accuracy"] < 100
        assert ("mismatched" in row) == (row["task"] == "mnli")
    assert len({tuple(row[section] for section in SECTIONS) for row in rows}) == len(rows)


def test_the_readme_shows_the_published_values():
    """Numbers of the README's tables, row by row, are those of the data, FM by FM and in the order of the columns."""
    text = (EXPERIMENTS / "README.md").read_text()
    lines = [line for line in text.splitlines() if re.match(r"\| `(bert|roberta)` \| (`f|\d)", line)]
    shown = [re.findall(r"\d+\.\d", line.split("` | ", 1)[1].replace("p0.", "p")) for line in lines]
    iid, non_iid, rest = VALUES["iid"], VALUES["non_iid"], [*VALUES["ablation"], *VALUES["parameters"]]
    groups = [
        *([numbers for row in iid[i : i + 4] for numbers in values(row)] for i in range(0, 24, 4)),
        *([numbers for row in non_iid[i : i + 6] for numbers in values(row)] for i in range(0, 36, 6)),
        *([numbers for row in rest if row["fm"] == fm for numbers in values(row)] for fm in ("bert", "roberta")),
    ]
    assert shown == groups


def values(row):
    return [f"{row[name]:.1f}" for name in ("accuracy", "mismatched") if name in row]
