"""From LLaVA JSON and image files to supervised tensors. Knows no model."""
