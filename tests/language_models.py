"""Folders of public language models as a plan needs them: a config.json of their shape, a tokenizer, no weights."""

import csv
import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.tiny import WORDS

LLAMA_8B = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False,
}  # fmt: skip
"""Of meta-llama/Llama-3.1-8B, as its card says."""
QWEN_05B = {
    "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864,
    "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": True,
}  # fmt: skip
"""Of Qwen/Qwen2.5-0.5B."""


def tokenizer_of_bytes() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE without merges, which is what transformers takes any tokenizer of these families for."""
    backend = Tokenizer(models.BPE({sign: i for i, sign in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", pad_token="<|end|>")


def weightless_run(folder: Path, shape: dict[str, object], num_chunks: int = 400) -> list[str]:
    """Write a model without weights, and texts as long as they may be; return the settings that put them in place."""
    tokenizer_of_bytes().save_pretrained(folder / "fm")
    (folder / "fm" / "config.json").write_text(json.dumps(shape), encoding="utf-8")
    answer = " ".join(WORDS[number % len(WORDS)] for number in range(600))
    for name, count in (("train", 64), ("validation", 16)):
        file = folder / "task" / f"{name}.csv"
        file.parent.mkdir(exist_ok=True)
        with file.open("w", newline="", encoding="utf-8") as stream:
            rows = [(f"w{number % 9}", answer, f"topic{number % 8}") for number in range(count)]
            csv.writer(stream).writerows([("text", "answer", "category"), *rows])
    (folder / "public").mkdir()
    with (folder / "public" / "train.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("text",), *[(answer,)] * (num_chunks * 256 // 600 + 1)])
    columns = "prompt_column: text, response_column: answer, label_column: category"
    return [
        f"fm.path={folder / 'fm'}",
        f"task={{name: custom, kind: causal_lm, path: {folder / 'task'}, {columns}}}",
        "public.name=custom",
        f"public.path={folder / 'public'}",
        "public.text_column=text",
        f"output_dir={folder / 'out'}",
    ]
