"""GPUs that are not there: real values on the CPU, and a tag on each storage that is pretended to be on `cuda:k`.

    with pretended_cuda() as gpu:          # one, or pretended_cuda(2)
        ...                                # torch.cuda.is_available(); .to("cuda"), device="cuda" and autocast work
    assert not gpu.violations              # operations that mixed devices, and what else a GPU would refuse
    gpu.syncs, gpu.uploads                 # where the CPU waited for the GPU; copies to it

An operation (`TorchDispatchMode`, so in backward and in optimisers too) whose tensors lie on several devices raises as
torch would, and is noted, because a pool's retries swallow an exception. Attributes, moves and factories are a
`TorchFunctionMode`'s. Both belong to the thread that entered. Not seen: gradients that cross devices by themselves
(those of a move go back with it), kernels that read memory past torch, streams, and how long anything takes.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.utils import clip_grad
from torch.optim import optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
_aten = torch.ops.aten
_COPIES = {_aten.copy_.default, _aten._to_copy.default}
"""May have tensors on several devices."""
_INDEXING = {_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default, _aten._index_put_impl_.default}
"""May have indices on the CPU; those of truth values make the CPU wait for their number."""
_WAITING = {
    _aten._local_scalar_dense.default, _aten.nonzero.default, _aten.masked_select.default, _aten.equal.default,
    _aten._unique2.default, _aten.unique_dim.default, _aten.repeat_interleave.Tensor,
}  # fmt: skip
"""Their result, or its size, is known only when the GPU has come so far."""


class PretendedCuda:
    """What lies on the pretended GPUs, and what was done wrong with them."""

    def __init__(self, num_gpus: int = 1) -> None:
        self.gpus = [torch.device("cuda", index) for index in range(num_gpus)]
        self.violations: list[str] = []
        self.syncs: Counter[str] = Counter()
        """By the line of the code that is nearest to them, outside of libraries."""
        self.uploads = 0
        self.pickled = 0
        """Tensors of the GPU that were pickled."""
        self.forced: torch.device | None = None
        """Where the tensors lie that the running operation makes; None: where its inputs do."""
        self._tags: dict[int, tuple[StorageWeakRef, torch.device]] = {}
        """While a weak reference lives, its address is nobody else's."""

    def place(self, tensor: Any) -> torch.device:
        """Return the device on which a tensor is pretended to lie."""
        if not isinstance(tensor, Tensor) or tensor.is_meta:
            return CPU
        tag = self._tags.get(tensor.untyped_storage()._cdata)
        return CPU if tag is None else tag[1]

    def holds(self, tensor: Any) -> bool:
        """Whether a tensor lies on a pretended GPU."""
        return self.place(tensor) != CPU

    def device(self, named: Any) -> torch.device:
        """Return the device that is meant: `cuda` is the first GPU."""
        device = torch.device(named)
        return device if device.type != "cuda" else self.gpus[device.index or 0]

    def tag(self, tensor: Any, device: torch.device) -> None:
        """Let a tensor's storage lie on a device."""
        if isinstance(tensor, Tensor) and not tensor.is_meta and device != CPU:
            storage = tensor.untyped_storage()
            self._tags.setdefault(storage._cdata, (StorageWeakRef(storage), device))
        if len(self._tags) % 1000 == 999:
            self._tags = {key: tag for key, tag in self._tags.items() if not tag[0].expired()}

    def moved(self, tensor: Tensor, device: torch.device, *, non_blocking: bool = False) -> Tensor:
        """Return a copy of a tensor on another device; its gradient comes back from there."""
        return _Move.apply(tensor, device, self, non_blocking)

    def copied(self, tensor: Tensor, device: torch.device, *, non_blocking: bool = False) -> Tensor:
        """Return such a copy without a way back."""
        if device == CPU:
            self.wait()
        elif self.place(tensor) == CPU:
            self.upload(non_blocking=non_blocking)
        before, self.forced = self.forced, device
        try:
            return tensor.clone(memory_format=torch.preserve_format)
        finally:
            self.forced = before

    def refuse(self, what: str, error: type[Exception] = RuntimeError) -> None:
        """Note a violation and raise it."""
        self.violations.append(f"{what} at {_line()}")
        raise error(self.violations[-1])

    def upload(self, *, non_blocking: bool) -> None:
        """Note a copy to the GPU; unless it is told not to, torch waits until it is done, and all work before it."""
        self.uploads += 1
        if not non_blocking:
            self.wait()

    def wait(self) -> None:
        """Note that the CPU waits for the GPU."""
        self.syncs[_line()] += 1


def _line() -> str:
    """Return the innermost line of our own code on the stack, as `folder/file.py:line`."""
    frame = sys._getframe()
    while frame.f_back is not None and (
        frame.f_code.co_filename == __file__ or "/lib/python" in frame.f_code.co_filename
    ):
        frame = frame.f_back
    return f"{'/'.join(Path(frame.f_code.co_filename).parts[-2:])}:{frame.f_lineno}"


