"""Notifications, to a real HTTP server. Their addresses are secrets."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from latentloom.errors import InterruptedRunError, MediaError, UsageError
from latentloom.flows.notify import Ending, announced, ending_of_batch, notifying
from latentloom.schemas.settings import NOTIFY, NOTIFY_ON, load_settings
from tests.webhook import SECRET, Webhook, listening


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    monkeypatch.delenv(NOTIFY_ON, raising=False)
    with listening() as server:
        monkeypatch.setenv(NOTIFY, f"http://{server.place}")
        yield server


def run_ending() -> Ending:
    return Ending("run", "01J", "clip.mp4 / night", "latentloom resume 01J --store s")


def fail(error: BaseException) -> None:
    with pytest.raises(type(error)), announced(run_ending()):
        raise error


def test_webhook_is_told_of_a_finished_run(webhook: Webhook) -> None:
    with announced(run_ending()) as ending:
        ending.summary = "3 chunks computed, 1 reused: out.mp4"
    ((path, told),) = webhook.received
    assert path == f"/{SECRET}"
    assert (told["kind"], told["name"], told["state"]) == ("run", "01J", "finished")
    assert told["title"] == "latentloom: clip.mp4 / night finished"
    assert told["seconds"] >= 0
    assert "3 chunks computed, 1 reused: out.mp4" in told["text"]
    assert "Continue with" not in told["text"]


def test_webhook_is_told_why_a_run_failed_and_what_continues_it(webhook: Webhook) -> None:
    fail(MediaError("no frame 7"))
    (told,) = webhook.messages
    assert (told["state"], told["summary"]) == ("failed", "no frame 7")
    assert told["resume"] == "latentloom resume 01J --store s"
    assert told["resume"] in told["text"]


def test_apprise_address_gets_the_same_text(
    webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(NOTIFY, f"json://{webhook.place}")
    fail(MediaError("no frame 7"))
    (told,) = webhook.messages
    assert (told["title"], told["type"]) == ("latentloom: clip.mp4 / night failed", "failure")
    assert "no frame 7" in told["message"]
    assert "latentloom resume 01J" in told["message"]


def test_long_list_of_failures_is_cut_in_the_text_only(webhook: Webhook) -> None:
    with announced(ending_of_batch("night batch.yaml", "s")) as ending:
        ending.state, ending.failures = "failed", [f"{n}.mp4: damaged" for n in range(25)]
    (told,) = webhook.messages
    assert len(told["failures"]) == 25
    assert "9.mp4: damaged\nand 15 more" in told["text"]
    assert f"latentloom batch '{Path.cwd() / 'night batch.yaml'}' --store s" in told["text"]


def test_nobody_is_told_of_what_its_user_stopped(webhook: Webhook) -> None:
    fail(InterruptedRunError("stopped"))
    assert webhook.messages == []


def test_only_failures_are_told_where_only_they_are_asked_for(
    webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(NOTIFY_ON, "failure")
    with announced(run_ending()):
        pass
    assert webhook.messages == []
    fail(MediaError("no frame 7"))
    assert len(webhook.messages) == 1


@pytest.mark.parametrize("scheme", ["http", "json"])
@pytest.mark.parametrize("fault", ["refused by", "not there"])
def test_notification_that_fails_is_a_warning_without_its_address(
    webhook: Webhook,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    scheme: str,
    fault: str,
) -> None:
    webhook.status = 500
    place = webhook.place if fault == "refused by" else f"127.0.0.1:9/{SECRET}"
    monkeypatch.setenv(NOTIFY, f"{scheme}://{place}")
    caplog.set_level(logging.DEBUG)
    with announced(run_ending()):
        pass
    (warning,) = [record for record in caplog.records if record.name == "latentloom"]
    assert warning.levelname == "WARNING"
    assert f"notification 1 ({scheme}://) was not sent" in caplog.text
    assert SECRET not in caplog.text


def test_one_dead_address_keeps_no_message_from_the_others(
    webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(NOTIFY, f"http://127.0.0.1:9/x http://{webhook.place}")
    with announced(run_ending()):
        pass
    assert len(webhook.messages) == 1


@pytest.mark.parametrize("address", [f"nonsense-{SECRET}", f"slack://{SECRET}", f"ftpx://{SECRET}"])
def test_address_that_nothing_can_be_sent_to_is_refused_and_not_shown(
    webhook: Webhook, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        pytest.raises(UsageError, match="address 2 to notify") as caught,
        notifying([f"http://{webhook.place}", address], None),
    ):
        raise AssertionError
    assert SECRET not in str(caught.value) + caplog.text


def test_flag_beats_environment_beats_config_file(
    webhook: Webhook, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"notify: ['http://{webhook.place}/file']\nnotify_on: failure\n")
    monkeypatch.setenv("LATENTLOOM_CONFIG", str(config))
    fail(MediaError("x"))
    monkeypatch.delenv(NOTIFY)
    fail(MediaError("x"))
    with notifying([f"http://{webhook.place}/flag"], "always"), announced(run_ending()):
        pass
    ends = [path.rpartition(SECRET)[2] for path, _ in webhook.received]
    assert ends == ["", "/file", "/flag"]
    assert SECRET not in repr(load_settings(config))


def test_faulty_config_file_does_not_fail_the_run(
    webhook: Webhook,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "config.yaml").write_text("notify_on: never\n")
    monkeypatch.setenv("LATENTLOOM_CONFIG", str(tmp_path / "config.yaml"))
    with announced(run_ending()):
        pass
    assert "nobody is notified" in caplog.text
