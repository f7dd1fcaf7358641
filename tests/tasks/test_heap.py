"""Memory that chunks leave free goes back to the system, now and then."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from latentloom.tasks import heap

# 64 MiB in blocks, freed below a last one that stays: the heap cannot shrink from its end.
_LEAVE_A_HOLE = """
import ctypes
from latentloom.tasks import heap

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
assert libc.mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD: blocks come from the heap

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 >> 20

blocks = [libc.malloc(1 << 20) for _ in range(64)]
for block in blocks:
    ctypes.memset(block, 1, 1 << 20)
assert libc.malloc(1 << 20)
for block in blocks:
    libc.free(block)
before = resident()
heap._trimmed -= heap.SECONDS_BETWEEN
heap.give_back_memory()
print(before - resident())
"""


# malloc_trim is glibc's; the last test here covers other C libraries.
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other heaps")
def test_a_hole_in_the_heap_goes_back() -> None:
    command = [sys.executable, "-c", _LEAVE_A_HOLE]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 60


def test_it_is_done_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(heap, "_trim", calls.append)
    monkeypatch.setattr(heap, "_trimmed", heap._trimmed - heap.SECONDS_BETWEEN)
    heap.give_back_memory()
    heap.give_back_memory()
    assert calls == [0]


def test_a_c_library_without_it_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_trim", None)
    before = heap._trimmed
    heap.give_back_memory()
    assert heap._trimmed == before
