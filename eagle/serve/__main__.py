"""An OpenAI-compatible server for a pair, in one process, with a page that shows draft trees.

    python -m eagle.serve --pair demo
    python -m eagle.serve --target TARGET --head HEAD --port 8000 --api-key SECRET
    python -m eagle.serve --pair demo --controller http://HOST:21001       the same as a worker of FastChat's, too

Ctrl-C ends it. It listens on 127.0.0.1 unless --host names another address; there is no encryption, so put a proxy in
front of a server that others can reach.
"""

import argparse
import errno
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

from eagle import command
from eagle.chat_template import check_keywords
from eagle.serve.options import add_model_arguments, drafting_arguments, load_model

DEFAULT_PORT = 8000
SHUTDOWN = 2  # seconds that open streams have to end
PORTS_TRIED = 100


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command.parser("eagle.serve", __doc__)
    add_model_arguments(parser)
    parser.add_argument(
        "--model-name", metavar="NAME", help="name in requests; default: the pair's, or the target's folder"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=command.PORT, default=DEFAULT_PORT, help="to listen on")
    parser.add_argument("--max-rows", type=command.whole(1, 1024), default=16, help="answers that are decoded at once")
    parser.add_argument(
        "--max-queued", type=command.COUNT, default=64, help="answers that run or wait; further ones get a 429"
    )
    parser.add_argument(
        "--max-bytes", type=command.COUNT, default=1 << 20, help="of one request; larger ones get a 413"
    )
    parser.add_argument(
        "--api-key",
        default=os.environ.get("EAGLE_API_KEY", ""),
        metavar="KEY",
        help="asked of every request; default: $EAGLE_API_KEY",
    )
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="further name in Host headers"
    )
    parser.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="URL",
        help="site whose pages may ask (CORS); may be repeated",
    )
    parser.add_argument("--quiet", action="store_true", help="no line per request")
    parser.add_argument("--controller", metavar="URL", help="FastChat's controller, to register at as a worker")
    parser.add_argument(
        "--worker-address", metavar="URL", help="where the controller and its API server reach this one"
    )
    return parser


def model_name(options: argparse.Namespace) -> str:
    """What requests call the model."""
    return options.model_name or options.pair or Path(options.base_model_path or "model").name


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises ValueError naming a free port where this one is taken."""
    try:
        return _bound(host, port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise ValueError(f"--host {host} --port {port}: {error.strerror or error}") from error
        free = next((other for other in range(port + 1, min(port + PORTS_TRIED, 65536)) if _is_free(host, other)), None)
        remedy = f"pass --port {free}, which is free" if free else "pass another --port"
        raise ValueError(f"port {port} on {host} is in use: {remedy}") from error


def _bound(host: str, port: int) -> socket.socket:
    """Bound and listening, so that no other server can take the port while the model loads."""
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        found.listen(128)
    except OSError:
        found.close()
        raise
    return found


def _is_free(host: str, port: int) -> bool:
    try:
        _bound(host, port).close()
    except OSError:
        return False
    return True


def url(host: str, port: int) -> str:
    """How this machine reaches a server that listens on `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def check_worker(options: argparse.Namespace) -> None:
    """ValueError for options that do not go together."""
    if options.worker_address and not options.controller:
        raise ValueError("--worker-address is what a controller is told: give --controller URL with it")
    if options.controller and options.api_key:
        raise ValueError("--controller and --api-key: FastChat sends no key to its workers; give one of the two")


def host_of(address: str) -> str:
    """The name in a URL. Raises ValueError where it is none."""
    name = urlsplit(address).hostname
    if not address.startswith("http") or not name:
        raise ValueError(f"--worker-address {address}: expected a URL such as http://10.0.0.2:8000")
    return name


def serve(options: argparse.Namespace, place: socket.socket) -> None:
    """Load the model and answer until the process is interrupted."""
    name, address = model_name(options), url(options.host, options.port)
    hosts = [*options.allow_host, *([host_of(options.worker_address)] if options.worker_address else [])]
    print(f"loading {name} ...", flush=True)
    model = load_model(options)

    import uvicorn

    from eagle.serve.app import build_app
    from eagle.serve.fastchat import Worker
    from eagle.serve.guard import Rules
    from eagle.serve.service import Service

    template = options.chat_template_kwargs
    check_keywords(model.tokenizer, template)
    service = Service(model, name, drafting_arguments(options), template, options.max_rows, options.max_queued)
    rules = Rules(options.host, hosts, options.allow_origin, options.api_key, options.max_bytes)
    worker = Worker(service, options.controller, options.worker_address or address) if options.controller else None
    app = build_app(service, rules, worker)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=SHUTDOWN)
    print(f"page   {address}/    chat and draft trees")
    print(f"API    {address}/v1    model {name!r}, {'the API key' if options.api_key else 'any API key'}")
    print("Ctrl-C ends it.", flush=True)
    uvicorn.Server(config).run(sockets=[place])


def log_requests() -> None:
    """One line per request on stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("eagle.serve")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def interrupt_on_termination() -> None:
    """SIGTERM ends this process as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def run(options: argparse.Namespace) -> None:
    """Listen, then load the model and answer, until the process is interrupted."""
    check_worker(options)
    interrupt_on_termination()
    if not options.quiet:
        log_requests()
    try:
        with listen(options.host, options.port) as place:
            serve(options, place)
    except KeyboardInterrupt:
        print("\nended", flush=True)


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command.start(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
