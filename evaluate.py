"""`python evaluate.py --help`"""

import sys

from slm.cli import script

if __name__ == "__main__":
    script(["evaluate", *sys.argv[1:]])
