"""The hub that all tests see, also those that start a process: no test reaches another."""

import os
import tempfile

from tests.hub.server import Hub

HUB = Hub()
_home = tempfile.TemporaryDirectory(prefix="hub-home-")
# The packages of the hub read these when they are imported, which nothing has done yet.
os.environ |= {"HF_ENDPOINT": HUB.start(), "HF_HOME": _home.name}
