# Reading the library's own 5,000 files takes most of a minute and says little: its classes are built by their names.
from typing import Any

def __getattr__(name: str) -> Any: ...
