"""Write the example: a recipe that recolours a sprite, and a clip with sound to try it on."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from latentloom.errors import UsageError
from latentloom.media.write import write_video
from latentloom.sprites.caption import caption
from latentloom.sprites.render import FPS, render
from latentloom.sprites.scene import Background, Motion, Scene, Sprite, recolour
from latentloom.sprites.soundtrack import soundtrack

SAMPLE_RATE = 48_000
CLIP_SIZE = 256
"""Pixels of a side: four times what the models see, so that the codec's halved chroma costs nothing."""
SCENE = Scene(
    sprites=(
        Sprite(
            "star",
            "red",
            size=0.25,
            motion=Motion("circle", amplitude=0.16, period=4.0),
        ),
    ),
    background=Background("gradient"),
)
"""What the clip shows."""

EXAMPLE_RECIPE = f'''\
# Recolour a sprite: FLDM fuses an image model with a video model, both held to the edges of the source.
# Another video:   latentloom run fldm.yaml source.uri=my.mp4
# Another colour:  latentloom run fldm.yaml prompts.target="..."
version: 1
name: fldm
source:
  uri: clip.mp4
  size: {{width: 64, height: 64}}        # the size that the embedded models were trained at
models:
  image: {{path: "embedded:sprites/image"}}
  video: {{path: "embedded:sprites/video"}}      # temporal layers on the image model
  control: {{path: "embedded:sprites/control"}}  # ControlNet on edges
prompts:
  source: "{caption(SCENE)}"
  target: "{caption(recolour(SCENE, "blue"))}"
windows: {{size: 16, overlap: 4}}
seed: 7
stages:
  - op: encode
  - op: invert                         # DDIM inversion with the video model
    num_inference_steps: 20
  - op: fuse
    sources:
      - {{model: image, controlnet: {{model: control, controlnet_conditioning_scale: 2.0}}}}
      - {{model: video, controlnet: {{model: control, controlnet_conditioning_scale: 2.0}}}}
    alpha: 0.5                         # weight of the video model when mixing begins
    tau: 6                             # step at which mixing begins
    guidance_scale: 3.0
  - op: decode
output: {{uri: "out/{{stem}}-edited.mp4", crf: 12}}
'''


def write_example(folder: Path, *, seconds: float) -> tuple[Path, Path]:
    """Write ``fldm.yaml`` and ``clip.mp4`` into a folder.

    Args:
        folder: Made if it is missing.
        seconds: Length of the clip.

    Returns:
        The recipe and the clip.

    Raises:
        UsageError: If one of them exists.
    """
    recipe, clip = folder / "fldm.yaml", folder / "clip.mp4"
    for path in (recipe, clip):
        if path.exists():
            raise UsageError(f"{path} exists; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    num_frames = round(seconds * FPS)
    write_video(
        clip,
        render(SCENE, num_frames, CLIP_SIZE),
        Fraction(FPS),
        audio=soundtrack(SCENE, num_frames, sample_rate=SAMPLE_RATE),
        sample_rate=SAMPLE_RATE,
    )
    recipe.write_text(EXAMPLE_RECIPE, encoding="utf-8")
    return recipe, clip
