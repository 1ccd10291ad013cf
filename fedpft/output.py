"""The output folder: claimed once, files written whole or not at all."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedpft.config import ConfigError


def claim_output_dir(output_dir: Path) -> Path:
    """Create the folder for a new run; a folder that already holds a run is moved to `NAME.1`, `NAME.2`, ...

    Raises:
        ConfigError: the folder cannot be written.

    """
    try:
        if (output_dir / "config.yaml").exists():
            number = 1
            while (kept := output_dir.with_name(f"{output_dir.name}.{number}")).exists():
                number += 1
            output_dir.rename(kept)
        output_dir.mkdir(parents=True, exist_ok=True)
        if not os.access(output_dir, os.W_OK):
            raise PermissionError(f"no permission to write {output_dir}")
    except OSError as error:
        raise ConfigError(
            f"output_dir: found {str(output_dir)!r}, allowed: a folder that can be written; {error}"
        ) from None
    return output_dir


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(path)
