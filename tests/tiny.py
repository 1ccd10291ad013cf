"""Tiny random models of every family, for tests that take milliseconds."""

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn.functional import gelu, relu, silu
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from fedpft.config import LoraConfig
from fedpft.data.collate import TextCollator
from fedpft.data.partition import Partition
from fedpft.federated.messages import LocalSettings
from fedpft.federated.package import ClientPackage
from fedpft.models.families import FFN_LOCATIONS
from fedpft.models.loading import Modality
from fedpft.models.lora import AdaptedModel, attach_lora
from fedpft.models.tokenizer import train_tokenizer
from fedpft.models.weights import pack_model

_COMMON = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 40,
}
_IMAGE = {k: v for k, v in _COMMON.items() if k != "vocab_size"} | {"image_size": 8, "patch_size": 4}
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_GEMMA2 = {"num_key_value_heads": 1, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4}

TINY_CONFIGS: dict[str, dict[str, Any]] = {
    "bert": _COMMON | {"max_position_embeddings": 40},
    "roberta": _COMMON | _SPECIAL | {"max_position_embeddings": 40},
    "xlm-roberta": _COMMON | _SPECIAL | {"max_position_embeddings": 40},
    "camembert": _COMMON | _SPECIAL | {"max_position_embeddings": 40},
    "mpnet": _COMMON | _SPECIAL | {"max_position_embeddings": 40},
    "modernbert": _COMMON | _SPECIAL | {
        "cls_token_id": 2, "sep_token_id": 3, "max_position_embeddings": 40, "mlp_bias": True, "local_attention": 8,
    },
    "electra": _COMMON | {"embedding_size": 24, "max_position_embeddings": 40},
    "deberta-v2": _COMMON | {
        "max_position_embeddings": 40, "type_vocab_size": 0, "position_biased_input": False, "relative_attention": True,
        "position_buckets": 4, "norm_rel_ebd": "layer_norm", "share_att_key": True, "pos_att_type": ["p2c", "c2p"],
    },
    "distilbert": {
        "dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24, "vocab_size": 40, "max_position_embeddings": 40,
    },
    "vit": _IMAGE,
    "deit": _IMAGE,
    "dinov2": {k: v for k, v in _IMAGE.items() if k != "intermediate_size"} | {"mlp_ratio": 2, "use_swiglu_ffn": True},
    "gpt2": _SPECIAL | {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_inner": 24, "vocab_size": 40, "n_positions": 40},
    "gpt_neox": _COMMON | _SPECIAL | {"max_position_embeddings": 40},
    "opt": _SPECIAL | {
        "hidden_size": 16, "word_embed_proj_dim": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "ffn_dim": 24,
        "vocab_size": 40, "max_position_embeddings": 40, "init_std": 0.5,  # every ReLU fires somewhere
    },
    "llama": _COMMON | _SPECIAL | {"num_key_value_heads": 2},
    "mistral": _COMMON | _SPECIAL | {"num_key_value_heads": 1, "sliding_window": None},
    "qwen2": _COMMON | _SPECIAL | {"num_key_value_heads": 2},
    "qwen3": _COMMON | _SPECIAL | {"num_key_value_heads": 1, "head_dim": 8},
    "gemma": _COMMON | _SPECIAL | {"num_key_value_heads": 1, "head_dim": 8},
    "gemma2": _COMMON | _SPECIAL | _GEMMA2,
    "gemma3_text": _COMMON | _SPECIAL | _GEMMA2,
    "olmo2": _COMMON | _SPECIAL | {"num_key_value_heads": 2},
    "phi3": _COMMON | _SPECIAL | {"num_key_value_heads": 1},
    "smollm3": _COMMON | _SPECIAL | {"num_key_value_heads": 1, "no_rope_layer_interval": 2},
    "granite": _COMMON | _SPECIAL | {
        "num_key_value_heads": 1, "residual_multiplier": 0.5, "embedding_multiplier": 3.0, "logits_scaling": 2.0,
    },
}  # fmt: skip
OPT_350M = {"do_layer_norm_before": False, "word_embed_proj_dim": 8}
"""How the 350M model differs from all other OPTs: post-LN, and embeddings narrower than its layers."""

DEBERTA_V2_XLARGE = {"conv_kernel_size": 3, "conv_act": "gelu", "share_att_key": False}
"""How the v2 models differ from v3: a convolution after the first layer, and positions with their own projections."""

DINOV2_BASE = {"use_swiglu_ffn": False, "hidden_size": 12}
"""How all others differ from the giant: no gate."""

WITHOUT_CLASSIFIER = ["granite"]
"""Families for which transformers has language models alone."""

FAMILIES = sorted(TINY_CONFIGS.keys() - set(WITHOUT_CLASSIFIER))
"""For quick tests, and those that find what one family alone does."""

ONE_FAMILY_PER_ROW = sorted(
    {FFN_LOCATIONS[family]: family for family in reversed(FFN_LOCATIONS) if family in FAMILIES}.values()
)
"""For tests of what depends on a family through its row alone."""

EVERY_ROW = [*ONE_FAMILY_PER_ROW, *WITHOUT_CLASSIFIER]
"""For such tests that ask for no classifier."""

IMAGE_FAMILIES = ["deit", "dinov2", "vit"]
TEXT_FAMILIES = [family for family in FAMILIES if family not in IMAGE_FAMILIES]
TEXT_ROWS = [family for family in ONE_FAMILY_PER_ROW if family not in IMAGE_FAMILIES]
POST_NORM_FAMILIES = ["bert", "camembert", "deberta-v2", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta"]
OUTPUT_NORM_FAMILIES = ["gemma2", "gemma3_text", "olmo2"]
FUSED_FAMILIES = ["modernbert", "phi3"]
GATED_FAMILIES = [
    *("dinov2", "gemma", "gemma2", "gemma3_text", "llama", "mistral", "modernbert", "olmo2", "phi3"),
    *("qwen2", "qwen3", "smollm3"),
]
DEPTH_FIELD = {"distilbert": "n_layers", "gpt2": "n_layer"}
"""Field of a config that holds the number of layers, where it is not `num_hidden_layers`."""

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    **dict.fromkeys(["bert", "deberta-v2", "deit", "distilbert", "electra", "roberta", "vit"], gelu),
    **dict.fromkeys(["xlm-roberta", "camembert", "mpnet", "modernbert", "gpt_neox"], gelu),
    **dict.fromkeys(["gemma", "gemma2", "gemma3_text", "gpt2"], partial(gelu, approximate="tanh")),
    **dict.fromkeys(["llama", "mistral", "qwen2", "qwen3", "dinov2", "granite", "olmo2", "phi3", "smollm3"], silu),
    "opt": relu,
}
"""The activation function of each family's own models, from PyTorch."""


def modality_of(model_type: str) -> Modality:
    """Return what a family's models take."""
    return "image" if model_type in IMAGE_FAMILIES else "text"


def auto_model(model_type: str) -> Any:
    """Return the transformers class that opens a family's classifiers, or its language models if it has none."""
    if model_type in WITHOUT_CLASSIFIER:
        return AutoModelForCausalLM
    return AutoModelForImageClassification if model_type in IMAGE_FAMILIES else AutoModelForSequenceClassification


def tiny_fm(
    model_type: str, *, num_labels: int = 3, seed: int = 0, auto: Any = None, **overrides: Any
) -> PreTrainedModel:
    """Return a random model in eval mode whose every parameter, biases and norms included, is non-trivial.

    `auto` is the class that gives it its head; None: a classifier's.
    """
    fields = TINY_CONFIGS[model_type] | {"problem_type": "single_label_classification"} | overrides
    config = AutoConfig.for_model(model_type, num_labels=num_labels, architectures=[], **fields)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = (auto or auto_model(model_type)).from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def tiny_lm(model_type: str, *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Return a random decoder with its language model's head; LLaMA's two heads share one key and value."""
    shared = {"num_key_value_heads": 1} if model_type == "llama" else {}
    return tiny_fm(model_type, seed=seed, auto=AutoModelForCausalLM, **(shared | overrides))


def tiny_batch(model_type: str, *, batch_size: int = 4, num_tokens: int = 7, seed: int = 1) -> dict[str, torch.Tensor]:
    """Return inputs of `tiny_fm(model_type)`; texts are right-padded to different lengths."""
    generator = torch.Generator().manual_seed(seed)
    if model_type in IMAGE_FAMILIES:
        return {"pixel_values": torch.randn(batch_size, 3, 8, 8, generator=generator)}
    lengths = torch.randint(3, num_tokens + 1, (batch_size, 1), generator=generator)
    lengths[0] = num_tokens
    mask = (torch.arange(num_tokens) < lengths).long()
    ids = torch.randint(3, 40, (batch_size, num_tokens), generator=generator)
    return {"input_ids": ids * mask, "attention_mask": mask}


WORDS = [f"w{i}" for i in range(36)]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of 36 words and 4 special tokens (`[PAD]` is 0), for every tiny text model."""
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_input_names=["input_ids", "attention_mask"],
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )


def tiny_causal_tokenizer(*, has_bos: bool = True) -> PreTrainedTokenizerFast:
    """Return a decoder's tokenizer of 36 words: texts begin with `<s>` (1) if it has one, `</s>` (2) pads as well."""
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", "<other>", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if has_bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_input_names=["input_ids", "attention_mask"],
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        unk_token="<unk>",
    )


