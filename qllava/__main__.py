"""`python -m qllava`, for launchers such as torchrun and accelerate."""

from .cli import main

if __name__ == "__main__":
    main()
