"""Serve the circuit explorer on this machine, where it answers prompts of your own.

Shows what `bilinear-circuits explore` writes, and keeps the model loaded: a text typed into the page is run, and every
token can be followed through the circuit. Only this machine is served, and only the page itself; one prompt at a time.
"""

import contextlib
import errno
import socket
import sys
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from simple_parsing import field

from bilinear_circuits.command_line import common
from bilinear_circuits.commands import explore

if TYPE_CHECKING:
    from starlette.applications import Starlette

_HOST = "127.0.0.1"


@dataclass(kw_only=True)
class Arguments(common.GateArguments, common.LabelArguments):
    """Options of `serve`."""

    circuit: str | None = field(default=None, positional=True, nargs="?", metavar="CIRCUIT.json")
    """Circuits to show: circuit.json of bilinear-circuits circuits."""

    features: list[str] | None = None
    """Output features to show, such as 4/143; needed where no CIRCUIT.json is given, by default all circuits of it."""

    prompts: str | None = None
    """YAML file with a list of texts under the key prompts that the page starts with; by default a dozen."""

    n_stories: int = 200
    """Stories read from the corpus."""

    max_tokens: int = 96
    """Most tokens of a prompt; never more than the model's context."""

    port: int = 8000
    """Port on 127.0.0.1; 0 for any that is free."""

    open: bool = False
    """Open the page in the browser."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.port < 2**16:
            raise ValueError(f"port must be between 0 and {2**16 - 1}, got {self.port}.")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}.")


def run(arguments: Arguments) -> None:
    """Load, serve until interrupted."""
    with bound(arguments.port) as listener:
        serve(explorer_app(arguments), listener, arguments.open)


def bound(port: int) -> socket.socket:
    """A socket on a port of this machine alone: taken before the model is loaded, and not yet listening.

    Raises:
        ValueError: If the port is in use, or may not be used.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((_HOST, port))
    except OSError as error:
        listener.close()
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        reason = "which another program uses" if error.errno == errno.EADDRINUSE else "which needs more rights"
        raise ValueError(f"port must be free, got {port}, {reason}. Choose another one, or 0 for any.") from error
    return listener


def serve(app: "Starlette", listener: socket.socket, open_page: bool = False) -> None:
    """Say where, and answer requests until interrupted; a prompt being worked on has five seconds to end."""
    import uvicorn

    from bilinear_circuits.report.connections import ImpatientConnection

    config = uvicorn.Config(
        app,
        http=ImpatientConnection,
        log_level="warning",
        lifespan="off",
        ws="none",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    listener.listen()
    url = f"http://{_HOST}:{listener.getsockname()[1]}/"
    with contextlib.suppress(KeyboardInterrupt):
        print(f"the explorer is at {url} (Ctrl-C ends it)", flush=True)
        if open_page:
            import webbrowser

            webbrowser.open(url)
        uvicorn.Server(config).run(sockets=[listener])
    print("stopped", file=sys.stderr)


def explorer_app(arguments: Arguments) -> "Starlette":
    """The explorer of the circuits asked for, and what answers its prompts."""
    from bilinear_circuits.models.running import context_length
    from bilinear_circuits.report.explorer import explorer_page
    from bilinear_circuits.report.serving import make_app

    shared = (one.name for one in fields(explore.Arguments) if hasattr(arguments, one.name))
    explorer = explore.prepare(explore.Arguments(**{name: getattr(arguments, name) for name in shared}))
    names = {str(name): name for name in explorer.answers.names}
    tokenizer = explorer.model.tokenizer
    return make_app(
        explorer_page(explorer.document, live=True),
        lambda text, features: explorer.answers(text, [names[feature] for feature in features]),
        features=list(names),
        count_tokens=lambda text: len(tokenizer.encode(text, add_special_tokens=False)),
        max_tokens=min(arguments.max_tokens, context_length(explorer.model) - 1),
    )
