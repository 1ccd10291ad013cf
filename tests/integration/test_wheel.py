"""The package as users install it: a wheel, away from the repository."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build sdist and, from it, wheel; return a folder with nothing but the wheel's content."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    for name in tracked.stdout.decode().split():
        if name.startswith(("fedpft/", "pyproject", "README", "LICENSE", "setup.cfg")) and (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    assert len(list(folder.glob("*.tar.gz"))) == 1
    target = folder / "site"
    zipfile.ZipFile(wheel).extractall(target)  # all that an installation does with a wheel without compiled code
    return target


def test_a_started_folder_runs_without_the_repository(installed: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}

    def fedpft(*arguments: str, cwd: Path) -> str:
        command = [sys.executable, "-P", "-m", "fedpft.cli", *arguments]
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    fedpft("init", "digits", "start", cwd=tmp_path)
    small = [
        *("fm.pretrain.num_epochs=1", "align.layers.num_steps=2", "federated.rounds=1", "evaluation.interval=1"),
        *("task={name: digits, max_train_examples: 60, max_eval_examples: 40}", "pool.kind=sequential"),
        "tracking.wandb=disabled",
    ]
    said = fedpft("run", "config.yaml", *small, cwd=tmp_path / "start")
    assert "report" in said
    assert (tmp_path / "start/outputs/digits_vit/report.html").exists()
    where = [sys.executable, "-P", "-c", "import fedpft; print(fedpft.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert found.strip() == str(installed / "fedpft" / "__init__.py")


def test_the_wheel_has_what_the_code_reads(installed: Path) -> None:
    wanted = {path.relative_to(ROOT) for path in (ROOT / "fedpft").rglob("*") if path.is_file()}
    wanted = {path for path in wanted if "__pycache__" not in path.parts}
    assert {path for path in wanted if not (installed / path).exists()} == set()
    (information,) = installed.glob("fedpft-*.dist-info")
    assert "License-Expression: Apache-2.0" in (information / "METADATA").read_text()
    assert list(information.rglob("LICENSE"))
