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
from latentloom.flows.environment import use_one_heap

use_one_heap()
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


@on_glibc
def test_threads_share_one_heap() -> None:
    assert _count_heaps({}) == 1


@on_glibc
def test_a_number_that_the_user_set_stays() -> None:
    assert _count_heaps({"MALLOC_ARENA_MAX": "4"}) == 4


def _count_heaps(changes: dict[str, str]) -> int:
    inherited = {key: value for key, value in os.environ.items() if key != "MALLOC_ARENA_MAX"}
    command = [sys.executable, "-c", _COUNT_HEAPS]
    done = subprocess.run(
        command, env=inherited | changes, capture_output=True, text=True, check=True
    )
    return int(done.stdout)
