"""With offload a model is on its device while it runs, and one model at a time."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from latentloom.models.offload import Placement, Visit, execution_device, place
from latentloom.models.pretrained import library

OFFLOADED = Placement(device="cuda", offload=True)


class Traveller(torch.nn.Module):
    """Notes where it is sent, and stays."""

    def __init__(self, name: str, log: list[tuple[str, str]]) -> None:
        super().__init__()
        self.name, self.log = name, log

    def to(self, *args: Any, **_: Any) -> Traveller:
        self.log.append((self.name, str(args[0])))
        return self

    def forward(self, value: int) -> int:
        self.log.append((self.name, "runs"))
        return value + 1


@pytest.fixture(autouse=True)
def _nobody_on_the_device() -> None:
    Visit.on_device.clear()


def test_models_take_turns_on_the_device() -> None:
    log: list[tuple[str, str]] = []
    a, b = (place(Traveller(name, log), OFFLOADED) for name in "ab")
    assert log == []
    assert [a(1), a(2), b(3), a(4)] == [2, 3, 4, 5]
    assert log == [
        ("a", "cuda"),
        ("a", "runs"),
        ("a", "runs"),
        ("a", "cpu"),
        ("b", "cuda"),
        ("b", "runs"),
        ("b", "cpu"),
        ("a", "cuda"),
        ("a", "runs"),
    ]


def test_inputs_go_where_a_waiting_model_will_run() -> None:
    module = place(torch.nn.Linear(2, 2), OFFLOADED)
    assert module.weight.device.type == "cpu"
    assert execution_device(module) == torch.device("cuda")


def test_nothing_is_offloaded_from_the_cpu_or_where_it_is_not_asked_for() -> None:
    log: list[tuple[str, str]] = []
    place(Traveller("a", log), Placement(offload=True))(1)
    place(Traveller("b", log), Placement(device="cuda"))(1)
    assert log == [("a", "cpu"), ("a", "runs"), ("b", "cuda"), ("b", "runs")]


def test_a_vae_moves_in_for_encode_and_decode_too(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    def note(self: Any, device: torch.device) -> Any:
        log.append(str(device))
        return self

    vae = library("diffusers").AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    monkeypatch.setattr(type(vae), "to", note)
    place(vae, OFFLOADED)
    vae.encode(torch.zeros(1, 3, 8, 8))
    assert log == ["cuda"]
    Visit.on_device.clear()
    vae.decode(torch.zeros(1, 4, 8, 8))
    assert log == ["cuda", "cuda"]


@pytest.mark.gpu
def test_offloaded_models_give_the_same_bytes_on_a_gpu() -> None:
    torch.manual_seed(0)
    module = torch.nn.Linear(64, 64)
    value = torch.randn(8, 64, device="cuda")
    expected = copy.deepcopy(module).to("cuda")(value)
    assert torch.equal(place(module, OFFLOADED)(value), expected)
