"""A bucket on this machine: a server that speaks Google Cloud Storage's protocol, in this process."""

import contextlib
import itertools
import logging
import socket
import threading
from collections.abc import Iterator
from http import HTTPStatus

import pytest

VARIABLES = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL", "GOOGLE_AUTH_TOKEN_FOR_TESTING")


def generations(objects):
    """The emulator's handlers of files, with what tensorstore relies on: each content has a generation.

    By it a file is read only if it has changed, and written only if nobody else has written it.
    """
    count = itertools.count(1)
    download, upload = objects.download, objects._media_upload

    def current(request, storage, name):
        try:
            return storage.get_file_obj(request.params["bucket_name"], name)
        except objects.NotFound:
            return None

    def refused(request, response, found):
        generation = "0" if found is None else found["generation"]
        wanted = request.query.get("ifGenerationMatch", [generation])[0]
        unwanted = request.query.get("ifGenerationNotMatch", [None])[0]
        if wanted != generation:
            response.status = HTTPStatus.PRECONDITION_FAILED
        elif unwanted == generation and found is not None:
            response.status = HTTPStatus.NOT_MODIFIED
        else:
            return False
        return True

    def download_generation(request, response, storage):
        found = current(request, storage, request.params["object_id"])
        if not refused(request, response, found):
            if found is not None:
                response["x-goog-generation"] = found["generation"]
            download(request, response, storage)

    def upload_generation(request, response, storage):
        name = request.query["name"][0]
        if not refused(request, response, current(request, storage, name)):
            upload(request, response, storage)
            made = current(request, storage, name)
            made["generation"] = str(next(count))
            response.json(made)

    return {"download": download_generation, "_media_upload": upload_generation}


def one_at_a_time(handlers):
    lock = threading.RLock()

    def locked(handler):
        def handle(*arguments):
            with lock:
                handler(*arguments)

        return handle

    return [
        (path, {method: locked(handler) for method, handler in methods.items()})
        for path, methods in handlers
    ]


@contextlib.contextmanager
def bucket(name: str = "bucket") -> Iterator[dict[str, str]]:
    """Yields the environment in which gcsfs and tensorstore find it; it is also this process's."""
    pytest.importorskip("gcsfs")
    server = pytest.importorskip("gcp_storage_emulator.server")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    address = f"http://localhost:{port}"
    served = server.create_server("localhost", port, in_memory=True, default_bucket=name)
    environment = dict(zip(VARIABLES, (address, address, "none"), strict=True))
    with pytest.MonkeyPatch.context() as patch:
        for handler, function in generations(server.objects).items():
            patch.setattr(server.objects, handler, function)
        for variable, value in environment.items():
            patch.setenv(variable, value)
        # One thread would wait for ever for a client that waits for another answer first. Answers are made
        # one at a time, as the emulator is not made for several threads.
        patch.setattr(server.server, "HTTPServer", server.server.ThreadingHTTPServer)
        patch.setattr(server, "HANDLERS", one_at_a_time(server.HANDLERS))
        # It looks for credentials that nobody needs.
        patch.setattr(logging.getLogger("gcsfs"), "level", logging.ERROR)
        served.start()
        yield environment
        served.stop()
