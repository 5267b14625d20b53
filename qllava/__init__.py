"""qllava fine-tunes LLaVA-1.5 with LoRA and QLoRA. The verbs are in `qllava.api`; importing this costs nothing."""

__version__ = "0.1.0"
