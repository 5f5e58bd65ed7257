"""`python serve.py --help`"""

import sys

from slm.cli import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
