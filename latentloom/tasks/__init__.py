"""One stage on one chunk: open, call, write. One file per stage."""
