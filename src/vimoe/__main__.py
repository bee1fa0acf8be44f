"""`python -m vimoe`, and `torchrun --nproc-per-node 8 -m vimoe train …`."""

import sys

from vimoe.cli import main

if __name__ == "__main__":
    sys.exit(main())
