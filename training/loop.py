"""The loop that every training runs: seeded batches, averaged weights, checkpoints, a log.

Started by `torchrun --nproc-per-node R`, R processes train on batches of their own and meet every few
steps to average their weights (local SGD, 1805.09767). On a busy machine that beats R threads, which
wait for each other in every layer.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

HERE: Final = Path(__file__).resolve().parent
WORK: Final = HERE.parent / ".training"
LOG_EVERY: Final = 50
# Steps between meetings of the processes.
MEET_EVERY: Final = 5
RANK: Final = int(os.environ.get("RANK", "0"))
RANKS: Final = int(os.environ.get("WORLD_SIZE", "1"))

# (rng, generator) of a step -> the loss to minimise, and what else to log.
Draw = Callable[[random.Random, torch.Generator], tuple[torch.Tensor, dict[str, float]]]


@dataclasses.dataclass(frozen=True)
class Config:
    """A script's settings: what all share, and `own` for the rest."""

    seed: int
    steps: int
    minutes: float
    rate: float
    ema: float
    warmup: int
    own: dict[str, Any]


def load_config(name: str) -> Config:
    """Read `training/configs/<name>.json`."""
    fields = json.loads((HERE / "configs" / f"{name}.json").read_text())
    shared = {f.name: fields.pop(f.name) for f in dataclasses.fields(Config) if f.name != "own"}
    return Config(**shared, own=fields)


def fit(
    name: str,
    config: Config,
    modules: dict[str, torch.nn.Module],
    draw: Draw,
    export: Callable[[], None],
    *,
    export_every: int = 300,
) -> int:
    """Train until the steps or the minutes run out, whichever comes first.

    The learning rate falls along a cosine of the finished fraction, so that a training which runs out
    of minutes ends as calmly as one that takes all its steps.

    Args:
        name: Names the checkpoint and the log; a checkpoint that exists is continued.
        config: Settings.
        modules: What is trained, in so far as it requires gradients.
        draw: Computes the loss of one step; each step has generators of its own, so that a resumed
            training sees the same batches.
        export: Writes the weights as they are now; called with the averaged ones.
        export_every: Steps between checkpoints.

    Returns:
        The steps taken.
    """
    parameters = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
    if RANKS > 1:
        torch.distributed.init_process_group("gloo")
    optimiser = torch.optim.AdamW(parameters, config.rate, betas=(0.9, 0.99), weight_decay=0.01)
    state = _State(name, config, modules, optimiser)
    log = _Log(name, resumed=state.load())
    state.meet()
    while state.progress < 1:
        seed = (config.seed * 1_000_000 + state.step) * RANKS + RANK
        optimiser.param_groups[0]["lr"] = state.rate
        loss, facts = draw(random.Random(seed), torch.Generator().manual_seed(seed))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        state.step += 1
        log.add(state.step, state.seconds, {"loss": loss.item(), **facts})
        if state.step % MEET_EVERY == 0:
            state.meet()
        if state.step % export_every == 0:
            state.save(export)
    state.save(export)
    return state.step


class _State:
    """Where a training is: what a checkpoint holds."""

    def __init__(
        self,
        name: str,
        config: Config,
        modules: dict[str, torch.nn.Module],
        optimiser: torch.optim.Optimizer,
    ) -> None:
        self.path = WORK / f"{name}.pt"
        self.config, self.modules, self.optimiser = config, modules, optimiser
        self.step, self.spent, self.began, self.progress = 0, 0.0, time.monotonic(), 0.0
        self.average = {key: value.detach().clone() for key, value in self._named()}

    @property
    def seconds(self) -> float:
        """Seconds spent, in earlier sessions too."""
        return self.spent + time.monotonic() - self.began

    @property
    def rate(self) -> float:
        """The learning rate: a linear warm-up, then a cosine down to 2 % of the peak."""
        warm = min(1.0, (self.step + 1) / self.config.warmup)
        wave = 0.5 * (1 + math.cos(math.pi * min(1.0, self.progress)))
        return self.config.rate * warm * (0.02 + 0.98 * wave)

    @torch.no_grad()
    def meet(self) -> None:
        """Average the weights of all processes, agree on the progress, and update the average."""
        minutes = self.seconds / 60
        progress = torch.tensor(max(self.step / self.config.steps, minutes / self.config.minutes))
        if RANKS > 1:
            torch.distributed.broadcast(progress, 0)
            flat = torch.cat([value.flatten() for _, value in self._named()])
            torch.distributed.all_reduce(flat)
            parts = flat.div_(RANKS).split([value.numel() for _, value in self._named()])
            for (_, value), part in zip(self._named(), parts, strict=True):
                value.copy_(part.view(value.shape))
        self.progress = float(progress)
        # Quickly at first: the average must not remember the random start.
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step)) ** MEET_EVERY
        for key, value in self._named():
            self.average[key].lerp_(value, 1 - decay)

    def save(self, export: Callable[[], None]) -> None:
        """Replace the checkpoint in one rename, and export the averaged weights."""
        if RANK > 0:
            return
        self._write()
        self._swap()
        export()
        self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        """Exchange parameters and averages; a second call undoes it."""
        for key, value in self._named():
            kept = value.clone()
            value.copy_(self.average[key])
            self.average[key].copy_(kept)

    def _write(self) -> None:
        WORK.mkdir(exist_ok=True)
        half = self.path.with_suffix(".part")
        content = {
            "modules": {key: module.state_dict() for key, module in self.modules.items()},
            "optimiser": self.optimiser.state_dict(),
            "average": self.average,
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(content, half)
        half.rename(self.path)

    def load(self) -> bool:
        """Go on from the checkpoint, if there is one; say whether there was."""
        if not self.path.exists():
            return False
        content = torch.load(self.path)
        for key, module in self.modules.items():
            module.load_state_dict(content["modules"][key])
        self.optimiser.load_state_dict(content["optimiser"])
        self.average = content["average"]
        self.step, self.spent = content["step"], content["seconds"]
        return True

    def _named(self) -> list[tuple[str, torch.Tensor]]:
        return [
            (f"{name}/{key}", value)
            for name, module in self.modules.items()
            for key, value in module.named_parameters()
            if value.requires_grad
        ]


class _Log:
    """A CSV under `training/logs/`: means over the steps since the last row."""

    def __init__(self, name: str, *, resumed: bool) -> None:
        path = HERE / "logs" / f"{name}.csv"
        path.parent.mkdir(exist_ok=True)
        self.file = path.open("a" if resumed or RANK > 0 else "w", newline="")
        self.writer = csv.writer(self.file, lineterminator="\n")
        self.headed = resumed
        self.recent: list[dict[str, float]] = []

    def add(self, step: int, seconds: float, facts: dict[str, float]) -> None:
        """Take note of a step; write a row every few."""
        self.recent.append(facts)
        if step % LOG_EVERY or RANK > 0:
            return
        if not self.headed:
            self.writer.writerow(["step", "seconds", *facts])
            self.headed = True
        means = [sum(row[key] for row in self.recent) / len(self.recent) for key in facts]
        self.writer.writerow([step, round(seconds), *(f"{value:.5f}" for value in means)])
        self.file.flush()
        print(step, f"{seconds:.0f} s", *(f"{value:.5f}" for value in means), flush=True)
        self.recent = []
