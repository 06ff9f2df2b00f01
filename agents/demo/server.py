"""The server of the demo page. Only this module imports Flask, which the extra ``demo`` installs.

| path | answer |
|---|---|
| ``GET /`` | the page; its style and script are under ``/static/`` |
| ``GET /api/options`` | :meth:`agents.demo.player.Player.options` |
| ``GET /api/canvas?index=N&agent=NAME`` | a test image for an agent: the image, its labels and source, and how many there are |
| ``POST /api/upload?invert=1&agent=NAME`` | takes the bytes of a PNG or JPEG, gives the image as the agent reads it |
| ``POST /api/play`` | takes JSON of image, labels and the fields of :class:`agents.demo.player.Settings`, gives the trace |

Images are sent as base64 of h w bytes, grey, or 3 h w bytes, RGB, as the agent's ``image_shape`` in the options says. Without
``agent`` the chosen one is meant. The answer to a wrong request is ``{"error": why}``.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import math
import socket
from pathlib import Path
from typing import Any

import numpy as np
from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from agents.demo.player import MOST_UPLOAD_BYTES, Player, Settings, array_shape, plain
from hsal_env.errors import ConfigError, DataError, HSALError

LOCALHOST = "127.0.0.1"
_LOOPBACK = ("localhost", LOCALHOST)
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def create_app(player: Player, host: str = LOCALHOST) -> Flask:
    """The Flask application: the page, and the answers to its requests.

    Args:
        player: runs the agents.
        host: the address where it will listen. On a loopback address every request must name a loopback address. So a
            foreign page whose name resolves to this machine (DNS rebinding) gets no answer.

    Raises:
        ConfigError: the host is ``::1``.
    """
    if host == "::1":  # Werkzeug cannot tell it from other hosts
        raise ConfigError("Expected --host 127.0.0.1 for this machine alone; got ::1.")
    app = Flask(__name__, static_url_path="/static", static_folder=str(Path(__file__).with_name("page")))
    app.config["MAX_CONTENT_LENGTH"] = MOST_UPLOAD_BYTES
    if is_loopback(host):
        app.config["TRUSTED_HOSTS"] = [*_LOOPBACK, host]

    @app.get("/")
    def page() -> Response:
        return app.send_static_file("index.html")

    @app.get("/api/options")
    def options() -> Response:
        return jsonify(player.options())

    @app.get("/api/canvas")
    def canvas() -> Response:
        asked = request.args.get("index", "")
        if not (asked.isascii() and asked.isdigit() and len(asked) < 10):
            raise DataError(f"Expected index as the number of a test canvas; got {asked!r}.")
        found = player.canvas(int(asked), request.args.get("agent"))
        return jsonify(image=_encoded(found.image), labels=found.labels, source=found.source, size=found.size)

    @app.post("/api/upload")
    def upload() -> Response:
        invert, agent = request.args.get("invert") == "1", request.args.get("agent")
        return jsonify(image=_encoded(player.upload(request.get_data(), invert, agent)))

    @app.post("/api/play")
    def play() -> Response:
        try:
            content = request.get_json()
        except RecursionError:
            raise DataError("Expected JSON without nested lists.") from None
        image, labels, settings = _wish(content, player)
        return jsonify(plain(player.play(image, labels, settings), labels is not None))

    @app.errorhandler(HSALError)
    def refuse(error: HSALError) -> tuple[Response, int]:
        return jsonify(error=str(error)), 400

    @app.errorhandler(HTTPException)
    def explain(error: HTTPException) -> tuple[Response, int]:
        if error.code == 413:
            return jsonify(
                error=f"The request is too large. Expected at most {MOST_UPLOAD_BYTES:,} bytes; send a smaller image."
            ), 400
        if error.code == 500:  # what went wrong is in the log
            return jsonify(error="The server failed. Its terminal shows why."), 500
        return jsonify(error=f"{error.name}."), error.code or 400

    @app.after_request
    def guard(response: Response) -> Response:
        response.headers.update(_HEADERS)
        return response

    return app


def listen(app: Flask, host: str = LOCALHOST, port: int = 0) -> tuple[BaseWSGIServer, str]:
    """A server that is bound to host and port, and its address. Call its ``serve_forever`` and ``shutdown``.

    Raises:
        ConfigError: the server cannot listen on that host and port.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family) as bound:
            port = bound.getsockname()[1]
            server = make_server(
                host, port, app, threaded=True, request_handler=_QuietHandler, fd=bound.fileno()
            )  # on a copy of the socket
    except (OSError, OverflowError, TypeError, ValueError) as error:  # the last two for what is no name of a host
        raise ConfigError(f"Cannot listen on {host}, port {port}: {error}. Pass another --host or --port.") from error
    return server, f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    return host in ("localhost", "::1") or host.startswith("127.")


class _QuietHandler(WSGIRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log nothing: the log holds errors only."""


def _encoded(image: np.ndarray) -> str:
    return base64.b64encode(image.tobytes()).decode("ascii")


def _wish(content: Any, player: Player) -> tuple[np.ndarray, list[int] | None, Settings]:
    """The image, labels and settings of a request to play.

    Raises:
        ConfigError, DataError: the request is not of that form.
    """
    known = [field.name for field in dataclasses.fields(Settings)]
    if not isinstance(content, dict) or set(content) - {"image", "labels", *known}:
        raise ConfigError(f"Expected JSON of image, labels, {', '.join(known)}.")
    settings = Settings(**{name: content[name] for name in known if name in content})
    shape = player.image_shape(settings.agent)
    try:
        pixels = base64.b64decode(content.get("image", ""), validate=True)
    except (TypeError, ValueError, binascii.Error):
        pixels = b""
    if len(pixels) != math.prod(shape):
        colours = "grey" if shape[2] == 1 else "RGB"
        raise DataError(f"Expected image as base64 of {shape[0]}x{shape[1]} {colours} bytes.")
    labels = content.get("labels")
    if labels is not None and not isinstance(labels, list):
        raise DataError(f"Expected labels as a list of whole numbers, or null; got {labels!r}.")
    return np.frombuffer(pixels, np.uint8).reshape(array_shape(shape)), labels, settings
