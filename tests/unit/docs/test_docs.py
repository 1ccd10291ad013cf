"""README, book and other texts: links lead somewhere; commands, keys, Python and quoted messages are the code's."""

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import typer
import yaml

import fedpft
from fedpft.cli.main import app
from fedpft.config import config_keys, load_config
from fedpft.config.parts import SECTIONS
from fedpft.config.suite import SuiteConfig, load_suite
from fedpft.config.sweep import SweepConfig, load_sweep
from fedpft.storage.output import RUN

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
BOOK = [ROOT / "README.md", *sorted(file for file in DOCS.rglob("*.md") if "repository" not in file.parts)]
OTHERS = ("CONTRIBUTING.md", "CHANGELOG.md", "experiments/**/*.md", "ray_cluster/**/*.md")
TEXTS = [*BOOK, *sorted(file for pattern in OTHERS for file in ROOT.glob(pattern))]
LOADERS = {"config_path": load_config, "sweep_path": load_sweep, "suite_path": load_suite}
"""Argument of a command -> what reads the file."""
KEYS = set(config_keys())

FENCE = re.compile(r"^(`{3,})(\S*)([^\n]*)\n(.*?)^\1$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]*))?\)")
DOTTED = re.compile(rf"(?<![\w/.])((?:{'|'.join(SECTIONS)})(?:\.\w+)+)(?=$|[\s=,;:)])")
FILES = {".py", ".md", ".yaml", ".json", ".jsonl", ".html"}


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


def prose(file: Path) -> str:
    return FENCE.sub("", file.read_text())


def blocks(language: str, files: list[Path]) -> Iterator[tuple[str, str, str]]:
    """Yield place, what follows the language's name, and content of each block of code."""
    for file in files:
        text = file.read_text()
        for found in FENCE.finditer(text):
            if found[2] == language:
                yield f"{name_of(file)}:{text.count(chr(10), 0, found.start()) + 1}", found[3].strip(), found[4]


def commands() -> Iterator[tuple[str, list[str]]]:
    """Yield the words of each `fedpft ...`, without that one."""
    for place, _, block in blocks("bash", TEXTS):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["fedpft"]:
                yield f"{place}: {line}", words[1:]


def anchors(file: Path) -> set[str]:
    """Return what `#...` may name: headings as GitHub and MyST call them, and names that the text gives."""
    headings = re.findall(r"^#+ (.+)$", prose(file), re.MULTILINE)
    given = re.findall(r"^\(([\w-]+)\)=$", prose(file), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}.union(given)


def leaves(settings: dict, prefix: str = "") -> Iterator[str]:
    for key, value in settings.items():
        if isinstance(value, dict) and f"{prefix}{key}" not in KEYS:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def is_module(name: str) -> bool:
    """Whether a dotted name is that of a module, or of something in one."""
    parts = ["fedpft", *name.split(".")]
    return any(Path(*parts[:number]).with_suffix(".py").exists() for number in range(2, len(parts) + 1))


def settings_of(kind: type) -> list[str]:
    return [entry.name for entry in fields(kind) if not is_dataclass(entry.default_factory)]


def test_every_relative_link_leads_to_a_file_and_a_heading():
    wrong = []
    for file in TEXTS:
        for path, anchor in LINK.findall(prose(file)):
            target = (file.parent / path).resolve() if path else file
            if not target.exists() or (anchor and anchor not in anchors(target)):
                wrong.append(f"{name_of(file)}: {path}#{anchor}")
    assert not wrong


def test_every_command_parses_and_its_settings_work():
    root, wrong, seen = typer.main.get_command(app), [], 0
    for place, words in commands():
        seen += 1
        try:
            context = root.make_context("fedpft", words)
            while rest := context._protected_args:  # the name of a command, and its own words
                name, command, rest = context.command.resolve_command(context, [*rest, *context.args])
                context = command.make_context(name, rest, parent=context)
            for argument, load in LOADERS.items():
                if path := context.params.get(argument):
                    path = path if path.exists() else Path("experiments/configs/quickstart.yaml")
                    given = context.params["overrides"] or []
                    load(path, [item for item in given if not re.search("=[A-Z]+$", item)])  # fm=FM stands for words
        except Exception as error:
            wrong.append(f"{place}: {type(error).__name__}: {error}")
    assert not wrong
    assert seen > 30


