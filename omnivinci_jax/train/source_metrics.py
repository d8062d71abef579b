"""Metrics of each source of a mixture: loss, fraction of the tokens, and skipped samples."""

from collections.abc import Mapping

import numpy as np

from omnivinci_jax.data.mixture import Mixture


class SourceMeter:
    """Accumulates the losses and tokens of each source between two calls of `values`."""

    def __init__(self, mixture: Mixture):
        self._mixture = mixture
        self._start()

    def _start(self) -> None:
        count = len(self._mixture.sources)
        self._losses, self._weights, self._tokens = np.zeros(count), np.zeros(count), np.zeros(count)

    def add(self, samples: list[int], metrics: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Adds a step and the samples planned for it; returns how many samples of each source could not be read.

        The losses of a nonfinite update do not count, because the update is skipped.
        """
        count, sources = len(self._mixture.sources), self._mixture.source_of(np.array(samples, int))
        if metrics["finite"]:
            self._losses += metrics["source_losses"]
            self._weights += metrics["source_weights"]
        self._tokens += np.bincount(sources, self._mixture.sizes[samples, 0], count)
        missing = np.bincount(sources, minlength=count) - metrics["source_samples"]
        return {source.name: int(n) for source, n in zip(self._mixture.sources, missing, strict=True) if n}

    def values(self, skipped: Mapping[str, int]) -> dict[str, float]:
        """Returns metrics "modality/source/…" since the last call; none if there is only one source.

        loss: mean over the source's trained tokens, if any; tokens: its fraction of all slots that are not padding;
        skipped: its number in the argument, counted since the run began.
        """
        values, all_tokens = {}, max(self._tokens.sum(), 1.0)
        for index, source in enumerate(self._mixture.sources if len(self._mixture.sources) > 1 else ()):
            name = f"{source.modality}/{source.name}"
            if self._weights[index]:
                values[f"{name}/loss"] = self._losses[index] / self._weights[index]
            values[f"{name}/tokens"] = self._tokens[index] / all_tokens
            values[f"{name}/skipped"] = skipped.get(source.name, 0)
        self._start()
        return values