class _Move(torch.autograd.Function):
    """A move between devices, for which autograd knows the way back."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, device: torch.device, gpu: PretendedCuda, non_blocking: bool) -> Tensor:
        ctx.back = gpu, gpu.place(tensor)
        return gpu.copied(tensor, device, non_blocking=non_blocking)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        gpu, device = ctx.back
        return gpu.copied(gradient, device), None, None, None


class _Operations(TorchDispatchMode):
    """Refuses what mixes devices, and lets results lie where their inputs do."""

    def __init__(self, gpu: PretendedCuda) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        gpu, kwargs = self._gpu, kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        places = [gpu.place(tensor) for tensor in tensors]
        where = next((place for place in places if place != CPU), CPU)
        if where != CPU:
            self._check(func, tensors, places, where, len(args) > 2 and args[2] is True)
        result = func(*args, **kwargs)
        made_on = where if gpu.forced is None else gpu.forced
        if made_on != CPU and func is not _aten.copy_.default:
            known = {tensor.untyped_storage()._cdata for tensor in tensors if not tensor.is_meta}
            for made in tree_leaves(result):
                if isinstance(made, Tensor) and not made.is_meta and made.untyped_storage()._cdata not in known:
                    gpu.tag(made, made_on)
        return result

    def _check(
        self, func: Any, tensors: list[Tensor], places: list[torch.device], where: torch.device, is_non_blocking: bool
    ) -> None:
        gpu = self._gpu
        if func in _COPIES:
            if func is _aten.copy_.default and places[0] != places[1]:
                if places[0] == CPU:
                    gpu.wait()
                elif places[1] == CPU:
                    gpu.upload(non_blocking=is_non_blocking)
            return
        indices = slice(1, None) if func in _INDEXING else slice(0)
        for number, (tensor, place) in enumerate(zip(tensors, places, strict=True)):
            is_index = number in range(*indices.indices(len(tensors))) and tensor.dtype in (torch.int64, torch.bool)
            if is_index and place == CPU and places[0] != CPU:
                gpu.upload(non_blocking=False)
            may_differ = place == CPU and (not tensor.dim() or (is_index and places[0] != CPU))
            if place != where and not tensor.is_meta and not may_differ:
                gpu.refuse(f"{func} with tensors on {', '.join(map(str, places))}")
        of_truths = func in _INDEXING and any(tensor.dtype is torch.bool for tensor in tensors[1:])
        if func in _WAITING or of_truths:
            gpu.wait()


class _Attributes(TorchFunctionMode):
    """Attributes, moves and factories, which do not reach the dispatcher with the pretended device."""

    def __init__(self, gpu: PretendedCuda) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        gpu, kwargs = self._gpu, dict(kwargs or {})
        kwargs.pop("pin_memory", None)
        handler = _HANDLERS.get(func)
        if handler is not None and args and isinstance(args[0], Tensor) and not args[0].is_meta:
            return handler(self, func, args, kwargs)
        if kwargs.get("device") is None or torch.device(kwargs["device"]).type == "meta":
            return func(*args, **kwargs)
        device = gpu.device(kwargs["device"])
        before, gpu.forced = gpu.forced, device
        kwargs["device"] = CPU
        try:
            result = func(*args, **kwargs)
        finally:
            gpu.forced = before
        gpu.tag(result, device)  # of what is made past the dispatcher, such as `torch.tensor`
        if device != CPU and func in (torch.tensor, torch.as_tensor, torch.asarray) and result.numel():
            gpu.upload(non_blocking=False)
        return result

    def place(self, func: Any, args: Any, kwargs: Any) -> Any:
        return self._gpu.place(args[0]) if self._gpu.holds(args[0]) else func(*args, **kwargs)

    def is_cuda(self, func: Any, args: Any, kwargs: Any) -> bool:
        return self._gpu.holds(args[0])

    def is_cpu(self, func: Any, args: Any, kwargs: Any) -> bool:
        return not self._gpu.holds(args[0])

    def to(self, func: Any, args: Any, kwargs: Any) -> Any:
        tensor, *rest = args
        copy = kwargs.pop("copy", False)
        if rest and isinstance(rest[0], Tensor):
            rest[0:1] = [self._gpu.place(rest[0]), rest[0].dtype]
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*rest, **kwargs)
        if device is not None and device.type == "meta":
            return func(*args, **kwargs)
        before = self._gpu.place(tensor)
        after = before if device is None else self._gpu.device(device)
        if after != before:
            tensor, copy = self._gpu.moved(tensor, after, non_blocking=non_blocking), False
        return tensor.to(dtype=dtype or tensor.dtype, copy=copy)

    def cpu(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        return self._gpu.moved(args[0], CPU) if self._gpu.holds(args[0]) else args[0]

    def cuda(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        return args[0] if self._gpu.holds(args[0]) else self._gpu.moved(args[0], CUDA)

    def numpy(self, func: Any, args: Any, kwargs: Any) -> Any:
        if self._gpu.holds(args[0]):
            self._gpu.refuse(f"can't convert {self._gpu.place(args[0])} device type tensor to numpy", TypeError)
        return func(*args, **kwargs)

    def tolist(self, func: Any, args: Any, kwargs: Any) -> Any:
        if self._gpu.holds(args[0]):
            self._gpu.wait()
        return func(*args, **kwargs)

    def set_grad(self, func: Any, args: Any, kwargs: Any) -> Any:
        if args[1] is not None and self._gpu.place(args[0]) != self._gpu.place(args[1]):
            self._gpu.refuse("assigned grad has data located on a different device")
        return func(*args, **kwargs)

    def deepcopy(self, func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        self._gpu.tag(result, self._gpu.place(args[0]))  # storages are copied past the dispatcher
        return result

    def new_tensor(self, func: Any, args: Any, kwargs: Any) -> Any:
        device = self._gpu.device(kwargs.pop("device")) if "device" in kwargs else self._gpu.place(args[0])
        result = func(*args, **kwargs)
        if device != CPU:
            self._gpu.upload(non_blocking=False)
        self._gpu.tag(result, device)
        return result

    def backward(self, func: Any, args: Any, kwargs: Any) -> Any:
        with self:  # hooks run inside
            return torch.autograd.backward(args[0], grad_tensors=kwargs.pop("gradient", None), **kwargs)


_HANDLERS = {
    Tensor.device.__get__: _Attributes.place,
    Tensor.is_cuda.__get__: _Attributes.is_cuda,
    Tensor.is_cpu.__get__: _Attributes.is_cpu,
    Tensor.to: _Attributes.to,
    Tensor.cpu: _Attributes.cpu,
    Tensor.cuda: _Attributes.cuda,
    Tensor.numpy: _Attributes.numpy,
    Tensor.__array__: _Attributes.numpy,
    Tensor.tolist: _Attributes.tolist,
    Tensor.grad.__set__: _Attributes.set_grad,
    Tensor.__deepcopy__: _Attributes.deepcopy,
    Tensor.new_tensor: _Attributes.new_tensor,
    Tensor.backward: _Attributes.backward,
}


class _Generator(torch.Generator):
    """The CPU's in place of the GPU's."""

    def __new__(cls, device: Any = CPU) -> "_Generator":
        return super().__new__(cls, CPU if torch.device(device).type == "cuda" else device)


class _Autocast(torch.autocast):
    """The CPU's in place of the GPU's."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


