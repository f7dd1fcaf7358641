"""Bind the stages of a recipe to models, windows and shapes, and check that they fit one another.

Pure: works on facts. Every fault is found before any is reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from latentloom.errors import RecipeError
from latentloom.flows.bound import BoundStage, LatentSpace, NoiseLevel, RedoSet, Shape
from latentloom.flows.fit import (
    HINTS,
    accepted_kinds,
    differences,
    frozen,
    latent_space,
    steering_fault,
    worded_channels,
    worded_rules,
)
from latentloom.flows.keys import REFERENCES, stage_maps, stage_models, steered_role, timed_values
from latentloom.flows.maps import map_fault
from latentloom.flows.rates import default_overlap, rate_fault, rate_of, whole_frames, windows_fault
from latentloom.flows.texts import word_faults
from latentloom.flows.tiles import settle_tiling, tiling_fault
from latentloom.flows.window_modes import mode_faults, same_plan
from latentloom.schemas.edits import EditStage, FramesEdit, OutpaintEdit, Prompt2PromptEdit
from latentloom.schemas.facts import Facts, ModelFacts
from latentloom.schemas.fusion import FuseStage, MixStage
from latentloom.schemas.recipe import Recipe
from latentloom.schemas.stage import WindowRule
from latentloom.schemas.stages import (
    DecodeStage,
    EncodeStage,
    InvertStage,
    SmoothStage,
    Stage,
    UpsampleStage,
    UpscaleStage,
)

DEFAULT_LENGTH = 16
"""Frames of a window where a video model names no length; AnimateDiff, ModelScope and the papers use 16."""


def bind_stages(
    variants: Mapping[RedoSet, Recipe], facts: Facts, frame_size: tuple[int, int]
) -> list[BoundStage]:
    """Bind every stage of a recipe.

    Args:
        variants: The recipe in force for each combination of redo ranges; ``()`` is the plain one.
        facts: Facts of its models.
        frame_size: Height and width of the source frames as they are read.

    Raises:
        RecipeError: With every fault.
    """
    binder = _Binder(variants[()], facts, frame_size)
    for index in range(len(variants[()].stages)):
        binder.bind(
            index, {redo: (recipe, recipe.stages[index]) for redo, recipe in variants.items()}
        )
    if binder.faults:
        raise RecipeError(binder.faults)
    return list(binder.bound.values())


class _Binder:
    def __init__(self, recipe: Recipe, facts: Facts, frame_size: tuple[int, int]) -> None:
        self.recipe, self.facts, self.frame_size = recipe, facts, frame_size
        self.bound: dict[str, BoundStage] = {}
        self.faults: list[str] = []

    def bind(self, index: int, variants: Mapping[RedoSet, tuple[Recipe, Stage]]) -> None:
        """Bind the stage at an index, or note why it cannot be."""
        stage = variants[()][1]
        self.where = f"stage {stage.name!r}"
        names = stage.inputs or ((self.recipe.stages[index - 1].name if index else "decode_video"),)
        if not self._models_fit(stage) or not self._inputs_fit(stage, names):
            return
        read = [self.bound[name] for name in names if name != "decode_video"]
        fault = rate_fault(stage, read)
        if fault is not None:
            self._fault(fault)
        space = self._latent_space(stage, read)
        level = self._level(stage, read)
        windows = self._windows(stage, read)
        shape, pixels = self._shape(stage, read)
        resolved = {
            redo: (recipe, settle_tiling(self._with_level(one, level), shape, self.facts))
            for redo, (recipe, one) in variants.items()
        }
        for redo, (_, one) in variants.items():
            if redo:
                self._same_but_for_values(one, stage, read, (space, level, windows))
        self._schedule_fits(stage)
        for recipe, one in variants.values():
            self._maps_fit(one, recipe, pixels)
            self._words_fit(one, recipe)
            if fault := tiling_fault(one, self.facts):
                self._fault(fault)
        wants_source = _reads_source(stage)
        if wants_source and pixels != self.frame_size:
            self._fault("a ControlNet's condition has the source's size; fuse before upsampling")
        self.bound[stage.name] = BoundStage(
            name=stage.name,
            stage=resolved[()][1],
            variants=resolved,
            inputs=(*names, "decode_video") if wants_source else tuple(names),
            frame_shape=shape,
            pixels=pixels,
            dtype=None if stage.produces == "frames" else self.recipe.numerics.dtype,
            windows=windows,
            space=space,
            level=level if stage.produces == "noise" else None,
            rate=rate_of(stage, read),
        )

    def _fault(self, text: str) -> None:
        self.faults.append(f"{self.where}: {text}")

    # models

    def _models_fit(self, stage: Stage) -> bool:
        before = len(self.faults)
        for role, name in stage_models(stage).items():
            model = self.facts.models.get(name)
            if model is None:
                known = ", ".join(sorted(self.facts.models)) or "none"
                self._fault(f"unknown model {name!r}; the recipe's models are: {known}")
            elif model.kind not in accepted_kinds(stage, role):
                wanted = " or ".join(accepted_kinds(stage, role))
                self._fault(
                    f"model {name!r} is of kind {model.kind}{worded_channels(model)}; {role} needs {wanted}"
                )
        if len(self.faults) == before:
            self._steering_fits(stage)
        return len(self.faults) == before

    def _steering_fits(self, stage: Stage) -> None:
        roles = stage_models(stage)
        for role, name in roles.items():
            model = self.facts.models[name]
            if model.kind not in ("controlnet", "t2i_adapter"):
                continue
            # What it is built on is loaded with it, and is the steered model itself as a rule.
            for steered in dict.fromkeys([roles[steered_role(role)], model.base or "image"]):
                fault = steering_fault(model, self.facts.models[steered])
                if fault is not None:
                    self._fault(
                        f"{name!r} cannot steer {steered!r}: {fault}; name another model or base"
                    )

    def _latent_space(self, stage: Stage, read: Sequence[BoundStage]) -> LatentSpace | None:
        """Check that models and the latents that they read share a space; return that of what is made."""
        names = dict.fromkeys(stage_models(stage).values())
        spaces = {name: latent_space(self.facts.models[name]) for name in names}
        spaces |= {f"the latents of {b.name!r}": b.space for b in read if b.space is not None}
        if len(set(spaces.values())) > 1:
            listed = "; ".join(f"{name}: {space}" for name, space in spaces.items())
            self._fault(
                f"models do not share a latent space ({listed}); choose models of one family, or"
                " name the VAE of one that differs with models.*.vae"
            )
        return None if stage.produces == "frames" else next(iter(spaces.values()), None)

    def _schedule_fits(self, stage: Stage) -> None:
        if not isinstance(stage, FuseStage) or stage.moves == "constant" or stage.toward:
            return
        kind = "video" if stage.moves == "toward_video" else "image"
        if kind not in [self.facts.models[source.model].kind for source in stage.sources]:
            self._fault(
                f"schedule {stage.moves} needs a {kind} model among the sources;"
                " set schedule: constant, or name a source with toward"
            )

    def _maps_fit(self, stage: Stage, recipe: Recipe, pixels: tuple[int, int]) -> None:
        for role, name in stage_maps(stage).items():
            shape = None if role in REFERENCES else pixels
            fault = map_fault(name, recipe, self.facts, shape)
            if fault is not None:
                self._fault(fault)

    def _words_fit(self, stage: Stage, recipe: Recipe) -> None:
        if not isinstance(stage, Prompt2PromptEdit):
            return
        for entry in recipe.prompts:
            texts = timed_values(stage, entry, self.facts)
            for fault in word_faults(stage, texts["source"], texts["prompt"]):
                self._fault(fault)

    def _same_but_for_values(
        self,
        changed: Stage,
        stage: Stage,
        read: Sequence[BoundStage],
        plain: tuple[LatentSpace | None, NoiseLevel | None, WindowRule | None],
    ) -> None:
        """Check that a redo range changes values only: not steps, windows, models' kinds or what is kept."""
        before = len(self.faults)
        if not self._models_fit(changed):
            return
        space = self._latent_space(changed, read)
        level, windows = self._level(changed, read), self._windows(changed, read)
        if len(self.faults) > before:
            return
        borders = ("left", "right", "top", "bottom")
        fixed = ["keep", "tiling", "num_inference_steps", "strength", "checkpoint_every", *borders]
        if windows is not None and windows.mode == "co_denoise":
            fixed.append("noise_start")
        differs = [name for name in fixed if getattr(changed, name, 0) != getattr(stage, name, 0)]
        if _reads_source(changed) != _reads_source(stage):
            differs.append("whether a condition has a map")
        if space != plain[0]:
            differs.append("the latent space")
        if (level, windows) != plain[1:] or differs:
            what = ", ".join(differs) or "windows"
            self._fault(f"{what} cannot differ within a video; change it for the whole recipe")

    # inputs

    def _inputs_fit(self, stage: Stage, names: Sequence[str]) -> bool:
        before = len(self.faults)
        if len(names) != len(stage.consumes):
            self._fault(
                f"takes {len(stage.consumes)} input(s), got {len(names)}: {', '.join(names)}"
            )
        for name, wanted in zip(names, stage.consumes, strict=False):
            if name != "decode_video" and name not in self.bound:
                if not self.faults:
                    self._fault(f"unknown input {name!r}")
                return False
            made = "frames" if name == "decode_video" else self.bound[name].stage.produces
            if made != wanted:
                hint = HINTS.get((made, wanted), "name another stage in inputs")
                self._fault(f"needs {wanted}, but {name!r} makes {made}; {hint}")
        return len(self.faults) == before

    # noise levels

    def _level(self, stage: Stage, read: Sequence[BoundStage]) -> NoiseLevel | None:
        if isinstance(stage, InvertStage):
            scheduler = frozen(self.facts.models[stage.model].scheduler)
            return NoiseLevel(stage.num_inference_steps, stage.strength, scheduler)
        if not isinstance(stage, FuseStage | SmoothStage | MixStage):
            return None
        levels = {bound.name: bound.level for bound in read if bound.level is not None}
        if not levels:
            return None
        first, level = next(iter(levels.items()))
        for name, other in levels.items():
            if other != level:
                self._fault(
                    f"inputs {first!r} and {name!r} end at other levels: {level} and {other}"
                )
        for name in stage_models(stage).values():
            model = self.facts.models[name]
            if model.kind in ("image", "video") and frozen(model.scheduler) != level.scheduler:
                self._fault(
                    f"schedulers do not agree: {name!r} has {differences(model, level)};"
                    " fused and inverted latents need one scheduler"
                )
        self._steps_agree(stage, level)
        return level

    def _steps_agree(self, stage: Stage, level: NoiseLevel) -> None:
        if isinstance(stage, MixStage):
            return
        wanted = getattr(stage, "num_inference_steps", None)
        if wanted is not None and wanted != level.num_inference_steps:
            self._fault(
                f"num_inference_steps {wanted} differs from the inversion's"
                f" {level.num_inference_steps}; leave it out to take the inversion's"
            )
        if isinstance(stage, FuseStage):
            fault = stage.steps_fault(level.num_inference_steps)
            if fault is not None:
                self._fault(fault)
            if level.strength < 1 and any(source.start == "noise" for source in stage.sources):
                self._fault(
                    f"start: noise is for strength 1, the inversion's is {level.strength:g}: its"
                    " latents are not all noise; start from inverted"
                )

    def _with_level(self, stage: Stage, level: NoiseLevel | None) -> Stage:
        if isinstance(stage, FuseStage | SmoothStage) and level is not None:
            update = {
                "num_inference_steps": level.num_inference_steps,
                "strength": level.strength,
            }
            return stage.model_copy(update=update)
        return stage

    # windows

    def _windows(self, stage: Stage, read: Sequence[BoundStage]) -> WindowRule | None:
        inherited = {b.name: b.windows for b in read if b.windows and b.stage.produces == "noise"}
        own = [
            self.facts.models[name]
            for name in stage_models(stage).values()
            if self.facts.models[name].kind in ("video", "video_upsampler")
        ]
        if not own:
            rules = list(inherited.values())
            if len(set(rules)) > 1:
                self._fault(f"inputs have different windows: {worded_rules(inherited)}")
            return rules[0] if rules else None
        wanted = getattr(stage, "windows", None) or self.recipe.windows.rule
        rule = self._resolve_rule(wanted, own, rate_of(stage, read))
        for name, other in inherited.items():
            if not same_plan(rule, other):
                self._fault(
                    f"reads inverted latents of {name!r} with another window plan:"
                    f" {worded_rules({stage.name: rule, name: other})}; give both the same windows"
                )
        for fault in mode_faults(stage, rule, inherited):
            self._fault(fault)
        return rule

    def _resolve_rule(
        self, rule: WindowRule, models: Sequence[ModelFacts], rate: int
    ) -> WindowRule:
        length = min(model.sample_length or DEFAULT_LENGTH for model in models)
        size = rule.size or whole_frames(length, rate)
        overlap = default_overlap(size, rate) if rule.overlap is None else rule.overlap
        longest = min((m.max_length for m in models if m.max_length), default=size)
        if size > longest:
            self._fault(
                f"windows.size {size} is more than the {longest} frames its video model takes"
            )
        if overlap >= size:
            self._fault(f"windows.overlap {overlap} must be smaller than windows.size {size}")
        fault = windows_fault(size, overlap, rate)
        if fault is not None:
            self._fault(fault)
        return rule.model_copy(update={"size": size, "overlap": overlap})

    # shapes

    def _shape(self, stage: Stage, read: Sequence[BoundStage]) -> tuple[Shape, tuple[int, int]]:
        pixels = read[0].pixels if read else self.frame_size
        if isinstance(stage, EncodeStage):
            model = self.facts.models[stage.model]
            multiple = max(m.latent_multiple for m in self.facts.models.values())
            height, width = (_ceil(side, model.downscale * multiple) for side in pixels)
            latents = (height // model.downscale, width // model.downscale)
            return (model.latent_channels, *latents), pixels
        if isinstance(stage, UpsampleStage):
            channels, height, width = read[0].frame_shape
            return (channels, 2 * height, 2 * width), (2 * pixels[0], 2 * pixels[1])
        if isinstance(stage, UpscaleStage):
            factor = self.facts.models[stage.model].downscale
            return (factor * pixels[0], factor * pixels[1], 3), (
                factor * pixels[0],
                factor * pixels[1],
            )
        if isinstance(stage, OutpaintEdit):
            height, width = pixels
            pixels = (height + stage.top + stage.bottom, width + stage.left + stage.right)
        if isinstance(stage, DecodeStage | EditStage | FramesEdit):
            return (*pixels, 3), pixels
        return read[0].frame_shape, pixels


def _reads_source(stage: Stage) -> bool:
    """Tell whether a condition is made from the source's frames, whatever the stage's inputs are."""
    sources = stage.sources if isinstance(stage, FuseStage) else ()
    return any(s.controlnet is not None and s.controlnet.map is None for s in sources)


def _ceil(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
