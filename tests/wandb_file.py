"""Reads what an offline run of Weights & Biases wrote."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedpft.tracking.wandb_files import read_records


@dataclass(frozen=True)
class OfflineRun:
    """What an offline run's folder says, after `wandb.teardown()`."""

    folder: Path
    records: list[Any]

    @classmethod
    def in_folder(cls, folder: Path) -> "OfflineRun":
        return cls(folder, list(read_records(next(folder.glob("*.wandb")))))

    @property
    def run(self) -> Any:
        """Who it is: `run_group`, `job_type`, `tags`, ..."""
        return next(record.run for record in self.records if record.HasField("run"))

    @property
    def config(self) -> dict[str, Any]:
        return {item.key: json.loads(item.value_json) for item in self.run.config.update}

    @property
    def history(self) -> dict[str, Any]:
        """Name -> value logged last; `table/path` for what has parts."""
        return self._items("history", "item")

    @property
    def summary(self) -> dict[str, Any]:
        return self._items("summary", "update")

    @property
    def metrics(self) -> dict[str, Any]:
        """Name, or names with a `*` -> definition of the metric."""
        found = (record.metric for record in self.records if record.HasField("metric"))
        return {metric.name or metric.glob_name: metric for metric in found}

    @property
    def artifacts(self) -> list[Any]:
        """In the order in which they were logged, without those that W&B makes of tables."""
        found = (record.artifact for record in self.records if record.HasField("artifact"))
        return [artifact for artifact in found if not artifact.type.startswith("wandb-")]

    def _items(self, kind: str, field: str) -> dict[str, Any]:
        updates = (item for r in self.records if r.HasField(kind) for item in getattr(getattr(r, kind), field))
        return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in updates}
