"""The run: a recipe in, an artifact out. On TRL's SFTTrainer."""
