"""Pickled weights become safetensors in a child process; what would run code is refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, Self

import pytest
import safetensors.torch
import torch

from latentloom.errors import ModelError, ResourceError, UsageError
from latentloom.models import convert, load, unpickle
from latentloom.models.convert import convert_model


class Here:
    """Converts in this process; where no malice is tested a child would only cost time."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def convert(self, path: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        assert unpickle.convert_file(path, target) == {}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "_Child", Here)


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def save_bin(folder: Path, content: object, name: str = "diffusion_pytorch_model.bin") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(content, folder / name)
    return folder / name


@pytest.mark.usefixtures("here")
def test_a_pipeline_of_bin_files_loads_after_conversion(
    tiny_folder: Path, tmp_path: Path, image: load.ImageModel
) -> None:
    source = Path(shutil.copytree(tiny_folder / "image", tmp_path / "bin"))
    for path in source.glob("*/*.safetensors"):
        name = path.name.replace(".safetensors", ".bin")
        name = "pytorch_model.bin" if path.parent.name == "text_encoder" else name
        save_bin(path.parent, safetensors.torch.load_file(path), name)
        path.unlink()
    lines: list[str] = []
    written = convert_model(source, tmp_path / "safe" / "image", write=lines.append)
    assert sorted(path.name for path in written) == [
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.safetensors",
        "model.safetensors",
    ]
    assert len(lines) == 3
    model = load.load_image_model(tmp_path / "safe" / "image")
    text = image.text.encode(["a"])
    assert torch.equal(model.text.encode(["a"]), text)
    latents = torch.ones(1, 4, 8, 8)
    assert torch.equal(
        model.denoiser.predict(latents, 1, text), image.denoiser.predict(latents, 1, text)
    )


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(
    tmp_path: Path, zipped: bool, nested: bool
) -> None:
    mark, path = tmp_path / "ran", tmp_path / "pytorch_model.bin"
    content = {"weight": torch.zeros(1), "more": Malicious(mark)} if nested else Malicious(mark)
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    answer = unpickle.convert_file(path, tmp_path / "safe")
    assert answer == {"kind": "code", "reason": f"{os.system.__module__}.system"}
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_bare_pickle_does_not_run_either(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(pickle.dumps(Malicious(tmp_path / "ran")))
    assert unpickle.convert_file(path, tmp_path / "safe")["kind"] in ("code", "damaged")
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "EOFError"),
        (b"version https://git-lfs.github.com/spec/v1", "it is no pickle of tensors"),
        (b"PK\x03\x04 cut off", "not a ZIP archive"),
    ],
)
def test_a_damaged_file_is_told_from_a_malicious_one(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(content)
    answer = unpickle.convert_file(path, tmp_path / "safe")
    assert answer["kind"] == "damaged"
    assert reason in answer["reason"]


def test_other_things_than_tensors_are_named(tmp_path: Path) -> None:
    path = save_bin(tmp_path, {"weight": torch.zeros(1), "epoch": 3})
    assert "'epoch' is a int" in unpickle.convert_file(path, tmp_path / "safe")["reason"]


def test_child_stops_at_a_file_that_inflates_beyond_its_size_or_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "source"
    whole = save_bin(folder, {"weight": torch.zeros(1 << 26)}, "whole.bin")
    with (
        zipfile.ZipFile(whole) as large,
        zipfile.ZipFile(folder / "packed.bin", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as small,
    ):
        for entry in large.namelist():
            small.writestr(entry, large.read(entry))
    whole.write_bytes(b"")
    monkeypatch.setattr(convert, "SPARE_BYTES", 1 << 26)
    with convert._Child() as child:
        with pytest.raises(ResourceError, match=r"packed\.bin of .* needs more than 6\d\.\d MiB"):
            child.convert(folder / "packed.bin", tmp_path / "packed.safetensors")
        with pytest.raises(ModelError, match=r"whole\.bin cannot be converted: EOFError; fetch"):
            child.convert(whole, tmp_path / "whole.safetensors")


def test_child_that_dies_is_told_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_bin(tmp_path / "source", {"a": torch.ones(1)})
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ModelError, match=r"the process that read it ended \(exit status 1\)"):
        convert_model(path.parent, tmp_path / "safe")
    assert sorted(tmp_path.iterdir()) == [path.parent]


@pytest.mark.usefixtures("here")
def test_tensors_that_share_memory_are_written_each(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    path = save_bin(tmp_path / "source", {"a": weight, "b": weight.T, "c": weight[0]})
    (written,) = convert_model(path.parent, tmp_path / "safe")
    found = safetensors.torch.load_file(written)
    assert torch.equal(found["b"], weight.T)
    assert torch.equal(found["c"], weight[0])


@pytest.mark.usefixtures("here")
def test_shards_and_their_index_keep_together(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    for number in (1, 2):
        save_bin(folder, {f"w{number}": torch.ones(1)}, f"pytorch_model-0000{number}-of-00002.bin")
    shards = {"w1": "pytorch_model-00001-of-00002.bin", "w2": "pytorch_model-00002-of-00002.bin"}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": shards}))
    convert_model(folder, tmp_path / "safe")
    index = json.loads((tmp_path / "safe" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {
        f"w{number}": f"model-0000{number}-of-00002.safetensors" for number in (1, 2)
    }
    names = {path.name for path in (tmp_path / "safe").iterdir()}
    assert names == {"model.safetensors.index.json", *index["weight_map"].values()}


@pytest.mark.usefixtures("here")
def test_what_is_safe_already_is_copied(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    save_bin(folder / "unet", {"a": torch.ones(1)})
    save_bin(folder / "vae", {"a": torch.ones(1)})
    safetensors.torch.save_file(
        {"a": torch.full((1,), 2.0)}, folder / "vae" / "diffusion_pytorch_model.safetensors"
    )
    (folder / "model.py").write_text("raise SystemExit")
    written = convert_model(folder, tmp_path / "safe")
    assert written == [tmp_path / "safe" / "unet" / "diffusion_pytorch_model.safetensors"]
    kept = tmp_path / "safe" / "vae" / "diffusion_pytorch_model.safetensors"
    assert float(safetensors.torch.load_file(kept)["a"]) == 2.0
    assert not (tmp_path / "safe" / "model.py").exists()


def test_there_must_be_something_to_convert_and_somewhere_to_put_it(tmp_path: Path) -> None:
    path = save_bin(tmp_path / "source", {"a": torch.ones(1)})
    with pytest.raises(UsageError, match="exists"):
        convert_model(path.parent, tmp_path)
    with pytest.raises(UsageError, match="no folder"):
        convert_model(path, tmp_path / "safe")
    path.rename(path.with_suffix(".ckpt"))
    with pytest.raises(UsageError, match=r"no \.bin weights"):
        convert_model(path.parent, tmp_path / "safe")
    (path.parent / "model.safetensors").touch()
    with pytest.raises(UsageError, match="already"):
        convert_model(path.parent, tmp_path / "safe")


def test_command_exits_8_for_code_and_does_not_import_torch(tmp_path: Path) -> None:
    path = save_bin(tmp_path / "source", {"weight": Malicious(tmp_path / "ran")})
    code = (
        "import sys; from latentloom.cli.main import main\n"
        f"sys.argv = ['latentloom', 'convert-model', {str(path.parent)!r}, 'safe']\n"
        "try: main()\n"
        "finally: assert 'torch' not in sys.modules"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert finished.returncode == 8, finished.stderr
    assert finished.stderr.startswith("error: ")
    assert finished.stderr.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == [path.parent]
