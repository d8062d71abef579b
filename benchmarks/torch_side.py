"""The PyTorch side of benchmarks/train_step.py."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.torch_model import TorchOmniVinci, torch_batch
from omnivinci_jax.sequence.batch import Batch
from omnivinci_jax.settings import TrainConfig

Program = Callable[[], None]


class TorchSide:
    """A training run on all cores, or on a GPU if torch finds one."""

    def __init__(self, config: TrainConfig, batch: Batch, folder: Path):
        """Draws random weights and saves them in `folder` for the JAX side."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.manual_seed(config.seed)
        self.config, self.folder = config, folder
        self.version = f"torch {torch.__version__}"
        self.model = TorchOmniVinci(config.model).to(device).train()
        self.batch = torch_batch(batch, device)
        weights = {name: tensor.contiguous() for name, tensor in self.model.state_dict().items()}
        save_file(weights, folder / "weights.safetensors")
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        settings = config.optimizer
        self.optimizer = torch.optim.AdamW(
            self.trained, settings.learning_rate, (settings.b1, settings.b2), settings.eps, settings.weight_decay,
            fused=True,  # the fastest of torch's three implementations, also on a CPU
        )  # fmt: skip

    def gradients(self) -> float:
        """Returns the loss at the initial weights; saves its gradients for the JAX side."""
        loss = self._loss()
        loss.backward()
        gradients = {name: p.grad.contiguous() for name, p in self.model.named_parameters() if p.requires_grad}
        save_file(gradients, self.folder / "gradients.safetensors")
        self.optimizer.zero_grad()
        return loss.item()

    def programs(self) -> dict[str, Program]:
        """Returns the timed programs by name; see benchmarks/train_step.py."""
        model, batch = self.model, self.batch
        with torch.no_grad(), self._autocast():
            x = model.fill_slots(batch, model.vision_tokens(batch.tiles), model.sound_tokens(batch.windows))
            hidden = model.decode(x)
        gradients = [torch.full_like(parameter, 1e-3) for parameter in self.trained]
        programs = {
            "forward": partial(self._forward, self._loss),
            "train step": self._train_step,
            "optimizer": partial(self._update, gradients),
        }
        for name, part in {
            "vision tower": partial(model.vision_tokens, batch.tiles),
            "sound tower": partial(model.sound_tokens, batch.windows),
            "decoder": partial(model.decode, x.requires_grad_()),
            "head and loss": partial(model.loss, hidden.requires_grad_(), batch.labels),
        }.items():
            programs[name] = partial(self._forward, part)
            programs[f"{name}, backward"] = partial(self._backward, part)
        return programs

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.batch.tokens.device.type, torch.bfloat16, enabled=self.config.dtype == "bfloat16")

    def _loss(self) -> torch.Tensor:
        with self._autocast():
            return self.model(self.batch)

    def _forward(self, function: Callable[[], torch.Tensor]) -> None:
        with torch.no_grad(), self._autocast():
            function()
        self._wait()

    def _backward(self, function: Callable[[], torch.Tensor]) -> None:
        with self._autocast():
            out = function()
        out.backward(torch.ones_like(out))
        self.optimizer.zero_grad()
        self._wait()

    def _train_step(self) -> None:
        self._loss().backward()
        self._update([parameter.grad for parameter in self.trained])

    def _update(self, gradients: list[torch.Tensor]) -> None:
        for parameter, gradient in zip(self.trained, gradients, strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(self.trained, self.config.optimizer.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._wait()

    def _wait(self) -> None:
        if self.batch.tokens.is_cuda:
            torch.cuda.synchronize()
