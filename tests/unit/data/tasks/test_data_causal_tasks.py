import warnings

import datasets
import pytest

from fedpft.config import Config, ConfigError, FederatedConfig, FMConfig, PartitionConfig, PublicConfig, TaskConfig
from fedpft.data.collate import CausalCollator
from fedpft.data.datamodule import build_data
from fedpft.data.histogram import label_groups
from fedpft.data.sources.subsets import hold_out
from fedpft.data.tasks import loading as tasks
from fedpft.data.tasks.loading import TASKS, load_task
from fedpft.data.tasks.prompts import PromptTemplate
from tests.tiny import tiny_causal_tokenizer

TOKENIZER = tiny_causal_tokenizer()
TOPICS = ["b", "a", "c"]
ROWS = {
    "question": [f"w{i} w1" for i in range(12)],
    "context": ["" if i % 2 else "w30" for i in range(12)],
    "answer": [f"w2 w{i}" for i in range(12)],
    "topic": [TOPICS[i % 3] for i in range(12)],
}
COLUMNS = {"kind": "causal_lm", "prompt_column": "question", "response_column": "answer"}


def folder(tmp_path, **splits):
    """Write each split as parquet."""
    for name, columns in (splits or {"train": ROWS, "validation": {k: v[:4] for k, v in ROWS.items()}}).items():
        datasets.Dataset.from_dict(columns).to_parquet(tmp_path / f"{name}.parquet")
    return str(tmp_path)


def load(path, **settings):
    return load_task(TaskConfig(**({"name": "custom", "path": str(path)} | COLUMNS | settings)), seed=0)


def build(task, *, max_length=12, chat=False, **partition):
    corpus = datasets.Dataset.from_dict({"text": ["w1 w2 w3 w4 w5 w6"] * 8})
    federated = FederatedConfig(num_clients=3, clients_per_round=2, partition=PartitionConfig(**partition))
    config = Config(
        fm=FMConfig(max_length=max_length), federated=federated, public=PublicConfig(chunk_length=8),
        task=TaskConfig(chat_template=chat),
    )  # fmt: skip
    return build_data(task, corpus, TOKENIZER, config)


def test_columns_become_prompt_and_response(tmp_path):
    task = load(folder(tmp_path))
    assert (task.kind, task.modality, task.label_names) == ("causal_lm", "text", ())
    assert task.metrics == ("loss", "perplexity", "token_accuracy")
    assert (task.train["prompt"][3], task.train["response"][3]) == ("w3 w1\n", "w2 w3")
    assert (len(task.train), len(task.evaluation)) == (12, 4)
    assert "label" not in task.train.column_names


def test_a_template_reads_any_columns(tmp_path):
    task = load(folder(tmp_path), prompt_column=None, prompt_template="{context}\n\nQ: {question}\nA: ")
    assert task.train["prompt"][:2] == ["w30\n\nQ: w0 w1\nA: ", "Q: w1 w1\nA: "]


def test_what_a_chat_template_puts_into_words_has_no_line_break_of_its_own(tmp_path):
    assert load(folder(tmp_path), chat_template=True).train["prompt"][3] == "w3 w1"


def test_without_a_prompt_a_text_is_learned_whole(tmp_path):
    task = load(folder(tmp_path), prompt_column=None)
    assert set(task.train["prompt"][:]) == {""}
    row = build(task).train[0]
    assert row == {"input_ids": [1, *TOKENIZER("w2 w0", add_special_tokens=False)["input_ids"], 2], "prompt_length": 1}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"prompt_template": "{context}"}, r"task\.prompt_template: found '\{context\}', allowed: a text with \{quest"),
        ({"prompt_column": None, "chat_template": True}, r"task\.chat_template: found True, allowed: false, because"),
        ({"kind": "classification", "text_columns": ("question",)}, r"task\.prompt_column: .* of kind classification"),
        ({"text_columns": ("question",)}, r"task\.text_columns: .*kind causal_lm, but prompt_column, response_column"),
        ({"prompt_column": "ask"}, r"task\.prompt_column: found 'ask', allowed: a column of the data: quest"),
        ({"response_column": "reply"}, r"task\.response_column: found 'reply', allowed: a column of the data: quest"),
        ({"label_column": "subject"}, r"task\.label_column: found 'subject', allowed: a column of the data"),
        ({"metrics": ("accuracy",)}, r"task\.metrics: found 'accuracy', allowed: for causal_lm: loss, perplexity"),
    ],
)
def test_columns_that_do_not_fit_the_task_are_errors_in_one_line(tmp_path, settings, expected):
    with pytest.raises(ConfigError, match=f"^{expected}") as error:
        load(folder(tmp_path), **settings)
    assert "\n" not in str(error.value)


