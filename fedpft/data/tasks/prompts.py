"""PURE: how a row of instruction data is put into words: a template with `{column}` where the row's value goes.

Paragraphs of a template, between blank lines, are left out where all their columns are empty, so that one template
serves rows with and without a context.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from string import Formatter

from fedpft.data.sources.errors import fail

KEY = "task.prompt_template"

_Piece = tuple[str, str | None]
"""Words, and the column that follows them, if any."""


def alpaca_template(instruction: str, context: str) -> str:
    """Return the Stanford Alpaca prompt over two columns; with a context its first sentence differs from the original.

    Source: https://github.com/tatsu-lab/stanford_alpaca
    """
    return (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        f"### Instruction:\n{{{instruction}}}\n\n### Input:\n{{{context}}}\n\n### Response:\n"
    )


@dataclass(frozen=True)
class PromptTemplate:
    """A parsed template.

    Raises:
        ConfigError: unbalanced braces, a field that is more than a column's name, or no field at all.

    """

    text: str
    key: str = KEY
    """The setting that names its columns, for errors."""

    def __post_init__(self) -> None:
        if not self.columns:
            fail(KEY, self.text, "a text with {column} where a column's value goes")

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The columns it reads, in order of appearance."""
        return tuple(dict.fromkeys(column for block in self._blocks for _, column in block if column is not None))

    def fill(self, row: Mapping[str, str]) -> str:
        """Return the prompt for one row; values are taken as they stand, braces included."""
        said = []
        for block in self._blocks:
            values = [row[column].strip() for _, column in block if column is not None]
            if not values or any(values):
                said.append("".join(words + ("" if column is None else row[column]) for words, column in block))
        return "\n\n".join(said)

    @cached_property
    def _blocks(self) -> list[list[_Piece]]:
        return [self._pieces(block) for block in self.text.split("\n\n")]

    def _pieces(self, block: str) -> list[_Piece]:
        try:
            parsed = list(Formatter().parse(block))
        except ValueError as error:
            fail(KEY, self.text, f"balanced braces, {{{{ and }}}} for those that are no field ({error})")
        for _, column, spec, conversion in parsed:
            if column is not None and (not column or spec or conversion):
                fail(KEY, self.text, "fields that are the name of a column and no more")
        return [(words, column) for words, column, _, _ in parsed]


def bare_template(template: str) -> str:
    """Return a template of the same columns without any words of its own: what a chat template puts into words."""
    return "\n\n".join(f"{{{column}}}" for column in PromptTemplate(template).columns)
