"""`python -m slm --help`"""

from slm.cli import script

if __name__ == "__main__":
    script()
