from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from latentloom.errors import MediaError, PolicyError, ResourceError, UsageError
from latentloom.storage.localize import localize


def put(uri: str, data: bytes) -> None:
    fs, path = fsspec.url_to_fs(uri, use_listings_cache=False)
    fs.pipe_file(path, data)


def test_a_local_file_is_used_as_it_is(tmp_path: Path) -> None:
    clip = tmp_path / "a clip.mp4"
    clip.write_bytes(b"x")
    assert localize(str(clip), tmp_path / "cache") == clip
    assert localize(f"file://{tmp_path}/a%20clip.mp4", tmp_path / "cache") == clip
    assert not (tmp_path / "cache").exists()


def test_a_remote_file_is_downloaded_once_for_each_version(s3_uri: str, tmp_path: Path) -> None:
    uri = f"{s3_uri}/clip.mp4"
    put(uri, b"one")
    first = localize(uri, tmp_path / "cache")
    assert first.suffix == ".mp4"
    stamp = first.stat().st_mtime_ns
    assert localize(uri, tmp_path / "cache") == first
    assert first.stat().st_mtime_ns == stamp
    put(uri, b"two")
    second = localize(uri, tmp_path / "cache")
    assert (first.read_bytes(), second.read_bytes()) == (b"one", b"two")
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize(
    "uri", ["ftp://host/x.mp4", "zip://x::file:///a.zip", "simplecache::s3://b/x", "github://a/b"]
)
def test_a_scheme_that_is_not_allowed_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="not allowed"):
        localize(uri, tmp_path)


def test_a_missing_file_is_a_media_error(s3_uri: str, tmp_path: Path) -> None:
    for uri in (f"{s3_uri}/none.mp4", "memory://none.mp4", str(tmp_path / "none.mp4")):
        with pytest.raises(MediaError, match="there is no video"):
            localize(uri, tmp_path / "cache")


def test_a_folder_is_no_video(s3_uri: str, tmp_path: Path) -> None:
    put(f"{s3_uri}/folder/clip.mp4", b"x")
    with pytest.raises(MediaError, match="is a folder"):
        localize(f"{s3_uri}/folder", tmp_path / "cache")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(28, "no space"), ResourceError),
        (OSError(5, "network"), MediaError),
        (RuntimeError("client"), MediaError),
        (ImportError("install adlfs"), UsageError),
    ],
)
def test_a_download_that_fails_leaves_nothing(
    error: Exception, expected: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put("memory://clip.mp4", b"data")
    fs = fsspec.filesystem("memory", use_listings_cache=False)

    def fail(path: str, target: str) -> None:
        Path(target).write_bytes(b"da")
        raise error

    monkeypatch.setattr(type(fs), "get_file", lambda self, path, target: fail(path, target))
    with pytest.raises(expected):
        localize("memory://clip.mp4", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_download_that_breaks_off_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put("memory://clip.mp4", b"data")
    fs = fsspec.filesystem("memory", use_listings_cache=False)
    monkeypatch.setattr(type(fs), "get_file", lambda *args: Path(args[2]).write_bytes(b"da"))
    with pytest.raises(MediaError, match="broke off after 2 of 4 bytes"):
        localize("memory://clip.mp4", tmp_path / "cache")