def test_a_custom_task_must_name_its_responses():
    with pytest.raises(ConfigError, match=r"task\.response_column: found None, allowed: a column of texts, because"):
        TaskConfig(name="custom", kind="causal_lm", path="x", prompt_column="question")
    with pytest.raises(ConfigError, match=r"task\.response_column: found None"):
        load_task(TaskConfig(name="stdlib_docs", kind="causal_lm"), seed=0)


@pytest.mark.parametrize(
    ("name", "columns", "prompt", "labels"),
    [
        ("dolly", {"instruction": "Do.", "context": "It.", "response": "Done.", "category": "qa"}, "It.", ("qa",)),
        ("alpaca", {"instruction": "Do.", "input": "It.", "output": "Done.", "text": "x"}, "### Input:\nIt.", ()),
        ("gsm8k", {"question": "Do.", "answer": "Done."}, "Question: Do.\nAnswer:\n", ()),
    ],
)
def test_rows_of_the_table_read_their_hub_columns(monkeypatch, name, columns, prompt, labels):
    asked = []

    def hub(path, config_name, split, key, revision=None):
        asked.append((path, config_name, split))
        return datasets.Dataset.from_dict({key: [value] * 20 for key, value in columns.items()})

    monkeypatch.setattr(tasks, "load_hub", hub)
    task = load_task(TaskConfig(name=name), seed=0)
    assert prompt in task.train["prompt"][0]
    assert task.train["response"][0] == "Done."
    assert task.label_names == labels
    row = TASKS[name]
    splits = ["train"] if row.eval_split is None else ["train", "test"]
    assert asked == [(row.path, row.config_name, split) for split in splits]
    assert (len(task.train), len(task.evaluation)) == ((18, 2) if row.eval_split is None else (20, 20))


def test_templates_of_the_table_are_templates():
    for row in TASKS.values():
        if row.prompt_template is not None:
            assert row.response_column not in PromptTemplate(row.prompt_template).columns


class TestHoldOut:
    def test_it_takes_a_fraction_and_loses_no_row(self):
        train, held_out = hold_out(datasets.Dataset.from_dict({"i": range(20)}), 0.25, "task.eval_ratio")
        assert len(held_out) == 5
        assert sorted([*train["i"][:], *held_out["i"][:]]) == list(range(20))
        assert held_out["i"][:] == sorted(held_out["i"][:]) != list(range(15, 20))

    def test_every_seed_evaluates_on_the_same_rows(self, tmp_path):
        config = TaskConfig(name="custom", path=folder(tmp_path, train=ROWS), eval_ratio=0.25, **COLUMNS)
        first, second = (load_task(config, seed=seed) for seed in (0, 1))
        assert first.evaluation["response"][:] == second.evaluation["response"][:]
        assert len(first.evaluation) == 3
        assert not set(first.train["response"][:]) & set(first.evaluation["response"][:])

    def test_classification_may_hold_out_too(self, tmp_path):
        path = folder(tmp_path, train=ROWS)
        config = TaskConfig(
            name="custom", path=path, eval_ratio=0.5, text_columns=("question",), label_column="topic"
        )  # fmt: skip
        task = load_task(config, seed=0)
        assert (len(task.train), len(task.evaluation)) == (6, 6)

    @pytest.mark.parametrize("ratio", [0.01, 0.99])
    def test_neither_side_may_be_empty(self, tmp_path, ratio):
        with pytest.raises(
            ConfigError, match=r"task\.eval_ratio: found 0\.\d+, allowed: .* 1 to 11 of the 12 training"
        ):
            load(folder(tmp_path, train=ROWS), eval_ratio=ratio)

    @pytest.mark.parametrize(
        "settings", [{"eval_ratio": 0.0}, {"eval_ratio": 1.0}, {"eval_ratio": 0.5, "eval_split": "test"}]
    )
    def test_a_ratio_that_is_none_is_refused(self, settings):
        with pytest.raises(ConfigError, match=r"^task\.eval_ratio: found "):
            TaskConfig(**settings)

    def test_a_task_with_its_own_evaluation_set_keeps_it(self):
        with pytest.raises(ConfigError, match=r"task\.eval_ratio: found 0\.5, allowed: null"):
            load_task(TaskConfig(name="stdlib_docs", eval_ratio=0.5), seed=0)