def tiny_texts(num_texts: int, *, seed: int = 0) -> tuple[list[str], list[int]]:
    """Return texts of 3 to 9 words and their labels: most words of a text come from its label's half of `WORDS`."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, num_texts)
    texts = []
    for label in labels:
        halves = np.where(rng.random(rng.integers(3, 10)) < 0.9, label, 1 - label)
        texts.append(" ".join(WORDS[half * 18 + rng.integers(4)] for half in halves))
    return texts, labels.tolist()


def tiny_package(
    model_type: str = "bert",
    *,
    seed: int = 0,
    shard_sizes: tuple[int, ...] = (6, 9, 5, 12),
    dropout: float = 0.1,
    watched_layers: tuple[int, ...] = (1, 2),
    model: AdaptedModel | None = None,
    **settings: Any,
) -> ClientPackage:
    """Return what a place needs to play tiny text clients: a model with LoRA and learnable, unequally long texts."""
    texts, labels = tiny_texts(sum(shard_sizes))
    settings = {
        "num_epochs": 1, "batch_size": 4, "head_lr_ratio": 1.0, "weight_decay": 0.01, "max_grad_norm": 1.0,
        "num_threads": 1, "precision": "32-true", "accelerator": "cpu",
    } | settings  # fmt: skip
    if model is None:
        model = attach_lora(
            tiny_fm(model_type, num_labels=2), LoraConfig(rank=2, lora_alpha=4, dropout=dropout), seed=0
        )
    tokenizer = tiny_tokenizer()
    order = np.random.default_rng(0).permutation(len(texts))
    return ClientPackage(
        proxy=pack_model(model),
        watched_layers=watched_layers,
        train=datasets.Dataset.from_dict({"input_ids": tokenizer(texts)["input_ids"], "label": labels}),
        partition=Partition.of_sizes(order, np.array(shard_sizes)),
        collate=TextCollator(tokenizer),
        settings=LocalSettings(seed=seed, **settings),
    )


class LanguageCollator:
    """Makes every token a target, but for those of padding."""

    def __init__(self, collate: Callable[[Any], dict[str, torch.Tensor]]) -> None:
        self._collate = collate

    def __call__(self, rows: Any) -> dict[str, torch.Tensor]:
        batch = self._collate(rows)
        return batch | {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


def tiny_text_run(folder: Path, model_type: str = "bert") -> list[str]:
    """Write an FM, a task and a corpus into `folder`; return the `key=value` settings of a run of seconds on them."""
    tiny_fm(model_type).save_pretrained(folder / "fm")
    tiny_tokenizer().save_pretrained(folder / "fm")
    for name, seed, num_texts in (("task/train", 0, 48), ("task/validation", 1, 40), ("public/train", 2, 60)):
        texts, labels = tiny_texts(num_texts, seed=seed)
        file = folder / f"{name}.csv"
        file.parent.mkdir(exist_ok=True)
        with file.open("w", newline="") as stream:
            csv.writer(stream).writerows([("text", "label"), *zip(texts, labels, strict=True)])
    return [
        f"fm.path={folder / 'fm'}",
        "fm.max_length=32",
        f"task={{name: custom, path: {folder / 'task'}, text_columns: [text], label_column: label}}",
        f"public={{name: custom, path: {folder / 'public'}, text_column: text, chunk_length: 10}}",
        f"output_dir={folder / 'out'}",
        *TINY_RUN,
    ]


def tiny_causal_run(folder: Path, model_type: str = "llama", **task: str) -> list[str]:
    """Write a decoder, instruction data and a corpus into `folder`; return the settings of a run of seconds on them.

    The answer to a question is its words in reverse; each row has a `topic`, one of two.
    """
    tiny_lm(model_type, vocab_size=300).save_pretrained(folder / "fm")
    # of bytes: transformers reads what lies beside a Qwen as one of its own kind, which knows no words
    train_tokenizer(tiny_texts(60)[0], 300).save_pretrained(folder / "fm")
    for name, seed, num_texts in (("task/train", 0, 48), ("task/validation", 1, 40), ("public/train", 2, 60)):
        texts, topics = tiny_texts(num_texts, seed=seed)
        file = folder / f"{name}.csv"
        file.parent.mkdir(exist_ok=True)
        answers = [" ".join(reversed(text.split())) for text in texts]
        with file.open("w", newline="") as stream:
            csv.writer(stream).writerows([("text", "answer", "topic"), *zip(texts, answers, topics, strict=True)])
    described = {"prompt_column": "text", "response_column": "answer"} | task
    columns = ", ".join(f"{key}: {value}" for key, value in described.items())
    return [
        f"fm.path={folder / 'fm'}",
        "fm.max_length=40",
        f"task={{name: custom, kind: causal_lm, path: {folder / 'task'}, {columns}}}",
        f"public={{name: custom, path: {folder / 'public'}, text_column: text, chunk_length: 10}}",
        f"output_dir={folder / 'out'}",
        *TINY_RUN,
    ]


def tiny_vision_run(folder: Path) -> list[str]:
    """Return the settings of a run of seconds with a ViT from scratch on handwritten digits (needs scikit-learn)."""
    architecture = "{hidden_size: 16, num_hidden_layers: 3, num_attention_heads: 2, intermediate_size: 24, " + (
        "image_size: 8, patch_size: 4}"
    )
    return [
        "fm.path=scratch://vit",
        f"fm.config={architecture}",
        "fm.pretrain.num_epochs=1",
        "task={name: digits, max_train_examples: 48, max_eval_examples: 40}",
        "public={name: digits_public, max_examples: 64}",
        f"output_dir={folder / 'out'}",
        *TINY_RUN,
    ]


TINY_RUN = [
    "name=tiny",
    "method={retained_ratio: 0.5, plug_in: copy}",
    "lora={rank: 2, lora_alpha: 4}",
    "align.layers={num_steps: 3, batch_size: 4}",
    "align.neurons={interval: 2, num_steps: 3, batch_size: 4, lr: 1e-2}",
    "federated={num_clients: 4, clients_per_round: 3, rounds: 4, lr: 1e-2}",
    "pool={kind: sequential, accelerator: cpu}",
    "server.accelerator=cpu",
    "tracking.wandb=disabled",
]
"""4 rounds of 3 of 4 clients, neurons aligned after the second round, in this process, on the CPU."""
