"""Edit long videos with diffusion models, in chunks that are never lost.

>>> from latentloom import load_recipe, compile_recipe  # doctest: +SKIP
>>> compile_recipe(load_recipe("recipe.yaml")).flow()()  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentloom.flows.api import CompiledRecipe as CompiledRecipe
    from latentloom.flows.api import compile_recipe as compile_recipe
    from latentloom.flows.api import open_latents as open_latents
    from latentloom.schemas.load import load_recipe as load_recipe
    from latentloom.schemas.recipe import Recipe as Recipe

__version__ = "0.1.0"
__all__ = ["CompiledRecipe", "Recipe", "compile_recipe", "load_recipe", "open_latents"]

_HOMES = {
    "CompiledRecipe": "latentloom.flows.api",
    "compile_recipe": "latentloom.flows.api",
    "open_latents": "latentloom.flows.api",
    "load_recipe": "latentloom.schemas.load",
    "Recipe": "latentloom.schemas.recipe",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for, so that importing the package loads nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'latentloom' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
