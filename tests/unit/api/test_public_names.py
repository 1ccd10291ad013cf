"""What `import fedpft` offers, and what it costs."""

import inspect
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

import fedpft


def test_importing_the_package_loads_no_heavy_library() -> None:
    heavy = ("torch", "transformers", "ray", "datasets", "lightning", "pandas", "omegaconf")
    code = f"import sys, fedpft; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", fedpft.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    thing = getattr(fedpft, name)
    assert name in dir(fedpft)
    assert inspect.getdoc(inspect.unwrap(thing)), name


def test_every_section_of_a_config_can_be_made_by_a_public_name() -> None:
    def sections(kind: Any) -> Iterator[str]:
        for entry in fields(kind):
            if is_dataclass(entry.default_factory):
                yield entry.default_factory.__name__
                yield from sections(entry.default_factory)

    assert not set(sections(fedpft.Config)) - set(fedpft.__all__)


def test_functions_that_share_a_name_with_a_folder_are_both() -> None:
    import fedpft.align.public
    import fedpft.run.pipeline
    from fedpft.api.models import align
    from fedpft.api.runs import run

    assert inspect.signature(fedpft.run) == inspect.signature(run)
    assert inspect.signature(fedpft.align) == inspect.signature(align)
    assert fedpft.run.pipeline.run is not run
    with pytest.raises(fedpft.ConfigError, match=r"nowhere\.yaml"):
        fedpft.run("nowhere.yaml")


def test_the_package_travels_by_name() -> None:
    for module in (fedpft, fedpft.run):
        assert pickle.loads(pickle.dumps(module)) is module


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'runn'"):
        fedpft.runn  # noqa: B018


def test_types_are_shipped() -> None:
    assert (Path(fedpft.__file__).parent / "py.typed").exists()
