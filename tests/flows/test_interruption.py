import os
import signal
import threading

import pytest

from latentloom.flows.interruption import interruption, listen_again
from latentloom.tasks.stop import STOP_FILE, stop_requested


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_asks_for_a_stop_and_says_so(number: signal.Signals) -> None:
    told: list[bool] = []
    with interruption(lambda: told.append(stop_requested())):
        assert not stop_requested()
        os.kill(os.getpid(), number)
        assert stop_requested()
    assert told == [True]


def test_afterwards_all_is_as_before() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interruption():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
    assert STOP_FILE not in os.environ
    assert not stop_requested()


def test_a_handler_that_prefect_replaced_is_taken_back() -> None:
    with interruption():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        listen_again()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop_requested()


def test_other_threads_get_a_stop_file_but_no_handler() -> None:
    seen: list[object] = []

    def look() -> None:
        with interruption():
            listen_again()
            seen.extend([os.environ[STOP_FILE], signal.getsignal(signal.SIGINT)])

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert len(seen) == 2
    assert seen[1] is before


def test_without_a_run_nobody_asks_for_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STOP_FILE, raising=False)
    assert not stop_requested()