def test_every_yaml_block_has_keys_that_exist():
    wrong = []
    for place, _, block in blocks("yaml", BOOK):
        settings = yaml.safe_load(block)
        kind = SuiteConfig if "rows" in settings else SweepConfig if "space" in settings else None
        known, found = (set(settings_of(kind)) | {"paper"}, settings) if kind else (KEYS, leaves(settings))
        wrong += [f"{place}: {key}" for key in set(found) - known]
        wrong += [f"{place}: space.{key}" for key in settings.get("space", {}).keys() - KEYS]
    assert not wrong


def test_every_key_that_a_sentence_names_exists():
    known = KEYS | {key.rpartition(".")[0] for key in KEYS}
    wrong = [
        f"{name_of(file)}: {key}"
        for file in TEXTS
        for quoted in re.findall(r"`([^`\n]+)`", prose(file))
        for key in DOTTED.findall(quoted)
        if key not in known
        and Path(key).suffix not in FILES
        and not key.startswith("fm.config.")
        and not is_module(key)
    ]
    assert not wrong


def test_every_python_block_compiles_and_names_what_the_package_has():
    seen = 0
    for place, mark, block in blocks("python", BOOK):
        tree = ast.parse(block, place)
        attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        used = {node.attr for node in attributes if isinstance(node.value, ast.Name) and node.value.id == "fedpft"}
        assert used <= set(fedpft.__all__), place
        if mark == "exec":
            exec(compile(tree, place, "exec"), {})
            seen += 1
    assert seen


def test_messages_that_the_page_of_errors_quotes_are_in_the_code():
    code = "\n".join(file.read_text() for file in Path("fedpft").rglob("*.py"))
    said = re.sub(r'"\s*f?"', "", code)  # strings that Python joins
    quoted = re.findall(r"^> `(.+)`$", (DOCS / "errors.md").read_text(), re.MULTILINE)
    pieces = {piece.strip() for message in quoted for piece in re.split("…|: found |, allowed: ", message)}
    assert len(quoted) > 20
    assert not {piece for piece in pieces - KEYS if piece not in said}


def test_pages_made_from_the_code_have_every_key_command_and_public_name():
    generated = importlib.import_module("generated")
    page = generated.expand((DOCS / "reference/config.md").read_text())
    keys = [*KEYS, *settings_of(SweepConfig), *settings_of(SuiteConfig)]
    missing = [key for key in keys if f"| `{key}` |" not in page]
    page = generated.expand((DOCS / "reference/cli.md").read_text())
    missing += [name for name in typer.main.get_command(app).commands if f"`fedpft {name}`" not in page]
    page = (DOCS / "reference/api.md").read_text()
    missing += [name for name in fedpft.__all__ if not re.search(rf"\b{name}\b", page)]
    assert not missing


def test_every_key_says_what_it_means():
    settings = importlib.import_module("settings")
    kinds = [kind for _, kind in settings.sections(fedpft.Config)] + [SweepConfig, SuiteConfig]
    assert not [f"{kind}.{key}" for kind in kinds for key in settings_of(kind) if key not in settings.meanings(kind)]


def test_the_table_of_the_readme_is_that_of_the_records():
    assert importlib.import_module("results").summary() in (ROOT / "README.md").read_text()


def test_everything_that_a_run_writes_is_explained():
    page = (DOCS / "howto/run-folder.md").read_text()
    assert not [name for name in RUN.entries if f"| `{name}" not in page]


def test_links_between_texts_become_links_between_pages():
    repository = importlib.import_module("repository")
    texts = "[a](../CONTRIBUTING.md#how-to-add) [b](../experiments) [c](../tests) [d](../Makefile) [e](start.md)"
    pages = "[a](/repository/CONTRIBUTING.md#how-to-add) [b](/repository/experiments/README.md) c"
    assert repository.relinked(texts, DOCS) == f"{pages} [d](../Makefile) [e](/start.md)"


def test_what_builds_the_book_is_pinned():
    pinned = {line.partition("==")[0].lower() for line in Path("constraints.txt").read_text().splitlines()}
    extra = re.search(r"^docs = (\[.+\])$", Path("pyproject.toml").read_text(), re.MULTILINE)
    assert {name.partition(">=")[0] for name in ast.literal_eval(extra[1])} <= pinned
