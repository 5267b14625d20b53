"""What a run is: the schema, YAML with `extends`, overrides, errors. Imports no torch."""

from .load import load_recipe, resolve_recipe
from .schema import Recipe
from .shipped import copy_shipped, list_shipped

__all__ = ["Recipe", "copy_shipped", "list_shipped", "load_recipe", "resolve_recipe"]
