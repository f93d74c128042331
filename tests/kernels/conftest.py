"""The operators' cases stand beside the tests that go through them; tests find them by this."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
