"""`python serve.py --help`"""

import sys

from slm.cli import script

if __name__ == "__main__":
    script(["serve", *sys.argv[1:]])
