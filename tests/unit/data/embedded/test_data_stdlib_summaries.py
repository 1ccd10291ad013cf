import pytest

from fedpft.config import TaskConfig
from fedpft.data.embedded.stdlib_summaries import stdlib_summaries_task
from fedpft.data.tasks.loading import load_task

VERBS = ("Open", "Close", "Read", "Write", "Move", "Drop", "Sort", "Join")
NOUNS = ("the first file", "every socket now", "a long queue", "his old lock")


@pytest.fixture
def stdlib(tmp_path):
    """Write two packages and a module that is in none."""
    for package, words in (("alpha", NOUNS[:2]), ("beta", NOUNS[2:])):
        functions = [
            f'def {verb.lower()}_{i}(self, what, *rest):\n    """{verb} {noun}.\n\n    Much more of it."""\n'
            for verb in VERBS
            for i, noun in enumerate(words)
        ]
        short = (
            'class Thing:\n    """A class has no answer of its own."""\n    def f(self):\n        """Too short."""\n'
        )
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
        (tmp_path / package / "work.py").write_text("\n".join([*functions, short]))
    (tmp_path / "lonely.py").write_text('def f():\n    """This one is in no package at all."""\n')
    return tmp_path


def test_rows_ask_for_a_function_and_answer_with_the_first_sentence(stdlib):
    train, evaluation, packages = stdlib_summaries_task(stdlib)
    rows = {row["function"]: row for row in [*train, *evaluation]}
    assert packages == ("alpha", "beta")
    assert len(rows) == len(train) + len(evaluation) == 2 * len(VERBS) * 2
    found = tuple(rows["alpha.work.open_0"].values())
    assert found == ("alpha.work.open_0", "self, what", "Open the first file.", "alpha")


def test_about_a_quarter_of_each_package_is_evaluated_on_and_the_split_is_always_the_same(stdlib):
    train, evaluation, _ = stdlib_summaries_task(stdlib)
    assert [evaluation["package"][:].count(name) for name in ("alpha", "beta")] == [4, 4]
    assert not set(train["summary"][:]) & set(evaluation["summary"][:])
    assert stdlib_summaries_task(stdlib)[1].to_dict() == evaluation.to_dict()


def test_it_is_a_task_of_the_table(stdlib, monkeypatch):
    monkeypatch.setattr("fedpft.data.embedded.stdlib_summaries.sysconfig.get_path", lambda name: str(stdlib))
    task = load_task(TaskConfig(name="stdlib_summaries"), seed=0)
    assert (task.kind, task.label_names) == ("causal_lm", ("alpha", "beta"))
    assert task.train["prompt"][0].startswith("What does alpha.work.")
    assert task.train["prompt"][0].endswith("(self, what) do?\n")
