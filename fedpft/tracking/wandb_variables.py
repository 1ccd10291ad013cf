"""Environment variables of W&B that ask for something else than a run's settings, which decide."""

import os
import warnings

from fedpft.config import TrackingConfig

NOT_FOLLOWED = {
    "WANDB_MODE": "tracking.wandb",
    "WANDB_DISABLED": "tracking.wandb",
    "WANDB_PROJECT": "tracking.project",
    "WANDB_JOB_TYPE": "tracking.job_type",
    "WANDB_TAGS": "tracking.tags",
    "WANDB_NAME": "name",
    "WANDB_DIR": "output_dir",
    "WANDB_RUN_ID": "resume",
    "WANDB_RESUME": "resume",
}
"""Variable of W&B's -> the setting that decides in its place."""

_YES = ("true", "1", "yes", "y", "on", "t")


def tell_what_is_not_followed(tracking: TrackingConfig) -> None:
    """Warn of the variables that ask for something else than the settings."""
    asked = {name: value for name in NOT_FOLLOWED if (value := os.environ.get(name))}
    if asked.get("WANDB_MODE") == tracking.wandb_mode:
        del asked["WANDB_MODE"]
    if (asked.get("WANDB_DISABLED", "").lower() in _YES) == (tracking.wandb_mode == "disabled"):
        asked.pop("WANDB_DISABLED", None)
    if tracking.wandb_mode == "disabled":
        asked = {name: value for name, value in asked.items() if NOT_FOLLOWED[name] == "tracking.wandb"}
    if asked:
        listed = ", ".join(f"{name}={value} ({NOT_FOLLOWED[name]})" for name, value in asked.items())
        warnings.warn(f"not followed, these settings decide instead: {listed}", stacklevel=3)
