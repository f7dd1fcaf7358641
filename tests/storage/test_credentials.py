"""Options of remote file systems that do not come from the environment of the user."""

from __future__ import annotations

import os
import subprocess
import sys

import fsspec.config
import pytest
from pydantic import JsonValue

from latentloom.errors import StoreError, UsageError
from latentloom.storage.credentials import use_options
from latentloom.storage.store import Store

AWS = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
OPEN = "import sys; from latentloom.storage.store import Store; Store.open(sys.argv[1])"


def test_options_open_a_store_here_and_in_child_processes(
    s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    endpoint = os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.setenv("FSSPEC_S3", "{}")
    monkeypatch.setitem(fsspec.config.conf, "s3", {})
    for name in AWS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    s3fs.S3FileSystem.clear_instance_cache()

    secrets: dict[str, JsonValue] = {
        "key": "testing",
        "secret": "testing",
        "endpoint_url": endpoint,
    }
    use_options({"s3": secrets}, source="block night")
    assert Store.open(s3_uri).runs() == []
    subprocess.run([sys.executable, "-c", OPEN, s3_uri], check=True, timeout=120)

    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": endpoint})
    with pytest.raises(StoreError, match="redential"):
        Store.open(s3_uri)


@pytest.mark.parametrize("options", [{"key": "hidden"}, {"ftp": {"password": "hidden"}}])
def test_options_of_another_form_are_refused_and_not_shown(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="block night has to hold options by scheme") as caught:
        use_options(options, source="block night")  # type: ignore[arg-type]  # what a user may write
    assert "hidden" not in str(caught.value)
