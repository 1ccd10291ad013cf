"""No network; what every test shares, in the processes that run tests; skips that count as failures."""

import gc
import os
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
# with Ray's own 15, actors starve beside whatever else runs on the machine
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112

gc.disable()  # until all tests are collected: nothing goes away, and looking for that takes a quarter of the time

OUTSIDE = (
    "the authors' numbers are not at",
    "the authors' statistics are not",
    "no data at",
    "no real data at",
    "another system",
)
"""Reasons of skips that no installation can take away: data that are not part of the repository, another system."""


def pytest_configure(config: pytest.Config) -> None:
    """Import what tests share, and with it torch: seconds that a process that only hands out tests can do without."""
    hands_out = config.getoption("numprocesses", None) and not hasattr(config, "workerinput")
    if not hands_out:
        config.pluginmanager.import_plugin("tests.shared")


def pytest_collection_finish() -> None:
    """Take what was imported and collected out of the garbage collector's sight, which is on from here."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --golden and --no-skips."""
    parser.addoption("--no-skips", action="store_true", help="fail where a test is skipped that a full install runs")
    parser.addoption("--golden", action="store_true", help="print the differences to the numbers of the authors' code")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With --no-skips: fail for tests that were skipped although nothing but an installation is missing."""
    reporter = session.config.pluginmanager.getplugin("terminalreporter")
    if not session.config.getoption("--no-skips") or reporter is None:
        return
    reasons = {str(report.longrepr[2]) for report in reporter.getreports("skipped")}
    avoidable = sorted(reason for reason in reasons if not any(known in reason for known in OUTSIDE))
    if avoidable:
        reporter.section("skipped, which --no-skips does not allow")
        for reason in avoidable:
            reporter.write_line(reason)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print what the golden tests recorded."""
    if not config.getoption("--golden"):
        return
    terminalreporter.section("largest differences to the authors' code")
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        if report.when == "call":
            for what, value in report.user_properties:
                terminalreporter.write_line(f"{report.nodeid.rpartition('::')[2]}: {what}: {value}")
