"""`python generate.py --help`"""

import sys

from slm.cli import script

if __name__ == "__main__":
    script(["generate", *sys.argv[1:]])
