"""The command line, ``tumen``: needs the extra ``tumen[cli]``.

Nothing of it is imported by ``import tumen``, and nothing here but `main` is meant for programs.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Runs the command of ``sys.argv`` and exits with its code."""
    try:
        import click  # noqa: F401, PLC0415 - asked for, so that its absence can be told
    except ImportError:
        print("tumen: the command line needs an extra: pip install 'tumen[cli]'", file=sys.stderr)
        raise SystemExit(2) from None
    from .commands import tumen  # noqa: PLC0415 - needs click

    tumen(prog_name="tumen")
