"""Faults that tests ask for: LATENTLOOM_MEDIA_FAULT="crash:12" crashes the child at frame 12."""

from __future__ import annotations

import ctypes
import os


def strike(frame: int) -> None:
    """Do what the environment asks for at this frame; without it, nothing.

    Args:
        frame: Frame that is being worked on.
    """
    kind, _, at = _FAULT.partition(":")
    if not kind or frame != int(at):
        return
    if kind == "crash":
        ctypes.string_at(0)
    elif kind == "spin":
        while True:
            pass


_FAULT = os.environ.get("LATENTLOOM_MEDIA_FAULT", "")
