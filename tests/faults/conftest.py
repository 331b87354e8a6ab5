"""The counts of what was tried, printed at the end."""

import collections
from collections.abc import Callable

import pytest

FAULT = "fault"


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Notes that something was tried, and what came of it."""
    return lambda kind, outcome: request.node.user_properties.append((FAULT, [kind, outcome]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, value in report.user_properties if report.when == "call" else ():
            if name == FAULT:
                counts[value[0]][value[1]] += 1
    if counts:
        terminalreporter.section("faults")
    for kind, outcomes in sorted(counts.items()):
        told = ", ".join(f"{n} {outcome}" for outcome, n in sorted(outcomes.items()))
        terminalreporter.line(f"{kind}: {outcomes.total()} tried: {told}")
