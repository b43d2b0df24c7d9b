# The kernels on the CPU: cc/python/bindings.h makes them of the lists in cc/core/arguments.h.
from typing import Any

class Call:
    def __setattr__(self, name: str, value: str | int) -> None: ...

max_margin: int

def cpu_variant() -> str: ...
def __getattr__(name: str) -> Any: ...
