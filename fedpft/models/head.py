"""The task head of an FM: which modules it is, and whose labels a stored one knows."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from fedpft.models.origin import origin_of
from fedpft.seeding import derive_seed, isolated_torch_rng

_NO_NAME = re.compile(r"label_\d+|\d+", re.IGNORECASE)
"""How transformers, and tasks whose labels are numbers, call a label that has no name."""

_SHOWN_NAMES = 8


def head_modules(model: PreTrainedModel) -> list[str]:
    """Return the names of the task head's modules: those outside the backbone that have parameters, and new ones in it.

    A language model's head is the FM's own, often its embeddings once more, and no part of the adapter. A pooler that
    the FM came without is drawn at random, so that it must be tuned and travel with the rest.
    """
    frozen, backbone = model.get_output_embeddings(), model.base_model_prefix
    outside = [
        name
        for name, module in model.named_children()
        if name != backbone and module is not frozen and next(module.parameters(), None) is not None
    ]
    return outside + [f"{backbone}.{name}" for name in origin_of(model).new_modules]


def output_layer(model: PreTrainedModel) -> tuple[str, nn.Linear]:
    """Return name and module of a classifier's last linear layer, (num_labels, H): one row a label."""
    names = [name for name, _ in model.named_children() if name != model.base_model_prefix]
    found = [
        (f"{name}.{inner}".rstrip("."), module)
        for name in names
        for inner, module in getattr(model, name).named_modules()
        if isinstance(module, nn.Linear)
    ]
    return found[-1]


def fit_head(
    model: PreTrainedModel, stored: PretrainedConfig, names: Sequence[str], drawn: Mapping[str, bool], seed: int
) -> tuple[list[str], list[str]]:
    """Make a classifier's stored output layer one for the task's labels, in place.

    Labels of the same names (case ignored) are put into the task's order. A layer for labels of other names is drawn
    anew. Where one side has numbers only, output i stays label i.

    Args:
        model: with the head as it was loaded.
        stored: the config in its files.
        names: of the task's labels, in order.
        drawn: names of the tensors that were drawn -> whether the files have one of another shape.
        seed: of a new layer.

    Returns:
        Names of the tensors that were drawn here, and a line on what was done.

    """
    name, layer = output_layer(model)
    tensors = [f"{name}.{inner}" for inner, _ in layer.named_parameters()]
    before = [str(label) for _, label in sorted((stored.id2label or {}).items(), key=lambda item: int(item[0]))]
    if f"{name}.weight" in drawn:
        other = f"fm.path: the stored head has other labels ({_listed(before)}), {name} is drawn anew"
        return [], [other] if drawn[f"{name}.weight"] else []
    order = _order(before, names)
    if order is not None:
        if order == sorted(order):
            return [], []
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.copy_(parameter[order].clone())
        return [], [f"fm.path: the stored head's labels ({_listed(before)}) are put into the task's order"]
    if all(map(_NO_NAME.fullmatch, before)) or all(map(_NO_NAME.fullmatch, names)):
        pairs = [f"{mine} = {theirs}" for mine, theirs in zip(names, before, strict=False)]
        return [], [f"fm.path: the stored head is taken label by label, by number: {_listed(pairs)}"]
    with isolated_torch_rng(derive_seed(seed, "head")):
        _draw_again(model, layer)
    return tensors, [f"fm.path: the stored head has other labels ({_listed(before)}), {name} is drawn anew"]


def untie(model: PreTrainedModel) -> list[str]:
    """Make a language model's config say, in place, whether its output embeddings are its input's; a line if not."""
    output = model.get_output_embeddings()
    shared = output is None or output.weight is model.get_input_embeddings().weight
    if shared or not model.config.tie_word_embeddings:
        return []
    model.config.tie_word_embeddings = False
    return ["fm.config.tie_word_embeddings: true, but the stored embeddings differ: they stay apart"]


def _order(before: Sequence[str], names: Sequence[str]) -> list[int] | None:
    """Return the stored output of each of the task's labels; None: their names differ."""
    for change in (str, lambda name: name.strip().casefold()):
        position = {change(name): index for index, name in enumerate(before)}
        wanted = [change(name) for name in names]
        if len(position) == len(before) and set(wanted) == set(position) and len(wanted) == len(position):
            return [position[name] for name in wanted]
    return None


def _draw_again(model: PreTrainedModel, layer: nn.Module) -> None:
    for item in (layer, *layer.parameters()):
        vars(item)["_is_hf_initialized"] = False  # transformers' mark of what was in the files
    model._init_weights(layer)


def _listed(names: Sequence[str]) -> str:
    more = f", ... {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return ", ".join(names[:_SHOWN_NAMES]) + more
