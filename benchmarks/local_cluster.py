"""Workers of `tf.distribute` that are processes of this machine: what each finds in its environment."""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack


def tf_configs(workers: int) -> list[str]:
    """Returns the TF_CONFIG of each worker, on ports that nobody listens on."""
    with ExitStack() as until_all_are_known:
        sockets = [until_all_are_known.enter_context(socket.create_server(("localhost", 0))) for _ in range(workers)]
        addresses = [f"localhost:{one.getsockname()[1]}" for one in sockets]
    cluster = {"worker": addresses}
    return [json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}}) for index in range(workers)]
