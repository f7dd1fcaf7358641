from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentloom.errors import MediaError
from latentloom.media import process
from latentloom.media.decode import FrameReader
from latentloom.media.probe import probe

Make = Callable[..., Path]


@pytest.fixture
def clip(make_clip: Make) -> Path:
    return make_clip("keys.mp4", options={"g": "8", "bf": "3"})


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("crash", "crashed while decoding .*near frame 1[0-2].*SIGSEGV"),
        ("spin", "no progress for .*near frame 1[0-2]"),
    ],
)
def test_child_that_fails_is_an_error_and_the_next_read_works(
    clip: Path, monkeypatch: pytest.MonkeyPatch, read_number: Any, fault: str, said: str
) -> None:
    info = probe(clip)
    process.stop()
    monkeypatch.setenv("LATENTLOOM_MEDIA_FAULT", f"{fault}:12")
    monkeypatch.setenv("LATENTLOOM_MEDIA_INACTIVITY_SECONDS", "0.3")
    reader = FrameReader(clip, info)
    with pytest.raises(MediaError, match=said) as caught:
        reader.read(8, 16)
    assert str(clip) in str(caught.value)
    monkeypatch.delenv("LATENTLOOM_MEDIA_FAULT")
    if fault == "crash":
        assert [read_number(frame) for frame in reader.read(8, 16)] == list(range(8, 16))


def test_silence_without_work_is_stopped_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "ASLEEP_SECONDS", 0.3)
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(MediaError, match=r"no progress for 0.* while decoding 'a'"):
        process._Watch(os.getpid(), 0.3).wait(ours, "decoding 'a'", None)


def test_child_killed_between_reads_is_started_again(clip: Path, read_number: Any) -> None:
    reader = FrameReader(clip, probe(clip))
    reader.read(0, 4)
    child = process._slot().child
    assert child is not None
    os.kill(child.process.pid, signal.SIGKILL)
    child.process.wait()
    assert read_number(reader.read(9, 10)[0]) == 9


@pytest.mark.usefixtures("fresh_child")
def test_memory_limit_stops_a_hungry_file(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = probe(clip)
    process.stop()
    monkeypatch.setenv("LATENTLOOM_MEDIA_MEMORY_BYTES", str(400 << 20))
    with pytest.raises(MediaError, match=r"decoding .*keys.mp4.*memory limit"):
        FrameReader(clip, info, width=3000, height=3000, fit="stretch", high_bit_depth=True).read(
            0, 1
        )
    assert len(FrameReader(clip, info).read(0, 2)) == 2


def test_threads_take_turns(clip: Path, read_number: Any) -> None:
    info = probe(clip)
    shared = FrameReader(clip, info)

    def work(number: int) -> bool:
        reader = shared if number % 2 else FrameReader(clip, info)
        start = number * 3 % 30
        frames = reader.read(start, start + 6)
        return [read_number(frame) for frame in frames] == list(range(start, start + 6))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(16)))


def test_call_costs_little(clip: Path) -> None:
    reader = FrameReader(clip, probe(clip))
    reader.read(0, 1)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        reader.read(0, 1)
        seconds.append(time.perf_counter() - start)
    assert np.median(seconds) < 0.1


def test_child_dies_with_its_parent(clip: Path) -> None:
    code = (
        "import sys, time; from latentloom.media.probe import probe; "
        "from latentloom.media import process; probe(sys.argv[1]); "
        "print(process._slot().child.process.pid, flush=True); time.sleep(60)"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(clip)], stdout=subprocess.PIPE, env=environ
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "Z":
            break
        time.sleep(0.02)
    else:
        assert not Path(f"/proc/{child}").exists()
