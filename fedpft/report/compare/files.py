"""What `fedpft compare` writes."""

from pathlib import Path

from fedpft.report.compare.comparison import Comparison
from fedpft.report.compare.page import compare_page
from fedpft.storage.output import claim_output_dir, write_json

JSON_FILE = "compare.json"


def write_comparison(comparison: Comparison, folder: Path) -> dict[str, Path]:
    """Write the page and its numbers; an earlier comparison in the folder is moved to `NAME.1`, `NAME.2`, ...

    Returns:
        What -> where: `page`, `json`.

    Raises:
        ConfigError: the folder cannot be written.

    """
    html = compare_page(comparison)
    folder = claim_output_dir(folder, JSON_FILE)
    paths = {"page": folder / "compare.html", "json": folder / JSON_FILE}
    paths["page"].write_text(html, encoding="utf-8")
    write_json(paths["json"], comparison.as_json())
    return paths
