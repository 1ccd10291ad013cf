"""Does anything that somebody leaves in an FM's config.json end in a traceback, or in an export that is another model?

    python -m experiments.benchmarks.robustness.fm_configs [NUM_CASES] [SEED]

Each case is a tiny random model of one of the families, as a folder with its tokenizer or image processor, whose
config.json has one to three fields changed (or `fm.config` sets them), and what users do with it.
"""

import json
import random
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from experiments.benchmarks.robustness.cases import play_all, use, write_inputs
from fedpft.models.checks import DECODERS
from tests.tiny import FAMILIES

ANYTHING = [None, True, False, 0, 1, -1, 2, 3, 7, 0.5, 1e30, "", "x", "gelu", [], [0], [1, 2], {}, {"0": "x"}]
FIELDS: dict[str, list[Any]] = {
    "output_attentions": [True],
    "output_hidden_states": [True],
    "return_dict": [False],
    "use_cache": [True, False],
    "torchscript": [True],
    "problem_type": ["regression", "single_label_classification", "multi_label_classification", "x", None],
    "pruned_heads": [{"0": [0]}, {"1": [0, 1]}, {}],
    "is_decoder": [True],
    "add_cross_attention": [True],
    "is_encoder_decoder": [True],
    "tie_word_embeddings": [True, False],
    "chunk_size_feed_forward": [1, 2, 3, -1],
    "dtype": ["float16", "bfloat16", "float64", "float32", "auto", "x", None],
    "torch_dtype": ["float16", "bfloat16"],
    "num_labels": [1, 2, 3, 0, -1],
    "id2label": [{"0": "a"}, {"0": "1", "1": "0"}, {"0": "0", "2": "1"}, {"1": "x", "0": "x"}, {"x": "y"}, [], None],
    "label2id": [{"a": 0}, {}, None],
    "architectures": [["BertForMaskedLM"], [], None, ["Nonsense"], "x"],
    "attn_implementation": ["eager", "sdpa", "flash_attention_2", "flex_attention", "x"],
    "_attn_implementation": ["eager", "sdpa", "x"],
    "position_embedding_type": ["absolute", "relative_key", "relative_key_query", "x"],
    "hidden_act": ["relu", "gelu_new", "x", None],
    "activation_function": ["relu", "x"],
    "hidden_dropout_prob": [0.0, 1.0, 2.0, -1],
    "attention_dropout": [0.0, 1.0],
    "classifier_dropout": [0.5, None, 3],
    "pad_token_id": [0, 5, -1, 10**6, None],
    "eos_token_id": [1, [1, 2], None],
    "bos_token_id": [0, None],
    "num_hidden_layers": [1, 2, 3, 4, 0],
    "n_layer": [2, 4],
    "num_attention_heads": [1, 3, 4],
    "num_key_value_heads": [1, 2, 3],
    "hidden_size": [8, 16, 17],
    "intermediate_size": [8, 24],
    "vocab_size": [30, 41, 1000],
    "max_position_embeddings": [2, 12, 40, 512],
    "type_vocab_size": [0, 1, 2, 3],
    "initializer_range": [0.0, 1.0],
    "layer_norm_eps": [0.0, 1.0, "1e-5"],
    "quantization_config": [{"quant_method": "bitsandbytes", "load_in_8bit": True}, {}],
    "auto_map": [{"AutoModel": "x.Y"}],
    "model_type": ["bert", "llama", "nonsense", "t5"],
    "transformers_version": ["3.0.0", "99.0"],
    "gradient_checkpointing": [True],
    "rope_scaling": [{"type": "linear", "factor": 2.0}, {"rope_type": "x"}, {"factor": 2}],
    "rope_parameters": [{"rope_type": "default", "rope_theta": 1e4}, {"rope_type": "yarn"}],
    "sliding_window": [1, 4, 0],
    "layer_types": [["full_attention"], ["x"] * 3, ["sliding_attention"] * 3],
    "scale_attn_by_inverse_layer_idx": [True],
    "reorder_and_upcast_attn": [True],
    "do_layer_norm_before": [False],
    "image_size": [4, 8, 16],
    "num_channels": [1, 3],
    "pooler_act": ["relu", "x"],
    "ffn_sizes": [[1, 2, 3]],
    "summary_type": ["mean"],
    "conv_kernel_size": [3],
}
METHODS = ["fedpft", "fedpft", "full", "fedot"]


def attempt(folder: Path, draw: random.Random) -> tuple[str, Callable[[], None]]:
    """Write a case; return it in words, and what plays it."""
    family = draw.choice(FAMILIES)
    kind = draw.choice(["classification", "causal_lm"]) if family in DECODERS else "classification"
    settings = [*write_inputs(folder, family, kind), f"method.name={draw.choice(METHODS)}"]
    settings.append(f"align.layers.kind={draw.choice(['none', 'distill'])}")
    fields = {}
    for name in draw.sample(sorted(FIELDS), draw.choice([1, 1, 2, 3])):
        fields[name] = draw.choice(FIELDS[name] if draw.random() < 0.8 else ANYTHING)
    in_file = draw.random() < 0.7
    file = folder / "fm" / "config.json"
    if in_file:
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    else:
        settings += [f"fm.config.{name}={json.dumps(value)}" for name, value in fields.items()]
    case = f"{family} {kind} {'config.json' if in_file else 'fm.config'} {fields} {settings[-3:]}"
    return case, partial(use, folder, settings, draw)


if __name__ == "__main__":
    sys.exit(play_all("fm_configs", attempt))
