"""Spoilt data: adversaries' own rows and nobody else's."""

from unittest.mock import Mock

import datasets
import numpy as np
import pytest
from PIL import Image

from fedpft.config import AdversaryConfig, ConfigError, load_config
from fedpft.data.partition import Partition
from fedpft.federated.adversary.clients import draw_adversaries
from fedpft.federated.adversary.poison import Trigger, check_adversary, poisoned, with_trigger
from tests.tiny import tiny_texts, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TEXTS, LABELS = tiny_texts(30)
TRAIN = datasets.Dataset.from_dict({"input_ids": TOKENIZER(TEXTS)["input_ids"], "label": LABELS})
SIZES = np.array([5, 9, 7, 6, 3])
WORD = TEXTS[0].split()[0]


def data(**changes):
    order = np.random.default_rng(0).permutation(30)
    known = {"train": TRAIN, "evaluation": TRAIN, "partition": Partition.of_sizes(order, SIZES), "tokenizer": TOKENIZER}
    return Mock(**(known | {"shared": None, "kind": "classification", "label_names": ("no", "yes")} | changes))


def spoilt(kind, *overrides, **changes):
    """Return data, adversaries, and each client's rows before and after."""
    adversary = f"federated.adversary={{kind: {kind}, fraction: 0.4, trigger: {WORD}}}"
    config = load_config(None, [adversary, "federated={num_clients: 5, clients_per_round: 5}", *overrides])
    found, adversaries = data(**changes), draw_adversaries(config, 5)
    train, partition = poisoned(config, found, adversaries)
    before = [found.train[found.partition.shard(client)] for client in range(5)]
    after = [train[partition.shard(client)] for client in range(5)]
    return found, adversaries.clients, before, after


def test_adversaries_train_on_flipped_labels_and_the_others_on_their_own_rows_in_their_order():
    found, clients, before, after = spoilt("label_flip")
    assert len(clients) == 2
    for client in range(5):
        assert after[client]["input_ids"] == before[client]["input_ids"]
        flipped = [1 - label for label in before[client]["label"]]
        assert after[client]["label"] == (flipped if client in clients else before[client]["label"])
    assert found.train is TRAIN, "what the server looks at stays"
    assert len(found.partition.order) == 30


def test_a_share_of_an_adversarys_examples_gets_the_trigger_and_the_target():
    _, clients, before, after = spoilt("backdoor", "federated.adversary={target_label: 1, poison_ratio: 0.5}")
    (token,) = TOKENIZER(WORD, add_special_tokens=False)["input_ids"]
    for client in range(5):
        pairs = list(zip(before[client]["input_ids"], after[client]["input_ids"], after[client]["label"], strict=True))
        changed = [(was, now, label) for was, now, label in pairs if was != now]
        assert bool(changed) <= (client in clients)
        for was, now, label in changed:
            assert (now[0], now[1], now[2:], label) == (was[0], token, was[2:], 1)
        if client in clients:
            marked = sum(now[1] == token and label == 1 for _, now, label in pairs)
            assert marked >= -(-len(pairs) // 2)
        else:
            assert after[client] == before[client]


def test_attack_success_is_measured_on_other_classes_with_the_trigger():
    found = with_trigger(AdversaryConfig(kind="backdoor", target_label=1, trigger=WORD), data())
    assert len(found) == LABELS.count(0)
    assert set(found["label"]) == {1}
    assert len({row[1] for row in found["input_ids"]}) == 1


def test_a_trigger_changes_no_length_and_keeps_the_first_and_last_token():
    trigger = Trigger(tokens=(7, 8, 9))
    for ids, expected in (([1, 4, 4, 4, 4, 2], [1, 7, 8, 9, 4, 2]), ([1, 4, 4, 2], [1, 7, 8, 2]), ([1, 2], [1, 2])):
        assert trigger.on({"input_ids": ids, "label": 0}) == {"input_ids": expected, "label": 0}


def test_images_get_a_white_square_in_the_lower_right_corner():
    images = [Image.new("RGB", (10, 8), (9, 9, 9)), Image.new("L", (8, 8), 5)]
    rows = datasets.Dataset.from_dict({"image": images, "label": [0, 0]}).cast_column("image", datasets.Image())
    config = AdversaryConfig(kind="backdoor", target_label=1, patch_ratio=0.25)
    first, second = with_trigger(config, data(evaluation=rows, tokenizer=None))
    pixels = np.asarray(first["image"])
    assert (pixels[6:, 8:] == 255).all()
    assert (pixels == 255).all(axis=2).sum() == 4
    assert (np.asarray(second["image"]) == 255).all(axis=2).sum() == 4
    assert (first["label"], second["label"]) == (1, 1)


@pytest.mark.parametrize(
    ("config", "changes", "expected"),
    [
        ({"kind": "label_flip"}, {"kind": "causal_lm"}, "kind: found 'label_flip', allowed: an attack on updates"),
        ({"kind": "backdoor", "target_label": 2}, {}, "target_label: found 2, allowed: 0 to 1, the task's labels"),
    ],
)
def test_an_attack_that_does_not_suit_the_data_is_one_line(config, changes, expected):
    with pytest.raises(ConfigError, match=expected):
        check_adversary(AdversaryConfig(**config), data(**changes))
    check_adversary(AdversaryConfig(kind="alie"), data(kind="regression"))
