"""What processes of ours set for themselves before their work."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

# What is tested is a setting of glibc; elsewhere the function does nothing.
on_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other C libraries have other heaps"
)

# Ten threads allocate at the same time; glibc then tells of its heaps.
_COUNT_HEAPS = """
import ctypes, sys, tempfile, threading
from latentloom.flows.environment import keep_heap_small

keep_heap_small()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
libc.fclose.argtypes = [ctypes.c_void_p]
together = threading.Barrier(10)

def allocate():
    together.wait()
    assert libc.malloc(4096)
    together.wait()

threads = [threading.Thread(target=allocate) for _ in range(10)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
with tempfile.NamedTemporaryFile() as file:
    stream = libc.fopen(file.name.encode(), b"w")
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    print(file.read().count(b"<heap nr="))
"""


# By default glibc keeps in the heap what is as large as something that was freed, and with a threshold
# of our own gives back its end at once. Two digits: large arrays that are not in the heap, and whether its
# end stays.
_COUNT_MAPPED = """
import ctypes
from latentloom.flows.environment import keep_heap_small

class Mallinfo(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_int) for name in names.split()]

keep_heap_small()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.mallinfo.restype = Mallinfo
mapped_before = libc.mallinfo().hblks
libc.free(libc.malloc(8 << 20))
assert libc.malloc(8 << 20)
blocks = [libc.malloc(1 << 20) for _ in range(20)]
for block in blocks:
    libc.free(block)
print(f"{libc.mallinfo().hblks - mapped_before}{int(libc.mallinfo().keepcost >= 20 << 20)}")
"""


@on_glibc
def test_threads_share_one_heap() -> None:
    assert _print(_COUNT_HEAPS, {}) == 1


@on_glibc
def test_large_arrays_do_not_lie_in_the_heap_and_small_ones_leave_it_as_it_is() -> None:
    assert _print(_COUNT_MAPPED, {}) == 11


@on_glibc
def test_numbers_that_the_user_set_stay() -> None:
    assert _print(_COUNT_HEAPS, {"MALLOC_ARENA_MAX": "4"}) == 4
    assert _print(_COUNT_MAPPED, {"MALLOC_MMAP_THRESHOLD_": str(16 << 20)}) == 1
    assert _print(_COUNT_MAPPED, {"MALLOC_TRIM_THRESHOLD_": str(1 << 20)}) == 10


def _print(code: str, changes: dict[str, str]) -> int:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=inherited | changes,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)
