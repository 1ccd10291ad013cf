"""What a finished run leaves, as an object to look at and to go on with."""

import json
from collections.abc import Mapping
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from safetensors.torch import load_file
from torch import Tensor

from fedpft.api.quiet import quiet_libraries
from fedpft.config import Config
from fedpft.report.scores import score_rows
from fedpft.report.wording import duration
from fedpft.run.finished import finished_run, tuned_fm, tuned_sub_fm
from fedpft.storage.output import ROUNDS_FILE

if TYPE_CHECKING:
    from fedpft.models.lora import AdaptedModel


def load_result(path: str | Path) -> "Result":
    """Open the folder of a finished run.

    Args:
        path: the run's `output_dir`.

    Raises:
        ConfigError: there is no run, or it has not ended.

    """
    return Result(path)


class Result:
    """A finished run.

    Numbers are read when the object is made; models are loaded each time they are asked for, so that what you do with
    one changes nothing else.

    Args:
        path: the run's `output_dir`.

    Raises:
        ConfigError: there is no run, or it has not ended.

    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()
        """The run's folder."""
        self.config: Config
        """All settings, resolved."""
        self.config, self.summary = finished_run(self.path)

    @property
    def metrics(self) -> Mapping[str, Mapping[str, float]]:
        """Scores after the last round by model (`untuned_fm`, `sub_fm`, the plugged-in `fm`), then by metric."""
        return self.summary["metrics"]

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """One row a round, indexed by it: `train_loss`, `lr`, `seconds`, `clients/...`; `fm`, `sub_fm` where evaluated.

        Nested numbers have dotted columns, e.g. `metrics.fm.macro_f1`.
        """
        lines = (self.path / ROUNDS_FILE).read_text(encoding="utf-8").splitlines()
        return pd.json_normalize([json.loads(line) for line in lines]).set_index("round")

    @property
    def adapter(self) -> dict[str, Tensor]:
        """The tuned LoRA and head tensors by PEFT's names, as they lie in `adapter/`; read anew each time."""
        return load_file(self.path / "adapter" / "adapter_model.safetensors")

    def tuned_fm(self) -> "AdaptedModel":
        """Return the plugged-in FM: the untuned one, loaded again, with the adapter in it, in eval mode.

        `merge_and_unload()` of it gives the plain transformers model.

        Raises:
            ConfigError: the FM cannot be loaded again.

        """
        with quiet_libraries():
            return tuned_fm(self.path, self.config, self.summary)

    def sub_fm(self) -> "AdaptedModel":
        """Return the sub-FM with the adapter in it, in eval mode: what a client could run.

        Raises:
            ConfigError: a run without sub-FM (`method.name: full`).

        """
        with quiet_libraries():
            return tuned_sub_fm(self.path)

    def __repr__(self) -> str:
        """Say what it is in one line."""
        name, method, rounds = (self.summary[key] for key in ("name", "method", "rounds"))
        scores = ", ".join(f"{title} {value}" for title, value, _ in score_rows(self.summary))
        return f"Result({name}: {method}, {rounds} rounds; {scores}; {self.path})"

    def _repr_html_(self) -> str:
        """Show the scores as a table, with a link to the run's page."""
        cells = "".join(
            f"<tr><td style='text-align:left'>{escape(title)}</td><td>{escape(value)}</td><td>{escape(note)}</td></tr>"
            for title, value, note in score_rows(self.summary)
        )
        name, method, rounds = (self.summary[key] for key in ("name", "method", "rounds"))
        head = f"{name}: {method}, {rounds} rounds, {duration(self.summary['wall_seconds'])}"
        page = self.path / "report.html"
        link = f"<a href='{page.as_uri()}'>report.html</a>" if page.exists() else ""
        return f"<div><b>{escape(head)}</b><table>{cells}</table><code>{escape(str(self.path))}</code> {link}</div>"
