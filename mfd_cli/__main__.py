"""python -m mfd_cli."""

from mfd_cli.cli import main

if __name__ == "__main__":
    main()
