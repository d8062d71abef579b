"""Numbers for Prometheus, at /metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from omnivinci_jax.serve.engine_thread import EngineThread


class Metrics:
    """The metrics of one server."""

    def __init__(self, engine: EngineThread):
        self._registry = registry = CollectorRegistry()
        self.responses = Counter("omnivinci_responses", "Responses", ["path", "status"], registry=registry)
        self.prompt_tokens = Counter("omnivinci_prompt_tokens", "Tokens of prompts", ["modality"], registry=registry)
        self.answer_tokens = Counter("omnivinci_answer_tokens", "Tokens of answers", registry=registry)
        self.cancelled = Counter("omnivinci_cancelled", "Requests whose client went away", registry=registry)
        self.first_token = Histogram("omnivinci_first_token_seconds", "Time to the first token", registry=registry)
        pending = Gauge("omnivinci_pending_answers", "Answers that run or wait", registry=registry)
        pending.set_function(lambda: engine.pending)
        cache = Gauge("omnivinci_media_cache_bytes", "Bytes of encoded media in the cache", registry=registry)
        cache.set_function(lambda: engine.engine.media.bytes)
        piece = Gauge("omnivinci_longest_piece_seconds", "Longest piece of encoding or prefill", registry=registry)
        piece.set_function(lambda: engine.longest_piece)

    def text(self) -> bytes:
        """Returns all metrics in Prometheus' text form."""
        return generate_latest(self._registry)
