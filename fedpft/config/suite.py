"""A suite: a table as data, its rows and columns some settings of a run each; a cell is a point with its seeds.

base: ../configs/paper/base.yaml
rows: [{label: FedPFT, set: {method: fedpft}}, ...]
columns: [{label: QNLI, set: {task: qnli}}, ...]
paper: {file: paper_values.yaml, table: iid, where: {fm: bert}}    # what others report, shown beside
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fedpft.config.checks import ConfigError, require
from fedpft.config.loading import read_file
from fedpft.config.run import Config
from fedpft.config.sweep import SweepConfig, read_structured
from fedpft.config.texts import SettingsOf


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """A row or a column."""

    label: str
    """How the table names it."""
    set: dict[str, Any] = field(default_factory=dict, metadata={"type": SettingsOf(Config)})
    """Keys of the run's config, or words for its sections."""
    metric: str | None = None
    """For a column, a name in `metrics.fm` of result.json, e.g. `mismatched/accuracy`. null takes the primary
    metric."""
    published: str = "accuracy"
    """For a column, the key of the published value."""


@dataclass(frozen=True, kw_only=True)
class PaperConfig:
    """Where published values stand: rows of words and a value in %."""

    file: str = ""
    """File of the published values; a relative path starts at the suite's own folder. Empty means that there are
    none."""
    table: str = ""
    """Name of the table in the file."""
    where: dict[str, str] = field(default_factory=dict)
    """Words that all cells of this suite have in the file."""


@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """A table of runs."""

    name: str = "suite"
    """The suite's name, and its group in W&B."""
    title: str = ""
    """Title above the table."""
    base: str
    """The config file of the runs. A relative path starts at the suite's own folder."""
    run: dict[str, Any] = field(default_factory=dict, metadata={"type": SettingsOf(Config)})
    """Keys of the run's config that every cell has."""
    rows: list[HeadConfig] = field(default_factory=list)
    """The rows of the table, each `{label: ..., set: {...}}`."""
    columns: list[HeadConfig] = field(default_factory=list)
    """The columns of the table, each `{label: ..., set: {...}}`."""
    seeds: tuple[int, ...] = ()
    """Seeds with which every cell is run. An empty list takes the base's seed."""
    paper: PaperConfig = field(default_factory=PaperConfig)
    max_concurrent: int | None = None
    """How many runs go on at a time. null runs as many as there is room for."""
    max_retries: int = 1
    """How often a run that fails is tried again."""
    driver_cpus: float = 1.0
    """How many cores a run's driver has."""
    driver_gpus: float = 0.0
    """How many GPUs a run's driver has; see the same key of a sweep."""
    output_dir: str = "outputs/suites/${name}"
    """The suite's folder. Its runs are in `trials/`."""

    def __post_init__(self) -> None:
        for name in ("rows", "columns"):
            labels = [head.label for head in getattr(self, name)]
            require(bool(labels), name, labels, "a list of `{label: ..., set: {...}}`")
            require(len(set(labels)) == len(labels), name, labels, "labels that differ")
        for row in self.rows:
            for column in self.columns:
                both = sorted(row.set.keys() & column.set.keys())
                require(not both, f"rows.{row.label}.set", both, f"keys that column {column.label} does not set")
        self.sweep  # noqa: B018 - checks what they share

    @property
    def numeric_setting(self) -> tuple[str, list[float]] | None:
        """The first setting that has another number in every column, and these numbers; None: there is none."""
        for key in self.columns[0].set:
            values = [column.set.get(key) for column in self.columns]
            numbers = [float(value) for value in values if isinstance(value, int | float) and value is not True]
            if len(numbers) == len(set(numbers)) == len(values) > 1:
                return key, numbers
        return None

    @property
    def sweep(self) -> SweepConfig:
        """How the cells are run."""
        names = ("name", "base", "run", "seeds", "max_concurrent", "max_retries", "driver_cpus", "driver_gpus")
        return SweepConfig(**{name: getattr(self, name) for name in (*names, "output_dir")})


def load_suite(path: str | Path, overrides: Sequence[str] = ()) -> SuiteConfig:
    """Read a suite's file; its paths become ones that can be opened from here.

    Raises:
        ConfigError: unreadable, an unknown key, a value that cannot work; in one line.

    """
    suite = read_structured(SuiteConfig, path, overrides)
    folder = Path(path).parent
    file = suite.paper.file and str(folder / suite.paper.file)
    return replace(suite, base=str(folder / suite.base), paper=replace(suite.paper, file=file))


def published_values(suite: SuiteConfig) -> list[list[float | None]]:
    """Return what others report, in %, row by row; None for a cell that they do not have.

    Raises:
        ConfigError: the file has no such table.

    """
    table: list[Mapping[str, Any]] = []
    if suite.paper.file:
        tables: Any = OmegaConf.to_container(read_file(suite.paper.file))
        if suite.paper.table not in tables:
            raise ConfigError(f"paper.table: found {suite.paper.table!r}, allowed: {', '.join(tables)}")
        table = tables[suite.paper.table]

    def value(row: HeadConfig, column: HeadConfig) -> float | None:
        words = {**suite.paper.where, **row.set, **column.set}
        found = (cell for cell in table if all(cell.get(key) == word for key, word in words.items()))
        return next(found, {}).get(column.published)

    return [[value(row, column) for column in suite.columns] for row in suite.rows]