class TestPartition:
    def test_without_labels_only_iid_and_natural_work(self, tmp_path):
        task = load(folder(tmp_path))
        data = build(task)
        assert data.partition.sizes.tolist() == [4, 4, 4]
        assert label_groups(data)[1] == ["all"]
        natural = build(task, kind="natural", column="topic")
        assert natural.partition.shard(0).tolist() == [1, 4, 7, 10], "topic a"
        for kind in ("dirichlet", "shards"):
            with pytest.raises(ConfigError, match=rf"federated\.partition\.kind: found '{kind}', .*task\.label_column"):
                build(task, kind=kind)

    def test_a_label_column_is_dealt_out_by_and_never_seen_by_models(self, tmp_path):
        data = build(load(folder(tmp_path), label_column="topic"), kind="shards", labels_per_client=1)
        groups, names = label_groups(data)
        assert names == ["a", "b", "c"]
        assert [sorted({names[group] for group in groups[data.partition.shard(k)]}) for k in range(3)].count(["a"]) == 1
        batch = data.collate([data.train[i] for i in range(3)])
        assert batch["labels"].shape == batch["input_ids"].shape

    def test_a_label_column_may_also_name_the_owners(self, tmp_path):
        data = build(load(folder(tmp_path), label_column="topic"), kind="natural", column="topic")
        assert label_groups(data)[0][data.partition.shard(2)].tolist() == [2, 2, 2, 2]

    def test_evaluated_rows_may_have_new_categories(self, tmp_path):
        validation = {key: values[:2] for key, values in ROWS.items()} | {"topic": ["new", "a"]}
        task = load(folder(tmp_path, train=ROWS, validation=validation), label_column="topic")
        assert task.label_names == ("a", "b", "c")

    def test_nobody_owns_an_example_without_room_for_its_response(self, tmp_path):
        rows = ROWS | {"question": ["w1 " * 20 if i in (1, 2, 6) else "w1" for i in range(12)]}
        with pytest.warns(UserWarning, match="dropped 3 of 12 training examples"):
            data = build(load(folder(tmp_path, train=rows, validation=ROWS)), kind="natural", column="topic")
        assert len(data.train) == 9
        assert data.partition.sizes.tolist() == [3, 3, 3], "one example of each topic is gone"
        assert data.partition.shard(0).tolist() == [2, 4, 7]


def test_public_and_evaluation_batches_fit_a_language_model(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = build(load(folder(tmp_path)))
    assert isinstance(data.collate, CausalCollator)
    assert set(data.collate([data.public[0]])) == {"input_ids", "attention_mask"}
    assert set(data.collate([data.evaluation[0]])) == {"input_ids", "attention_mask", "labels"}
    assert (data.kind, data.metrics[0]) == ("causal_lm", "loss")


@pytest.mark.parametrize("labels", [["good", "bad"] * 6, [0.5, None] * 6, list(range(12)), [[1]] * 12])
def test_a_column_called_label_is_nobodys_business(tmp_path, labels):
    rows = ROWS | {"label": labels}
    data = build(load(folder(tmp_path, train=rows, validation=rows)))
    assert data.label_names == ()
    assert set(data.train.column_names) == {"input_ids", "prompt_length"}
    assert label_groups(data)[1] == ["all"]


def test_it_may_name_the_owners(tmp_path):
    data = build(
        load(folder(tmp_path, train=ROWS | {"label": TOPICS * 4}, validation=ROWS)), kind="natural", column="label"
    )
    assert data.partition.shard(0).tolist() == [1, 4, 7, 10]


def test_answers_of_csv_files_are_texts_though_they_are_numbers(tmp_path):
    for split in ("train", "validation"):
        (tmp_path / f"{split}.csv").write_text("question,answer\n1+1=,2\n0.5+9=,09.50\n")
    assert load(tmp_path).train["response"][:] == ["2", "09.50"]
