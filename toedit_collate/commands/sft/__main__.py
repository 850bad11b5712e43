"""`accelerate launch -m toedit_collate.commands.sft`: `toedit sft` on several processes."""

import sys

from ..main import main

if __name__ == "__main__":
    sys.exit(main(["sft", *sys.argv[1:]]))
