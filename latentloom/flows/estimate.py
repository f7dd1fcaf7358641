"""Predict memory and store bytes from configurations, before anything runs.

The constants were measured on a CPU with float32 weights. A measurement of an earlier run with the same
models, shapes and profile replaces the formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod, sqrt
from typing import Any

from latentloom.schemas.base import digest
from latentloom.schemas.facts import Facts
from latentloom.schemas.plan import PlannedStage
from latentloom.schemas.recipe import Recipe
from latentloom.schemas.stages import InterpolateStage

MIB = 1 << 20
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "uint8": 1, "uint16": 2}
CHUNK_OVERHEAD_BYTES = 1100
"""zarr.json, checksum and record of one chunk."""
COSINE_BYTES = 16
"""A number on a line of its own in a record."""
CHECKPOINTS_AT_ONCE = 2
"""Checkpoints inside a window: an older one is deleted once the next is there."""
STEPS_AT_ONCE = 3
"""Steps of windows that meet: the one that is taken, and the two before it."""
BASELINE_BYTES = 870 * MIB
"""This process with torch, diffusers and Prefect loaded, the server, and the decoding process."""
SHARED_BYTES = 300 * MIB
"""The part of it that workers share: server, and the process that waits for them."""
WORKING_FACTOR = 1.25
ENCODER_CHANNELS, DECODER_CHANNELS = 4, 9
"""Float32 numbers for each pixel that a VAE works on, as multiples of its first level's channels."""
FLOAT_FRAME_BYTES = 36
"""For each pixel of a frame on its way between float32 and whole numbers: three copies of three channels."""
SMALL_PICTURE = 256
"""Side of a picture whose pixels take twice the bits of a large one's: 0.5 to 0.7 were met at 96 to 256."""
MEDIA_FRAMES = 24
"""Frames that decoder, scaler and encoder hold at a time (x264's look-ahead and its references)."""


def peak_bytes(
    stage: PlannedStage, recipe: Recipe, facts: Facts, before: Sequence[PlannedStage]
) -> int:
    """Predict the peak memory of the process tree while a stage runs.

    Args:
        stage: The stage, cut into chunks.
        recipe: Its recipe, for micro-batch and dtype.
        facts: Facts of its models, and earlier measurements.
        before: The stages before it: its inputs are among them, and models of the whole plan stay loaded.
    """
    measured = facts.measured_bytes.get(calibration_key(stage, recipe))
    if measured is not None:
        return int(measured * WORKING_FACTOR)
    names = {name for one in [*before, stage] for name in one.models.values()}
    weights = sum(facts.models[name].parameter_bytes for name in names)
    working = _working_bytes(stage, recipe, facts) + _in_flight_bytes(stage, before)
    return BASELINE_BYTES + weights + int(WORKING_FACTOR * working)


def calibration_key(stage: PlannedStage, recipe: Recipe) -> str:
    """Name what a memory measurement holds for: op, models, shapes and profile, never the length."""
    longest = stage.longest
    fields = stage.variants[0].fields
    return digest(
        {
            "op": stage.op,
            "models": fields.get("models"),
            "numerics": fields.get("numerics"),
            "shape": list(stage.frame_shape),
            "size": fields.get("size"),
            "settings": fields.get("settings"),
            "tiling": _tiling(stage),
            "frames": longest,
            **({"blended": stage.steps != ()} if stage.steps else {}),
        }
    )


def speed_key(stage: PlannedStage, recipe: Recipe) -> str:
    """Name what a measurement of speed holds for: what memory depends on, and the work that is done to it."""
    fields = stage.variants[0].fields
    return digest(
        {
            "memory": calibration_key(stage, recipe),
            "params": fields["params"],
            "windows": fields.get("windows"),
        }
    )


def segment_bytes(frame_shape: Sequence[int], num_frames: int, recipe: Recipe) -> int:
    """Guess the encoded bytes of a segment from its pixels and the codec's usual bits per pixel.

    A small picture has more edges for its pixels, and so takes more bits for each.
    """
    output = recipe.output
    codec = output.codec if output is not None else "h264"
    bits = {"h264": 0.2, "h265": 0.12, "prores": 6.0, "ffv1": 10.0}[codec]
    num_pixels = frame_shape[0] * frame_shape[1]
    if codec in ("h264", "h265"):
        bits *= 1 + SMALL_PICTURE / sqrt(num_pixels)
    return int(num_pixels * num_frames * bits / 8) + CHUNK_OVERHEAD_BYTES


def checkpoint_bytes(stage: PlannedStage, *, num_states: int) -> int:
    """Return the bytes of a checkpoint inside a chunk.

    Float32 states of every source, whatever the dtype, and in its record a cosine for every other source,
    frame and step so far.
    """
    longest = stage.longest
    cosines = (num_states - 1) * longest * max(stage.checkpoints)
    states = num_states * longest * prod(stage.frame_shape)
    return 4 * states + COSINE_BYTES * cosines + CHUNK_OVERHEAD_BYTES


def store_bytes(stages: Sequence[PlannedStage]) -> int:
    """Return the most that the stages store at a time.

    Of frames that are deleted behind their reader, one segment's; and what lies there while a stage runs,
    beside everything up to it.
    """
    total = most = 0
    for stage in stages:
        total += _passing_bytes(stage, stages) if stage.transient else sum(stage.chunk_bytes)
        most = max(most, total + bytes_beside(stage))
    return most


