"""``python -m ema_cli``."""

from ema_cli.cli import main

if __name__ == "__main__":
    main()
