"""`python export.py --help`"""

import sys

from slm.cli import script

if __name__ == "__main__":
    script(["export", *sys.argv[1:]])
