"""`python evaluate.py --help`"""

import sys

from slm.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