def bytes_beside(stage: PlannedStage) -> int:
    """Return the most that a stage stores at a time beyond its chunks.

    Of checkpoints inside windows there are two; of windows that meet at every step, all of three steps.
    """
    own = sum(stage.chunk_bytes)
    rows = [*stage.step_bytes, own]
    together = max(sum(rows[at : at + STEPS_AT_ONCE]) for at in range(len(rows)))
    return together - own + CHECKPOINTS_AT_ONCE * stage.checkpoint_bytes


def _passing_bytes(stage: PlannedStage, stages: Sequence[PlannedStage]) -> int:
    readers = [reader for reader in stages if stage.name in reader.inputs]
    return max(
        (
            sum(stage.chunk_bytes[i] for i in chunk.reads[reader.inputs.index(stage.name)])
            for reader in readers
            for chunk in reader.chunks
        ),
        default=0,
    )


def _working_bytes(stage: PlannedStage, recipe: Recipe, facts: Facts) -> int:
    frames = stage.longest
    models = [facts.models[name] for name in stage.models.values()]
    held = 3 * frames * prod(stage.frame_shape) * 4 + 2 * stage.checkpoint_bytes
    held += _blended_bytes(stage)
    if stage.op == "encode_video":
        inside, handed_on = min(frames, MEDIA_FRAMES), min(frames, recipe.chunks.frames)
        return (inside + handed_on) * 6 * prod(_size_of(stage))
    if not models:
        return held + 2 * frames * prod(stage.frame_shape)
    batch = recipe.numerics.micro_batch
    if stage.op in ("encode", "decode", "edit", "upscale"):
        height, width = _pixels(stage, models[0].downscale)
        factor = ENCODER_CHANNELS if stage.op == "encode" else DECODER_CHANNELS
        channels = 12 if models[0].standin else factor * models[0].vae_channels
        seen = batch * _tile_area(stage, height, width, 1) * channels * 4
        if stage.op in ("encode", "decode"):
            # Frames are whole numbers, but for the micro-batch at hand.
            whole = 3 * ITEM_BYTES["uint16"] * frames + FLOAT_FRAME_BYTES * batch
            return whole * height * width + seen
        return held + 3 * frames * height * width * 4 * 2 + seen
    if stage.unit == "windows":
        batch = frames
    elif stage.op == "interpolate":
        # From one known frame to the next, whatever the micro-batch.
        batch = InterpolateStage.factor + 1
    _, height, width = stage.frame_shape
    area = _tile_area(stage, height, width, models[0].downscale)
    # Models of a stage run one after another.
    channels = max(16 if m.standin else 24 * m.max_channels for m in models)
    return held + 2 * batch * area * channels * 4


def _blended_bytes(stage: PlannedStage) -> int:
    """Return what a window holds while it blends those of the step before: them, their sum, the result."""
    if not stage.step_bytes:
        return 0
    windows = max(len(stage.neighbours(index)) for index in range(len(stage.chunks)))
    return (windows + 3) * max(stage.step_bytes) // len(stage.chunks)


def frames_read(stage: PlannedStage, position: int, upstream: PlannedStage) -> int:
    """Return the most source frames of an input that a chunk has in memory: all of the chunks it reads."""
    if upstream.unit == "source":
        return stage.longest // stage.rate
    return max(
        (
            sum(upstream.chunks[index].num_frames for index in chunk.reads[position])
            for chunk in stage.chunks
        ),
        default=0,
    )


def _in_flight_bytes(stage: PlannedStage, before: Sequence[PlannedStage]) -> int:
    """Return what is held beside the chunk at hand: its inputs, those of the next, and the one before.

    The one before is held twice where its store is remote, as an array and as the bytes that are written;
    where windows hand over, it is also an input. A segment's frames are not read ahead.
    """
    one = max(stage.chunk_bytes, default=0)
    if stage.unit == "segments":
        return 2 * one
    planned = {upstream.name: upstream for upstream in before}
    read = one if stage.in_order else 0
    for position, name in enumerate(stage.inputs):
        upstream = planned[name]
        frame_bytes = prod(upstream.frame_shape) * ITEM_BYTES[upstream.dtype]
        read += frames_read(stage, position, upstream) * upstream.rate * frame_bytes
    return 2 * (read + one) + _blended_bytes(stage)


def _tiling(stage: PlannedStage) -> dict[str, Any] | None:
    """Return the tiles of a stage as its recipe writes them."""
    tiling: dict[str, Any] | None = stage.variants[0].params.get("tiling")
    return tiling


def _tile_area(stage: PlannedStage, height: int, width: int, unit: int) -> int:
    """Return the part of a frame that a model sees at a time, counted in units of so many pixels."""
    tiling = _tiling(stage)
    if tiling is None:
        return height * width
    size = int(tiling["size"]) // unit
    return min(size, height) * min(size, width)


def _pixels(stage: PlannedStage, downscale: int) -> tuple[int, int]:
    """Return height and width of the frames that a stage reads or makes."""
    if stage.produces == "frames":
        return stage.frame_shape[0], stage.frame_shape[1]
    return stage.frame_shape[1] * downscale, stage.frame_shape[2] * downscale


def _size_of(stage: PlannedStage) -> tuple[int, int]:
    height, width = stage.variants[0].fields["size"]
    return int(height), int(width)
