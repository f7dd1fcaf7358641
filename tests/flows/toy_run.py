"""A program that runs a toy flow on the engine, for tests to watch, to interrupt and to kill.

Usage: toy_run.py WORKERS ACTION [ACTION ...]; each action is one task of the flow. The last line
of stdout is a JSON object: the failures by index, and whether a stop was requested.
"""

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path

from latentloom.errors import MediaError
from latentloom.flows import engine
from latentloom.tasks.stop import stop_requested

# Prefect reads its settings when it is imported.
engine.quiet_environment()

from prefect import flow, task  # noqa: E402
from prefect.cache_policies import NO_CACHE  # noqa: E402


@task(cache_policy=NO_CACHE, persist_result=False)
def act(action: str) -> str:
    """Do what the action says."""
    logging.getLogger("latentloom.toy").info("%s in %s", action, os.getpid())
    if action == "fail":
        raise MediaError("no such video")
    if action == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if action.startswith("die-once:"):
        flag = Path(action.partition(":")[2])
        if not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    if action == "wait":
        print("waiting", flush=True)
        deadline = time.monotonic() + 60
        deaf = "LATENTLOOM_TEST_DEAF" in os.environ
        while (deaf or not stop_requested()) and time.monotonic() < deadline:
            time.sleep(0.05)
    return action


@flow
def act_all(actions: list[str]) -> dict[str, str]:
    """Run all actions and tell which failed, and how."""
    failures = engine.settle([act.submit(action) for action in actions])
    return {str(failure.index): type(failure.error).__name__ for failure in failures}


def main() -> None:
    """Run the flow on as many workers as the command line says."""
    if "LATENTLOOM_TEST_LOG" in os.environ:
        logging.getLogger("latentloom").setLevel(logging.INFO)
    with engine.session(workers=int(sys.argv[1])) as session:
        failures = act_all.with_options(task_runner=session.runner)(sys.argv[2:])
        print(json.dumps({"failures": failures, "stopped": stop_requested()}), flush=True)


if __name__ == "__main__":
    main()
