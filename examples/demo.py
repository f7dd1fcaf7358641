"""Edit a small video, kill the run half way, and resume it: ``make demo``.

Everything is written to ``demo/``, which git ignores and each demonstration starts anew.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LATENTLOOM = Path(sys.executable).with_name("latentloom")
FOLDER = Path("demo")
STORE = FOLDER / "store"
VIDEO = FOLDER / "edited.mp4"
PICTURE = FOLDER / "side-by-side.png"
RECIPE = [
    "examples/fldm.yaml",
    f"source.uri={FOLDER / 'clip.mp4'}",
    f"output.uri={VIDEO}",
    "--store",
    str(STORE),
    "--json",
]


def main() -> int:
    """Tell the story from clip to picture; return an exit code."""
    started = time.monotonic()
    shutil.rmtree(ROOT / FOLDER, ignore_errors=True)
    say("A clip of four seconds, with sound, is rendered.")
    latentloom("init", str(FOLDER))
    say("This is what the recipe will do with it.")
    stages = ask("plan", *RECIPE)["stages"]
    say("The run starts. Half way through its most costly stage it will be killed, with SIGKILL.")
    killed = run_and_kill(stages)
    say("Now the same command again: it goes on from the chunks that are finished.")
    result = ask("run", *RECIPE)
    reused = sum(stage["reused"] for stage in result["stages"])
    computed = sum(stage["computed"] for stage in result["stages"])
    say(f"{reused} chunks of the killed run were reused, {computed} were computed.")
    latentloom("report", result["run"], "--picture", str(PICTURE), "--store", str(STORE))
    say(f"That took {time.monotonic() - started:.0f} s. Look at")
    print(f"  the video    {ROOT / VIDEO}\n  side by side {ROOT / PICTURE}")
    if not killed or not reused:
        say("But the run was too fast to be killed half way; nothing was resumed.")
        return 1
    return 0


def run_and_kill(stages: list[dict[str, Any]]) -> bool:
    """Run until half of the costliest stage is done, then kill; tell whether there was time to."""
    enough = chunks_until_kill(stages)
    process = subprocess.Popen([LATENTLOOM, "run", *RECIPE], cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            if num_records() >= enough:
                process.kill()
                process.wait()
                say(
                    f"Killed, with {num_records()} records of finished chunks and of steps inside one."
                )
                return True
            time.sleep(0.05)
    finally:
        process.kill()  # also when the demonstration itself is interrupted
    if process.returncode != 0:
        raise SystemExit(f"latentloom run failed with exit code {process.returncode}")
    return False


def chunks_until_kill(stages: list[dict[str, Any]]) -> int:
    """Count the chunks of the stages up to the middle of `fuse`."""
    before = 0
    for stage in stages:
        if stage["op"] == "fuse":
            return before + max(1, int(stage["chunks"]) // 2)
        before += int(stage["chunks"])
    return max(1, before // 2)


def num_records() -> int:
    """Count the finished chunks: a record is the proof of one."""
    return sum(1 for _ in (ROOT / STORE / "records").glob("*/*.json"))


def ask(*arguments: str) -> dict[str, Any]:
    """Run a command and return the JSON object in the last line of its stdout."""
    answer: dict[str, Any] = json.loads(latentloom(*arguments).splitlines()[-1])
    return answer


def latentloom(*arguments: str) -> str:
    """Run a command that has to succeed; its messages stay on stderr."""
    finished = subprocess.run(
        [LATENTLOOM, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    )
    if finished.returncode != 0:
        command = " ".join(["latentloom", *arguments])
        raise SystemExit(f"{command} failed with exit code {finished.returncode}")
    return finished.stdout


def say(text: str) -> None:
    """Print a line that stands out from the program's own."""
    print(f"\n>> {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
