"""``python -m tumen``: the command line."""

from tumen.cli import main

if __name__ == "__main__":
    main()
