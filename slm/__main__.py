"""`python -m slm --help`"""

import sys

from slm.cli import main

if __name__ == "__main__":
    sys.exit(main())
