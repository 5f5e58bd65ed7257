"""A small GPT: from a text file to a model that writes stories.

Importing this package starts nothing and loads no framework; the command line lives in `slm.cli`.
"""

__version__ = "0.1.0"
