"""``python -m backsight`` is the command ``backsight``."""

from backsight.cli import main

if __name__ == "__main__":
    main()
