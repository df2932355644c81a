"""Language models in shards: every process keeps a piece of their weights, gradients and moments (torch's FSDP2).

accelerate would deal out all weights of a model, also those that are read outside of its forward pass: codes in a
search, codebooks in a refresh. Here the stacks of transformers are dealt out alone; DDP keeps all else alike. What is
dealt out is a DTensor; torch's modules of that name are imported where they are needed, since they take half a second.
"""

import contextlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from data import Batch
from recommenders.base import Model
from utils import Problem, load_weights, log


def asked() -> bool:
    """Did the launcher's configuration ask for shards? It is told here, not to accelerate."""
    if os.environ.pop("ACCELERATE_USE_FSDP", "").lower() == "true":
        os.environ["DIGER_SHARDS"] = "1"
    return "DIGER_SHARDS" in os.environ


def deal_out(model: nn.Module, acc: Accelerator) -> None:
    """Leave this process its piece of a language model, where there are several; Problem where it cannot be done."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    stacks = getattr(getattr(model, "recommender", None), "stacks", None)
    if stacks is None:
        raise Problem(
            "accelerate_fsdp.yaml: only causal_lm and seq2seq_lm can be dealt out to processes; take "
            "accelerate_multi_gpu.yaml for other recommenders"
        )
    if acc.mixed_precision == "fp16":
        raise Problem("mixed_precision: fp16 cannot be had with accelerate_fsdp.yaml; use bf16 or no")
    if acc.num_processes == 1:
        return
    low = torch.bfloat16 if acc.mixed_precision == "bf16" else None
    how: dict[str, Any] = {
        "mesh": init_device_mesh(acc.device.type, (acc.num_processes,)),
        "mp_policy": MixedPrecisionPolicy(low, torch.float32 if low else None, cast_forward_inputs=False),
    }
    for stack in stacks.values():
        for module in stack.modules():
            if type(module).__name__ in (stack._no_split_modules or ()):
                fully_shard(module, **how)
        fully_shard(stack, **how)
    dealt = {name: p for name, p in model.named_parameters() if is_dealt(p)}
    total = sum(p.numel() for p in model.parameters())
    told = f"{sum(p.numel() for p in dealt.values()):,} of {total:,} weights"
    log.info(f"shards: {told} are split over {acc.num_processes} processes, the others are on each")
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, list(dealt))


@contextlib.contextmanager
def whole(model: Any) -> Iterator[None]:
    """Within, each process has all weights and calls the model as often as it likes, without gradients."""
    units: list[Any] = [m for m in model.modules() if hasattr(m, "unshard")] if isinstance(model, nn.Module) else []

    def keep(*, all_of_it: bool) -> None:
        with torch.inference_mode(mode=False), torch.no_grad():
            for unit in units:
                unit.set_reshard_after_forward(not all_of_it, recurse=False)
                unit.unshard() if all_of_it else unit.reshard()

    keep(all_of_it=True)
    try:
        yield
    finally:
        keep(all_of_it=False)


class Shards:
    """A model as optimizer and files see it: this process's pieces, and whole tensors.

    Where nothing was dealt out all is as it is. What gathers or reduces is called by all processes alike.
    """

    def __init__(self, model: Model, acc: Accelerator) -> None:
        self.model, self.acc = model, acc
        with torch.no_grad():
            self.piece = {p: nn.Parameter(local(p), p.requires_grad) for p in model.parameters() if is_dealt(p)}
        self.dealt = {piece: p for p, piece in self.piece.items()}

    # ---- a step

    def even(self, parts: list[Batch]) -> list[Batch]:
        """As many parts on every process, since each gathers weights; those that are added weigh nothing."""
        if not self.dealt:
            return parts
        most = int(self.acc.reduce(torch.tensor(len(parts), device=self.acc.device), "max"))
        return parts + [parts[-1].weightless()] * (most - len(parts))

    def take_gradients(self) -> None:
        """Hand the gradients of what was dealt out to the pieces."""
        for p, piece in self.piece.items():
            piece.grad, p.grad = local(p.grad), None

    def norm(self, params: list[nn.Parameter]) -> Tensor:
        """Norm of the gradients of parameters, of pieces those of all processes together."""
        alike, mine = (
            get_total_norm([p.grad for p in params if p.grad is not None and (p in self.dealt) is dealt])
            for dealt in (False, True)
        )
        if any(p in self.dealt for p in params):
            alike = (alike.square() + self.acc.reduce(mine.to(self.acc.device).square(), "sum")).sqrt()
        return alike.to(self.acc.device)

    # ---- files

    def state(self, without: Collection[str] = ()) -> dict[str, Any]:
        """The model's state, whole on the first process, without some names."""
        held = {k: x for k, x in self.model.state_dict().items() if k not in without}
        return {k: self._gathered(x) if is_dealt(x) else x for k, x in held.items()}

    def load(self, state: Mapping[str, Any], without: Collection[str] = ()) -> None:
        """Fill the model from a whole state, which may lack some names; RuntimeError where it does not fit."""
        held = self.model.state_dict()
        taken = {k: share(x, held.get(k)) for k, x in state.items()}
        load_weights(self.model, {k: held[k] for k in without} | taken)

    def moments(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """An optimizer's state, whole on the first process."""

        from torch.distributed.tensor import DTensor

        def gathered(x: Any, like: Any) -> Any:
            if like is None or not x.ndim:  # a number of steps
                return x
            sizes = {"shape": like.shape, "stride": like.stride()}
            return self._gathered(DTensor.from_local(x, like.device_mesh, like.placements, **sizes))

        return self._each(optimizer, optimizer.state_dict(), gathered)

    def load_moments(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Fill an optimizer from a whole state."""
        optimizer.load_state_dict(self._each(optimizer, state, lambda x, like: local(share(x, like))))

    def _gathered(self, x: Any) -> Tensor | None:
        found: Tensor = x.full_tensor()
        return found.cpu() if self.acc.is_main_process else None

    def _each(
        self, optimizer: torch.optim.Optimizer, state: dict[str, Any], work: Callable[[Any, Any], Any]
    ) -> dict[str, Any]:
        """A state with its tensors changed; work: (tensor, what was dealt out of its parameter or None)."""
        likes = [self.dealt.get(p) for group in optimizer.param_groups for p in group["params"]]
        own = {i: {k: work(x, likes[i]) for k, x in kept.items()} for i, kept in state["state"].items()}
        return state | {"state": own}


def is_dealt(x: Any) -> bool:
    return hasattr(x, "to_local")


def local(x: Any) -> Any:
    """What this process has of a tensor."""
    return x.to_local() if is_dealt(x) else x


def share(x: Any, like: Any) -> Any:
    """This process's part of a whole tensor, where `like` of its shape was dealt out."""
    if not is_dealt(like) or not isinstance(x, Tensor) or x.shape != like.shape:
        return x
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(x.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
