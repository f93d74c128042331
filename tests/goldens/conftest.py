"""The goldens' checker is a script that imports its neighbours; tests find them the same way."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
