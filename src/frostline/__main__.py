"""``python -m frostline``, for launchers that take a module."""

from frostline.cli import main

if __name__ == "__main__":
    main()
