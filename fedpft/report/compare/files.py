"""What `fedpft compare` writes."""

from collections.abc import Callable
from pathlib import Path

from fedpft.report.compare.comparison import Comparison
from fedpft.report.compare.page import compare_page
from fedpft.report.compare.record import comparison_json
from fedpft.storage.output import Kind, claim_output_dir, write_json, write_text

JSON_FILE, PAGE_FILE = "compare.json", "compare.html"
COMPARISON = Kind(what="comparison", marker=JSON_FILE, others=(PAGE_FILE,), is_shared=True)


def write_comparison(
    comparison: Comparison, folder: Path, say: Callable[[str], None] = lambda line: None
) -> dict[str, Path]:
    """Write the page and its numbers; one that is there is moved to `NAME.1`, `NAME.2`, ..., which `say` is told.

    Returns:
        What -> where: `page`, `json`.

    Raises:
        ConfigError: the folder cannot be written.

    """
    html = compare_page(comparison)
    folder = claim_output_dir(folder, COMPARISON, say)
    paths = {"page": folder / PAGE_FILE, "json": folder / JSON_FILE}
    write_json(paths["json"], comparison_json(comparison))
    write_text(paths["page"], html)
    return paths
