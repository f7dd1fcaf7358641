"""The loop that every training runs: seeded batches, averaged weights, checkpoints, a log."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

HERE: Final = Path(__file__).resolve().parent
WORK: Final = HERE.parent / ".training"
LOG_EVERY: Final = 50

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

    The learning rate falls along a cosine of the finished fraction, so that a training which runs out of
    minutes ends as calmly as one that takes all its steps.

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
    print(f"{name}: {sum(p.numel() for p in parameters):,} trained parameters", flush=True)
    optimiser = torch.optim.AdamW(parameters, config.rate, betas=(0.9, 0.99), weight_decay=0.01)
    state = _State(name, config, modules, optimiser)
    log = _Log(name, resumed=state.load())
    while state.progress < 1:
        seed = config.seed * 1_000_000 + state.step
        optimiser.param_groups[0]["lr"] = state.rate
        loss, facts = draw(random.Random(seed), torch.Generator().manual_seed(seed))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        state.advance()
        log.add(state.step, state.seconds, {"loss": loss.item(), **facts})
        if state.step % export_every == 0:
            state.save()
            _with_average(state, export)
    state.save()
    _with_average(state, export)
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
        self.step, self.spent, self.began = 0, 0.0, time.monotonic()
        self.average = {key: value.detach().clone() for key, value in self._named()}

    @property
    def seconds(self) -> float:
        """Seconds spent, in earlier sessions too."""
        return self.spent + time.monotonic() - self.began

    @property
    def progress(self) -> float:
        """The finished fraction."""
        return max(self.step / self.config.steps, self.seconds / 60 / self.config.minutes)

    @property
    def rate(self) -> float:
        """The learning rate: a linear warm-up, then a cosine down to 2 % of the peak."""
        warm = min(1.0, (self.step + 1) / self.config.warmup)
        wave = 0.5 * (1 + math.cos(math.pi * min(1.0, self.progress)))
        return self.config.rate * warm * (0.02 + 0.98 * wave)

    @torch.no_grad()
    def advance(self) -> None:
        """Count a step and move the average towards the parameters, quickly at first."""
        self.step += 1
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        for key, value in self._named():
            self.average[key].lerp_(value, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange parameters and averages; a second call undoes it."""
        for key, value in self._named():
            kept = value.clone()
            value.copy_(self.average[key])
            self.average[key].copy_(kept)

    def save(self) -> None:
        """Replace the checkpoint in one rename."""
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
        self.file = path.open("a" if resumed else "w", newline="")
        self.writer = csv.writer(self.file, lineterminator="\n")
        self.headed = resumed
        self.recent: list[dict[str, float]] = []

    def add(self, step: int, seconds: float, facts: dict[str, float]) -> None:
        """Take note of a step; write a row every few."""
        self.recent.append(facts)
        if step % LOG_EVERY:
            return
        if not self.headed:
            self.writer.writerow(["step", "seconds", *facts])
            self.headed = True
        means = [sum(row[key] for row in self.recent) / len(self.recent) for key in facts]
        self.writer.writerow([step, round(seconds), *(f"{value:.5f}" for value in means)])
        self.file.flush()
        print(step, f"{seconds:.0f} s", *(f"{value:.5f}" for value in means), flush=True)
        self.recent = []


def _with_average(state: _State, export: Callable[[], None]) -> None:
    state.swap()
    export()
    state.swap()
