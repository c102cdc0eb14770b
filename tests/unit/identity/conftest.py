import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from identity_of import Hub


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    """A hub of organisation acme at noon."""
    return Hub(tmp_path)
