"""An OpenAI-compatible server for a pair, on this machine or on several.

    python -m eagle.serve --pair demo                                            controller, API and one worker
    python -m eagle.serve --pair demo --worker-only --controller http://HOST:21001     one more worker, anywhere

Ctrl-C ends what the command started. Everything listens on 127.0.0.1 unless --host names another address; there are no
accounts and no encryption, so put a proxy in front of a server that others can reach.
"""

import argparse
import importlib.util
import os
import sys
import threading
import time
from pathlib import Path

from eagle import command
from eagle.serve import launch
from eagle.serve.options import add_model_arguments, drafting_arguments, load_model


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command.parser("eagle.serve", __doc__)
    add_model_arguments(parser)
    parser.add_argument("--model-name", help="name in requests; default: the pair's, or the target's folder")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument(
        "--port", type=command.PORT, help="of the API, or with --worker-only of the worker; default: a free one"
    )
    parser.add_argument(
        "--most-queued", type=command.COUNT, default=64, help="requests a worker takes before it refuses (429)"
    )
    parser.add_argument("--most-bytes", type=command.COUNT, default=1 << 20, help="of one request (413)")
    parser.add_argument("--worker-only", action="store_true", help="a worker for a controller that runs elsewhere")
    parser.add_argument("--controller", metavar="URL", help="that controller")
    parser.add_argument("--worker-address", metavar="URL", help="where API and controller reach this worker")
    return parser


def model_name(options: argparse.Namespace) -> str:
    """What requests call the model."""
    return options.model_name or options.pair or Path(options.base_model_path or "model").name


def serve_worker(options: argparse.Namespace) -> None:
    """Load the model and answer in this process."""
    os.environ.setdefault("LOGDIR", "")  # FastChat writes log files there
    import uvicorn

    from eagle.serve.worker import Worker, build_app

    port = options.port or launch.free_port(options.host, 21002)
    address = options.worker_address or launch.url(options.host, port)
    model = load_model(options)
    worker = Worker(
        model, model_name(options), options.controller, address, drafting_arguments(options), options.most_queued
    )
    app = build_app(worker, options.most_bytes)
    server = uvicorn.Server(uvicorn.Config(app, host=options.host, port=port, log_level="warning"))
    threading.Thread(target=register, args=(worker, server), daemon=True).start()
    server.run()


def register(worker, server) -> None:
    """Once the worker listens; a controller that is not there yet is tried again."""
    while not server.started:
        time.sleep(0.05)
    while not server.should_exit:
        try:
            worker.init_heart_beat()
            print(f"worker {worker.worker_addr} is registered at {worker.controller_addr}", flush=True)
            return
        except (OSError, AssertionError) as error:
            print(f"no controller at {worker.controller_addr} yet: {error}", flush=True)
            time.sleep(1)


def serve_all(options: argparse.Namespace, arguments: list[str]) -> None:
    """Controller, API and a worker, until Ctrl-C."""
    name = model_name(options)
    with launch.Server() as server:
        controller = launch.start_controller(server, options.host)
        api = launch.start_api(server, controller, options.host, options.port, options.most_bytes)
        worker_port = str(launch.free_port(options.host, 21002))
        own = ["--worker-only", "--controller", controller, "--model-name", name, "--port", worker_port]
        server.start("worker", ["-m", "eagle.serve", *arguments, *own])
        print(f"starting {name} (logs in {server.logs}) ...", flush=True)
        server.wait_for_model(api, name)
        print(f"controller  {controller}")
        print(f"worker      {launch.url(options.host, int(worker_port))}")
        print(f"page        {launch.url(options.host, int(worker_port))}/    chat and draft trees")
        print(f"API         {api}/v1    model {name!r}, any API key")
        print("Ctrl-C ends all three.", flush=True)
        server.watch()


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    arguments = sys.argv[1:] if argv is None else argv
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.worker_only != bool(options.controller):
        parser.error("--worker-only and --controller URL go together")
    if importlib.util.find_spec("fastchat") is None:
        parser.error("FastChat is not installed: pip install 'eagle3-hsd[serve]'")
    launch.interrupt_on_termination()
    try:
        serve_worker(options) if options.worker_only else serve_all(options, arguments)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\nended", flush=True)


if __name__ == "__main__":
    main()
