# The kernels on a CUDA device: cc/python/bindings.h makes them of the lists in cc/core/arguments.h.
from typing import Any

class Call:
    def __setattr__(self, name: str, value: str | int) -> None: ...

def __getattr__(name: str) -> Any: ...
