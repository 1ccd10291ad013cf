"""Instruction data for causal language modelling: a prompt to read and a response to learn.

    row --template--> `prompt`, `response` --tokenise--> `input_ids` = prompt + response + end, `prompt_length`

The first `prompt_length` tokens are no targets. Text without prompts is learned whole.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from fedpft.config import TaskConfig, TaskKind
from fedpft.data.collate import text_lengths
from fedpft.data.sources.columns import LABEL, PROMPT, PROMPT_LENGTH, RESPONSE, require_text, with_values
from fedpft.data.sources.errors import fail
from fedpft.data.sources.labels import label_codes
from fedpft.data.sources.on_disk import kept
from fedpft.data.sources.subsets import subset
from fedpft.data.tasks.prompts import KEY, PromptTemplate, bare_template
from fedpft.data.tasks.table import TaskRow

KEYS = ("prompt_column", "response_column", "prompt_template", "chat_template")
"""Of `TaskConfig`, for `causal_lm` alone."""

TOKENISE_BATCH = 1000
_TEXTS = datasets.Features({PROMPT: datasets.Value("string"), RESPONSE: datasets.Value("string")})


def check_keys(config: TaskConfig, kind: TaskKind) -> None:
    """Raise a ConfigError for columns that are for tasks of another kind."""
    wrong = ("text_columns", "image_column") if kind == "causal_lm" else KEYS
    instead = f", but {', '.join(KEYS)}" if kind == "causal_lm" else ""
    for name in wrong:
        if value := getattr(config, name):
            fail(f"task.{name}", value, f"no such key for a task of kind {kind}{instead}")


def read_instructions(
    splits: Mapping[str, datasets.Dataset], label_names: tuple[str, ...] | None, config: TaskConfig, row: TaskRow
) -> tuple[dict[str, datasets.Dataset], tuple[str, ...]]:
    """Return the splits with `prompt` and `response`, `train` also with `label` if there is a label column.

    Args:
        splits: as they were read.
        label_names: from `classes.txt`, if there is one.
        config: the `task` section.
        row: the task's.

    Raises:
        ConfigError: a column that is missing or cannot serve, or a template that is none.

    """
    template, column = find_template(config, row.prompt_template), config.response_column or row.response_column
    if column is None:
        fail("task.response_column", None, "a column of texts, because task.kind is causal_lm")
    label_column, read = config.label_column or row.label_column, dict(splits)
    if config.on_bad_example == "drop":
        columns = dict.fromkeys([column, *(template.columns if template else ())], True)
        category = {} if label_column is None else {label_column: False}
        for name, dataset in read.items():  # evaluated examples need no category
            needed = columns | (category if name == "train" else {})
            read[name] = with_values(dataset, needed, "training" if name == "train" else name, "task.path")
    names: tuple[str, ...] = ()
    if label_column is not None:  # categories to deal out by: no model predicts them, evaluated examples need none
        (codes,), names = label_codes([read["train"]], label_column, label_names, "task.label_column")
        read["train"] = _replace(read["train"], LABEL, codes)
    return {split: as_instructions(dataset, template, column) for split, dataset in read.items()}, names


def as_instructions(
    dataset: datasets.Dataset, template: PromptTemplate | None, response_column: str
) -> datasets.Dataset:
    """Return the rows with `prompt` (empty without a template) and `response`; all other columns stay.

    Raises:
        ConfigError: a column that is missing, has nulls or holds no strings.

    """
    require_text(dataset, response_column, "task.response_column")
    columns = template.columns if template is not None else ()
    for column in columns:
        require_text(dataset, column, template.key if template is not None else KEY)

    def fill(batch: dict[str, list[str]]) -> dict[str, list[str]]:
        rows = zip(*(batch[column] for column in columns), strict=True)
        prompts = [""] * len(batch[response_column])
        if template is not None:
            prompts = [template.fill(dict(zip(columns, row, strict=True))) for row in rows]
        return {PROMPT: prompts, RESPONSE: batch[response_column]}

    read = dataset.select_columns(list(dict.fromkeys([*columns, response_column])))
    made = kept(read.map, fill, batched=True, features=_TEXTS, remove_columns=read.column_names)
    others = [name for name in dataset.column_names if name not in (PROMPT, RESPONSE)]
    return datasets.concatenate_datasets([dataset.select_columns(others), made], axis=1) if others else made


def _replace(dataset: datasets.Dataset, column: str, values: np.ndarray) -> datasets.Dataset:
    return dataset.remove_columns([name for name in dataset.column_names if name == column]).add_column(column, values)


def find_template(config: TaskConfig, own: str | None) -> PromptTemplate | None:
    """Return the template of the config, or the table row's `own`, or None: text without prompts.

    What goes into a chat template has no words of its own but those that the config gives it.

    Raises:
        ConfigError: no template, one without the prompt column, or a chat template with nothing to ask.

    """
    column, chosen, key = config.prompt_column, config.prompt_template, KEY
    if chosen is None and column is not None:
        key = "task.prompt_column"
        chosen = f"{{{column}}}" if config.chat_template else f"{{{column}}}\n"
    elif chosen is None and own is not None:
        chosen = bare_template(own) if config.chat_template else own
    if chosen is None:
        if config.chat_template:
            fail("task.chat_template", True, "false, because there is neither task.prompt_column nor prompt_template")
        return None
    template = PromptTemplate(chosen, key)
    if column is not None and column not in template.columns:
        fail(KEY, chosen, f"a text with {{{column}}}, the task.prompt_column")
    return template


def without_prompts(tokenised: datasets.Dataset) -> datasets.Dataset:
    """Return tokenised texts as examples of which every token is a target."""
    return tokenised.add_column(PROMPT_LENGTH, [0] * len(tokenised))


def tokenise_instructions(
    dataset: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    prefix: list[int],
    chat: bool,
    split: str,
) -> datasets.Dataset:
    """Return the rows with `input_ids`, at most `max_length` and unpadded, and `prompt_length` in place of the texts.

    Prompt and response are tokenised apart, so that the border between them is one between tokens, as it is when the
    model answers. What is too long loses the end of the response, and with it the end-of-text token.

    Args:
        dataset: rows with `prompt` and `response`.
        tokenizer: the FM's.
        max_length: tokens of an example.
        prefix: ids before every text; not used with `chat`.
        chat: put both into the tokenizer's own chat template, which says how they begin and end.
        split: which part of the data it is, for messages.

    Raises:
        ConfigError: no response has a token left; a tokenizer without end-of-text token, or without a chat template
            that serves.

    """
    if tokenizer.eos_token_id is None:
        fail("fm.path", "a tokenizer without end-of-text token", "one that has it: responses must end")
    if chat and not tokenizer.chat_template:
        fail("task.chat_template", True, "false, because the FM's tokenizer has no chat template")

    def encode(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        pairs = list(zip(batch[PROMPT], batch[RESPONSE], strict=True))
        begin, end = prefix, [tokenizer.eos_token_id]
        if chat:
            pairs, begin, end = [_chat(tokenizer, *pair) for pair in pairs], [], []
        prompts, responses = (
            tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
            for texts in zip(*pairs, strict=True)
        )
        return {
            "input_ids": [
                (begin + prompt + response + end)[:max_length]
                for prompt, response in zip(prompts, responses, strict=True)
            ],
            PROMPT_LENGTH: [len(begin) + len(prompt) for prompt in prompts],
        }

    encoded = kept(dataset.map, encode, batched=True, batch_size=TOKENISE_BATCH, remove_columns=[PROMPT, RESPONSE])
    return _with_targets(encoded, max_length, split)


def _with_targets(encoded: datasets.Dataset, max_length: int, split: str) -> datasets.Dataset:
    """Drop the examples that teach nothing: no token of the response fits behind the prompt."""
    lengths, prompts = text_lengths(encoded), encoded.with_format("numpy")[PROMPT_LENGTH][:]
    assert lengths is not None, "there are tokens"
    chosen = np.flatnonzero(lengths > np.maximum(prompts, 1))  # a first token has no past
    dropped = len(encoded) - len(chosen)
    if dropped == 0:
        return encoded
    found = f"{dropped} of {len(encoded)} {split} examples without a token of their response in {max_length} tokens"
    if not len(chosen):
        fail("fm.max_length", found, "at least one example with room for its response")
    warnings.warn(f"fm.max_length: dropped {found}", stacklevel=2)
    return subset(encoded, chosen)


def _chat(tokenizer: PreTrainedTokenizerBase, prompt: str, response: str) -> tuple[str, str]:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    asked = str(tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True))
    whole = str(tokenizer.apply_chat_template(messages, tokenize=False))
    if not whole.startswith(asked):
        fail("task.chat_template", True, "false, because this chat template does not put the response after the prompt")
    return asked, whole.removeprefix(asked)
