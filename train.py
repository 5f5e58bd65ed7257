"""`python train.py --help`"""

import sys

from slm.cli import script

if __name__ == "__main__":
    script(["train", *sys.argv[1:]])
