"""Progress in a notebook: one output that changes in place."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from fedpft.federated.messages import ClientFailure
from fedpft.report import notebook
from fedpft.report.notebook import NotebookScreen

RECORD = {
    "round": 1, "clients": [0, 1], "train_loss": 0.5, "lr": 1e-3, "seconds": 1.0, "metric": "accuracy", "fm": 0.75,
}  # fmt: skip


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return all that the one output of a pretended notebook showed, in order."""
    outputs: list[str] = []
    display = ModuleType("IPython.display")
    display.HTML = str  # type: ignore[attr-defined]
    display.display = lambda html, display_id: SimpleNamespace(update=outputs.append)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(notebook, "_MIN_UPDATE_SECONDS", 0)
    return outputs


def test_bars_come_and_go_and_lines_stay(shown: list[str]) -> None:
    with NotebookScreen() as screen:
        screen.stage("align <layers>")
        screen.progress(2, 5, {"loss": 0.25})
        assert "align &lt;layers&gt;" in shown[-1]
        assert "value='2' max='5'" in shown[-1]
        assert "loss 0.250" in shown[-1]
        screen.run_started({"metric": "accuracy", "fm": 0.5})
        screen.round_started(1, 3, [0, 1])
        update: Any = SimpleNamespace(client_id=1, metrics={"loss": 0.5})
        screen.client_finished(update)
        assert "client 1" in shown[-1]
        where = {"round_index": 1, "attempts": 1, "actor": "a", "node": "n"}
        screen.client_failed(ClientFailure(client_id=0, reason="<out of memory>", traceback="Traceback: x", **where))
        assert "&lt;out of memory&gt;" in shown[-1]
        screen.round_finished(RECORD)
        assert "value='1' max='3'" in shown[-1]
    assert "<progress" not in shown[-1]
    assert "round 1/3" in shown[-1]
    assert "fm 75.0 %" in shown[-1]
    assert "done" in shown[-1]


def test_a_run_that_fails_says_that_it_stopped(shown: list[str]) -> None:
    with pytest.raises(ValueError, match="x"), NotebookScreen():
        raise ValueError("x")
    assert "stopped" in shown[-1]
