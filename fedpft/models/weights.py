"""Pack a model for travel: a skeleton without weights, and the weights as plain arrays.

NumPy arrays pass through Ray's object store without a copy, so that all actors of a node can read one set of frozen
weights. Tied parameters stay tied. NumPy has no bfloat16: such weights are arrays of their 16 bits as uint16, and the
skeleton's parameters say what they are.
"""

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from fedpft.models.patches import Change, Patch
from fedpft.models.spread import stay

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class PackedModel:
    """A model whose parameters are on the meta device, and their values by name (each tied group once).

    Of one that had no values itself there are none, and it stays so when it is unpacked.
    """

    skeleton: nn.Module
    weights: Mapping[str, np.ndarray]

    @property
    def num_bytes(self) -> int:
        """Size of the weights."""
        return sum(array.nbytes for array in self.weights.values())


def pack_model(model: nn.Module) -> PackedModel:
    """Split a model into skeleton and weights; the weights are copies, the model is not changed."""
    weights = {name: as_array(parameter) for name, parameter in model.named_parameters() if not parameter.is_meta}
    return PackedModel(skeleton_of(model), weights)


def as_array(tensor: Tensor) -> np.ndarray:
    """Return a copy of a tensor's values; of bfloat16 the bits, uint16."""
    return _bits(tensor.detach().to("cpu", copy=True))


def _bits(values: Tensor) -> np.ndarray:
    return (values.view(torch.uint16) if values.dtype == torch.bfloat16 else values).numpy()


def as_tensor(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    """Return the tensor of this type that :func:`as_array` made an array of; it reads the array's memory.

    Raises:
        ValueError: the array is of another type.

    """
    with warnings.catch_warnings():  # read-only memory is the point: nobody writes to frozen parameters
        warnings.filterwarnings("ignore", message=".*not writable.*")
        values = torch.from_numpy(array)
    expected = torch.uint16 if dtype == torch.bfloat16 else dtype
    if values.dtype != expected:
        raise ValueError(f"array of {array.dtype}: {dtype} travels as {expected}")
    return values.view(dtype)


def skeleton_of(model: Model) -> Model:
    """Return a copy of a model with its parameters on the meta device; their values are not copied.

    All its other tensors, such as positions, are on the CPU: whoever gets the skeleton may have no GPU.
    """
    memo: dict[int, Tensor] = {
        id(tensor): tensor if tensor.is_meta else tensor.to("cpu", copy=True)
        for module in model.modules()
        for tensor in (*module.buffers(recurse=False), *vars(module).values())
        if isinstance(tensor, Tensor)
    }
    memo |= {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=p.requires_grad) for p in model.parameters()}
    skeleton = copy.deepcopy(model, memo)  # which takes the memo's tensors instead of copying the real ones
    stay(skeleton)
    return skeleton


def unpack_model(packed: PackedModel) -> nn.Module:
    """Rebuild the model. Frozen parameters read the packed arrays in place, trainable ones get copies."""
    model = copy.deepcopy(packed.skeleton)
    filled = {
        id(parameter): nn.Parameter(
            _tensor(packed.weights[name], parameter.dtype, writable=parameter.requires_grad), parameter.requires_grad
        )
        for name, parameter in model.named_parameters()
        if name in packed.weights
    }
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in filled:
                module.register_parameter(name, filled[id(parameter)])
    return model


def replace_weights(model: nn.Module, weights: Mapping[str, Change]) -> None:
    """Set named parameters to new values of the same shape and type, on the device where they are.

    Memory that others may read, too, is not written to: of a patched parameter on the CPU the model gets a copy.

    Raises:
        ValueError: a name, shape or type that the model does not have.

    """
    parameters = dict(model.named_parameters())
    for name, change in weights.items():
        if name not in parameters or parameters[name].shape != _shape_for(change, parameters[name]):
            found = tuple(parameters[name].shape) if name in parameters else "no such parameter"
            raise ValueError(f"weight update {name!r} of shape {_values(change).shape}: the model has {found}")
        parameter = parameters[name]
        if isinstance(change, Patch):
            parameter.data = _patched(parameter, change)
        else:
            parameter.data = _tensor(change, parameter.dtype, writable=parameter.requires_grad).to(parameter.device)


def patched(model: nn.Module, weights: Mapping[str, Change]) -> dict[str, np.ndarray]:
    """Return the whole values that :func:`replace_weights` gives the parameters, which do not change."""
    parameters = dict(model.named_parameters())
    return {
        name: _bits(_patched(parameters[name], change)) if isinstance(change, Patch) else change
        for name, change in weights.items()
    }


def _patched(parameter: nn.Parameter, patch: Patch) -> Tensor:
    values, device = parameter.detach(), parameter.device
    values = values.clone() if device.type == "cpu" else values
    new = as_tensor(patch.values, parameter.dtype).to(device)
    return values.index_copy_(patch.axis, torch.from_numpy(patch.index.astype(np.int64)).to(device), new)


def _shape_for(change: Change, parameter: Tensor) -> torch.Size:
    """Return the shape of the parameters that a change is for."""
    shape = list(_values(change).shape)
    if isinstance(change, Patch) and change.axis < parameter.dim() == len(shape):
        shape[change.axis] = parameter.shape[change.axis]
    return torch.Size(shape)


def _values(change: Change) -> np.ndarray:
    return change.values if isinstance(change, Patch) else change


def _tensor(array: np.ndarray, dtype: torch.dtype, *, writable: bool) -> Tensor:
    values = as_tensor(array, dtype)
    return values.clone() if writable else values
