"""The recipe's JSON Schema, for editors; ``python -m latentloom.schemas.schema`` prints it."""

from __future__ import annotations

import json
import sys

from latentloom.schemas.recipe import Recipe

SCHEMA_ID = "https://latentloom.invalid/recipe-v1.schema.json"


def recipe_schema() -> str:
    """Return the schema as JSON text, the same for the same models."""
    schema = Recipe.model_json_schema(mode="validation")
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        **schema,
    }
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    sys.stdout.write(recipe_schema())
