from fedpft.data.embedded.stdlib_docs import near_duplicate_groups, stdlib_docs_task

COMMON = "the quick brown fox jumps over the lazy dog and runs away from the hunters in the wood"


def write_package(root, name: str, docstrings: list[str]) -> None:
    package = root / name
    package.mkdir()
    body = "\n".join(f"def f{i}():\n    '''{text}'''\n" for i, text in enumerate(docstrings))
    (package / "__init__.py").write_text(body)
    (package / "test").mkdir()
    (package / "test" / "__init__.py").write_text("'''A docstring in a test folder of no interest'''")
    (package / "template.py").write_text("not python {{")


def test_near_duplicates_share_a_group_and_others_do_not():
    texts = [
        COMMON,
        f"{COMMON} today",
        "Return the file descriptor of the socket. Or none.",
        "Wait for 3 seconds. Then go on",
    ]
    texts += ["Wait for 4 seconds. An entirely different rest of the text"]
    assert near_duplicate_groups(texts) == [0, 0, 2, 3, 3]


def test_groups_are_transitive():
    words = [f"w{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(60)]
    chain = [" ".join(words[start : start + 30]) for start in (0, 8, 16, 24)]
    assert near_duplicate_groups(chain) == [0, 0, 0, 0]


def test_packages_are_classes_and_shared_docstrings_are_dropped(tmp_path):
    shared = "A text that occurs in both of the packages"
    fruits = ["apple", "pear", "plum", "fig", "grape", "melon", "lime", "kiwi"]
    write_package(
        tmp_path,
        "one",
        [shared, *(f"Peel one {f} with the sharp {f} knife" for f in fruits), "too short to say what it documents"],
    )
    write_package(tmp_path, "two", [shared, *(f"Plant a young {f} tree in your own garden" for f in fruits)])
    train, evaluation, names = stdlib_docs_task(tmp_path)
    texts = train["text"][:] + evaluation["text"][:]
    assert names == ("one", "two")
    assert len(texts) == len(set(texts)) == 16
    assert not {shared, "too short to say what it documents", "A docstring in a test folder of no interest"} & set(
        texts
    )
    assert {row["label"] for row in train} == {0, 1}


def test_the_running_pythons_docs_split_without_near_duplicates():
    train, evaluation, names = stdlib_docs_task()
    assert len(names) == 10
    assert len(train) + len(evaluation) > 1500
    assert 0.2 < len(evaluation) / (len(train) + len(evaluation)) < 0.3
    assert set(train["label"][:]) == set(evaluation["label"][:]) == set(range(10))
    groups = near_duplicate_groups(train["text"][:] + evaluation["text"][:])
    assert not set(groups[: len(train)]) & set(groups[len(train) :])
