"""``python -m hyperconn``, the same as the command ``hyperconn``."""

from hyperconn.cli import main

if __name__ == "__main__":
    main()
