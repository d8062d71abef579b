"""What each source of a mixture takes and how well it is learnt."""

from collections.abc import Mapping

import numpy as np

from omnivinci_jax.data.mixture import Mixture


class SourceMeter:
    """Losses and tokens of each source between two looks, and samples that could not be read since the run began."""

    def __init__(self, mixture: Mixture):
        self._mixture = mixture
        self._start()

    def _start(self) -> None:
        count = len(self._mixture.sources)
        self._losses, self._weights, self._tokens = np.zeros(count), np.zeros(count), np.zeros(count)

    def add(self, samples: list[int], metrics: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Notes a step and the samples planned for it; returns how many of each source it could not read.

        Losses of an update that is not finite are left out, as the update is.
        """
        count, of = len(self._mixture.sources), self._mixture.source_of(np.array(samples, int))
        if metrics["finite"]:
            self._losses += metrics["source_losses"]
            self._weights += metrics["source_weights"]
        self._tokens += np.bincount(of, self._mixture.sizes[samples, 0], count)
        missing = np.bincount(of, minlength=count) - metrics["source_samples"]
        return {source.name: int(n) for source, n in zip(self._mixture.sources, missing, strict=True) if n}

    def values(self, skipped: Mapping[str, int]) -> dict[str, float]:
        """Metrics "modality/source/…" since the last call; none where there is one source.

        loss: mean over its trained tokens, where there were any; tokens: its share of all slots that were not padding;
        skipped: the number given.
        """
        values, all_tokens = {}, max(self._tokens.sum(), 1.0)
        for number, source in enumerate(self._mixture.sources if len(self._mixture.sources) > 1 else ()):
            name = f"{source.modality}/{source.name}"
            if self._weights[number]:
                values[f"{name}/loss"] = self._losses[number] / self._weights[number]
            values[f"{name}/tokens"] = self._tokens[number] / all_tokens
            values[f"{name}/skipped"] = skipped.get(source.name, 0)
        self._start()
        return values