def _cuda_functions(gpu: PretendedCuda, free: Sequence[int]) -> dict[str, Any]:
    constants = {
        "is_available": True, "is_initialized": True, "device_count": len(gpu.gpus), "current_device": 0,
        "get_device_name": "Pretended", "get_device_capability": (8, 0), "is_bf16_supported": True,
        "memory_reserved": 0, "memory_allocated": 0,
        "max_memory_reserved": 0, "max_memory_allocated": 0,
        "empty_cache": None, "reset_peak_memory_stats": None, "set_device": None, "manual_seed_all": None,
        "manual_seed": None, "set_rng_state": None, "is_current_stream_capturing": False, "init": None,
    }  # fmt: skip
    patched: dict[str, Any] = {name: lambda *_, value=value, **__: value for name, value in constants.items()}
    return patched | {
        "get_rng_state": lambda *_: torch.empty(16, dtype=torch.uint8),
        "synchronize": lambda *_: gpu.wait(),
        "mem_get_info": lambda index=0: (free[torch.device("cuda", index).index], 80 * 2**30),
    }


@contextmanager
def pretended_cuda(num_gpus: int = 1, free: Sequence[int] | None = None) -> Iterator[PretendedCuda]:
    """Pretend that this process has GPUs, with so many bytes free on each; None: 80 GiB."""
    gpu = PretendedCuda(num_gpus)
    free = free or [80 * 2**30] * num_gpus
    enabled, group = torch.is_autocast_enabled, clip_grad._group_tensors_by_device_and_dtype

    def is_autocast_enabled(*device: str) -> bool:
        return enabled("cpu")

    def grouped(lists: Any, with_indices: bool = False) -> Any:
        found: dict[Any, Any] = {}
        for (_, dtype), (tensors, indices) in group(lists, True).items():
            for row, index in enumerate(indices):
                columns, rows = found.setdefault((gpu.place(tensors[0][row]), dtype), ([[] for _ in tensors], []))
                rows.append(index)
                for column, values in zip(columns, tensors, strict=True):
                    column += values[row : row + 1]  # some lists are empty
        return found

    reduce = Tensor._reduce_ex_internal

    def reduce_counted(tensor: Tensor, protocol: int) -> Any:  # past all modes
        gpu.pickled += gpu.holds(tensor)
        return reduce(tensor, protocol)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(Tensor, "_reduce_ex_internal", reduce_counted))
        for module in (clip_grad, optimizer):
            stack.enter_context(mock.patch.object(module, "_group_tensors_by_device_and_dtype", grouped))
        stack.enter_context(mock.patch.multiple(torch.cuda, **_cuda_functions(gpu, free)))
        stack.enter_context(mock.patch.object(torch, "autocast", _Autocast))
        stack.enter_context(mock.patch.object(torch, "Generator", _Generator))
        stack.enter_context(mock.patch.object(torch, "is_autocast_enabled", is_autocast_enabled))
        stack.enter_context(_Operations(gpu))
        stack.enter_context(_Attributes(gpu))
        yield gpu
