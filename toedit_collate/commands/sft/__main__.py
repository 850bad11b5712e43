"""`accelerate launch -m toedit_collate.commands.sft`: `toedit sft` on several processes."""

import sys

from ...errors import UnusableError
from .run import run_sft


def main() -> int:
    """Run it; the exit status is 2 where an argument can't be used."""
    try:
        run_sft(sys.argv[1:])
    except UnusableError as error:
        print(f"toedit sft: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
