"""From checkpoints to a LLaVA whose right parts train. Knows no trainer."""
