"""A bucket on this machine: a server that speaks Google Cloud Storage's protocol, in this process."""

import contextlib
import logging
import os
import socket
import warnings
from collections.abc import Iterator

import pytest

VARIABLES = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL", "GOOGLE_AUTH_TOKEN_FOR_TESTING")


@contextlib.contextmanager
def bucket(name: str = "bucket") -> Iterator[dict[str, str]]:
    """Yields the environment in which gcsfs and tensorstore find it; it is also this process's."""
    pytest.importorskip("gcsfs")
    server = pytest.importorskip("gcp_storage_emulator.server")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    logging.getLogger("gcsfs").setLevel(logging.ERROR)  # it looks for credentials that nobody needs
    address = f"http://localhost:{port}"
    served = server.create_server("localhost", port, in_memory=True, default_bucket=name)
    served.start()
    environment = dict(zip(VARIABLES, (address, address, "none"), strict=True))
    before = {variable: os.environ.get(variable) for variable in VARIABLES}
    os.environ.update(environment)
    try:
        with warnings.catch_warnings():
            yield environment
    finally:
        for variable, value in before.items():
            if value is None:
                del os.environ[variable]
            else:
                os.environ[variable] = value
        served.stop()
