"""Where a run's numbers go, and who hears of its end."""

import re
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import urlsplit

from fedpft.config.checks import require
from fedpft.config.plugins import is_own

SERVICES = ("wandb", "tensorboard", "mlflow", "trackio", "csv")
"""Values of `tracking.to`."""

_VARIABLE = re.compile(r"\$[A-Za-z_]\w*")


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where a run's numbers go; `rounds.jsonl` and `result.json` are written whatever this says."""

    to: tuple[str, ...] = ("wandb",)
    """Services that get the run's numbers: any of `wandb`, `tensorboard`, `mlflow`, `trackio`, `csv`, several at
    the same time; `[]` means none. Each writes into a folder of its own name in `output_dir`, but `trackio` into
    `$TRACKIO_DIR`, where Trackio looks for all runs."""
    wandb: Literal["offline", "online", "disabled"] = "offline"
    """How W&B works. `offline` records into `output_dir/wandb` without an account; `online` sends while the run goes
    on; `disabled` does as if `to` did not name it."""
    mlflow_uri: str | None = None
    """MLflow's tracking server or database. null takes `$MLFLOW_TRACKING_URI`, else SQLite in `output_dir/mlflow`."""
    notify: str | None = None
    """A web address that gets a JSON object by POST when the run ends, fails or is stopped, and when its memory keeps
    growing. `$NAME` names an environment variable that holds the address, so that no file of the run does."""
    project: str = "fedpft"
    """Project in W&B and Trackio, experiment in MLflow."""
    entity: str | None = None
    """User or team that owns W&B's project. null takes the account's own."""
    group: str | None = None
    """The run's group in W&B and Trackio. A sweep's trials have the sweep's name."""
    job_type: str | None = None
    """The run's job type in W&B. null takes `run`; a sweep's trials have `trial`."""
    tags: tuple[str, ...] = ()
    """Tags of the run, beside the names of its method and task."""
    also: tuple[str, ...] = ()
    """Trackers of your own, `module:Class` or a plug-in's name. Each is made with (config, output_dir)."""

    def __post_init__(self) -> None:
        for name in self.to:
            require(name in SERVICES, "tracking.to", name, f"a list of any of {', '.join(SERVICES)}")
        for name in self.also:
            require(is_own("tracker", name), "tracking.also", name, "module:Class or a plug-in's name")
        require(self.mlflow_uri != "", "tracking.mlflow_uri", self.mlflow_uri, "null or an address")
        if self.notify is not None and not _VARIABLE.fullmatch(self.notify):
            require(
                is_web_address(self.notify), "tracking.notify", shown_url(self.notify), "null, http(s)://..., $NAME"
            )

    def shown(self) -> "TrackingConfig":
        """Return the settings as anybody may read them."""
        uri, notify = self.mlflow_uri, self.notify
        return replace(self, mlflow_uri=uri and shown_url(uri), notify=notify and shown_url(notify))

    @property
    def services(self) -> tuple[str, ...]:
        """Those of `to` that are used, each once."""
        return tuple(name for name in dict.fromkeys(self.to) if name != "wandb" or self.wandb != "disabled")

    @property
    def wandb_mode(self) -> Literal["offline", "online", "disabled"]:
        """What W&B is to do."""
        return self.wandb if "wandb" in self.to else "disabled"


def is_web_address(url: str) -> bool:
    """Whether a text is a whole `http://` or `https://` address."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, half an IPv6 address
        return False


def shown_url(url: str) -> str:
    """Return an address as it may be read by anybody: of one on the network its host alone, with `***` for the rest.

    Users, passwords and keys are parts of addresses, of many webhooks the path is the key.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return "***"
    if not parts.netloc:
        return url if "@" not in url else "***"
    place = f"{parts.scheme}://{host or ''}{f':{port}' if port else ''}"
    return place if place == url.rstrip("/") else f"{place}/***"
