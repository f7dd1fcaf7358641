"""Video files <-> numpy frames, in a child process: the only home of av."""
