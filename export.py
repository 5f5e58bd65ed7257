"""`python export.py --help`"""

import sys

from slm.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
