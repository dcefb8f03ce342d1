"""When the watchdog is fed, and when not."""

import threading

import pytest

from shoal.agent.supervisor import Progress, Supervisor


def test_a_run_that_never_ends_is_no_progress_and_a_series_of_runs_is() -> None:
    computing = threading.Lock()
    progress = Progress(computing)
    assert progress(), "it has only begun"
    assert progress(), "it idles"
    with computing:
        progress.ran()
        assert progress(), "a run has ended, the next one is under way"
        assert not progress(), "and that one does not end"
        assert not progress()
    assert progress()


@pytest.mark.parametrize(
    ("environment", "expected_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "60000000"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_what_the_supervisor_wants(environment: dict[str, str], expected_s: float | None) -> None:
    assert Supervisor(environment).watchdog_s == expected_s


def test_nobody_to_talk_to_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    Supervisor({}).say(READY="1")
    assert caplog.text == ""
    Supervisor({"NOTIFY_SOCKET": "@shoal-nobody-listens-here"}).say(READY="1")
    assert "does not hear us" in caplog.text
