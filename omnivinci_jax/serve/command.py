"""`omnivinci serve`."""

import signal
import socket
from argparse import Namespace
from pathlib import Path

import jax
import jax.numpy as jnp
import uvicorn
from jax.sharding import Mesh

from omnivinci_jax.errors import UserError
from omnivinci_jax.generate.assistant import load
from omnivinci_jax.generate.command import use_program_cache
from omnivinci_jax.generate.engine import Engine
from omnivinci_jax.serve.app import make_app
from omnivinci_jax.serve.content import Sources
from omnivinci_jax.serve.decoding import Limits
from omnivinci_jax.serve.service import Settings
from omnivinci_jax.speech import voice_or_server


def run(arguments: Namespace, mesh: Mesh | None) -> int:
    """Serves until SIGTERM or Ctrl-C: then finishes what runs, and refuses what comes."""
    media_dir = arguments.media_dir
    if media_dir and not media_dir.is_dir():
        raise UserError(f"--media_dir {media_dir}: is not a folder")
    megabyte = 2**20
    settings = Settings(
        rows=arguments.rows,
        queue=arguments.queue,
        timeout=arguments.timeout,
        max_body=arguments.max_body_mb * megabyte,
        workers=arguments.workers,
        sources=Sources(media_dir, arguments.allow_urls, arguments.max_media_mb * megabyte),
        limits=Limits(arguments.max_media_mb * megabyte, arguments.max_pixels, arguments.max_seconds),
    )
    voice = None
    if arguments.speech_server or arguments.voice:
        voice = voice_or_server(arguments.voice, arguments.speech_server, arguments.speech_model)
    listener = _bind(arguments.host, arguments.port)
    use_program_cache()
    model = load(arguments.model, jnp.dtype(arguments.dtype), mesh)
    engine = Engine(
        *model,
        model.mesh,
        rows=arguments.rows,
        capacity=min(arguments.max_length, model.model.config.text.max_position_embeddings),
        media_bytes=arguments.media_cache_mb * megabyte,
        responsive=jax.default_backend() == "cpu",
    )
    engine.compile()
    name = Path(str(arguments.model)).absolute().name
    app = make_app(engine, name, settings, voice)
    server = _Server(uvicorn.Config(app, log_level="warning", access_log=False))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # uvicorn raises it again after it has ended
    server.run([listener])
    return 0


def _bind(host: str, port: int) -> socket.socket:
    """Takes the address before the model is loaded; connections are refused until the server listens."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "a port is 0 to 65535"
        raise UserError(f"--host {host} --port {port}: {reason}") from None
    return listener


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Prints the address when the server accepts requests."""
        await super().startup(sockets)
        for listener in sockets or ():
            host, port = listener.getsockname()[:2]
            print(f"omnivinci serve: http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
