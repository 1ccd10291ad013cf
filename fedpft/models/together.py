"""Many clients in one forward pass: what a model does otherwise when its batch is several clients' batches.

The clients' batches of one shape, (B, T, ...), lie one after the other, (K * B, T, ...), and every tensor of the
adapter has a leading axis of clients, (K, ...) (see `FlatAdapter`). Nothing in the model is replaced: within
:class:`Together` torch asks first what becomes of a function's call.

- A linear layer with a weight of three axes is the clients' own: LoRA's and the head's are all of these.
- Dropout draws each client's mask from that client's generator; attention with dropout is computed in its plain form.
- The loss is not one mean but the mean of each client, (K,); the sum of these mixes no gradient.
- On a CPU in float32 (`exact`) each client gets the bits that it gets alone. Rows of a matrix product do not depend on
  how many others there are, nor do attention and norms. What does is computed client by client: products of few
  rows, a head, convolutions, and activation functions whose last elements do not fill a register.

Everything else, the frozen weights above all, is computed once for all clients.

Legend: `K` clients, `B` batch of each, `T` tokens, `H` hidden.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fedpft.models.ffn import ffn_location, find_backbone
from fedpft.models.stacked_linear import LINE, alone, is_few, stacked_linear

REGISTER = 64
"""Numbers that surely fill whole vector registers, unrolled loops included (32 with AVX-512)."""

ONE_BY_ONE = {
    "deberta-v2": ("attention", ("hidden_states", "attention_mask", "query_states")),
    "mpnet": ("attention", ("hidden_states", "attention_mask", "position_bias")),
    "gemma2": ("self_attn", ("hidden_states", "attention_mask")),
}
"""Families with a module in each layer that runs client by client, and which of its arguments have rows of clients.

DeBERTa's mixes such rows with what has none: it sends one table of relative positions through the projections with
LoRA. MPNet and Gemma 2 compute attention in a form of their own, whose bits depend on how many rows there are. All that
reads the module's input, the residual too, is inside, so that its gradients add up as for one client.
"""


class ForeignDrawError(RuntimeError):
    """The model drew random numbers that belong to no client: it cannot run for several at once."""


class Together(TorchFunctionMode):
    """A context in which a model's forward pass is that of several clients.

    Args:
        generators: one for each client, in the order of their rows, on the model's device.
        exact: whether each client must get the bits that it gets alone (CPU, float32).

    Raises:
        ForeignDrawError: at the end, where random numbers were drawn in a way that is not known here.

    """

    current: "Together | None" = None
    """The one that is entered."""

    def __init__(self, generators: Sequence[torch.Generator], *, exact: bool) -> None:
        super().__init__()
        self._generators, self._exact = generators, exact
        self._clients = range(len(generators))
        self._has_threads = torch.get_num_threads() > 1

    def __enter__(self) -> "Together":
        """Begin; see the class."""
        Together.current = self
        self._state = torch.default_generator.get_state()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """End; see the class."""
        super().__exit__(*error)
        Together.current = None
        if error[0] is None and not torch.equal(torch.default_generator.get_state(), self._state):
            raise ForeignDrawError("the model draws random numbers that are no dropout's")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch, or what stands for it here."""
        kwargs = kwargs or {}
        stand_in = _STAND_INS.get(func)
        return func(*args, **kwargs) if stand_in is None else stand_in(self, func, *args, **kwargs)

    @property
    def num_clients(self) -> int:
        """K of the rows that are computed now."""
        return len(self._clients)

    @contextmanager
    def only(self, client: int) -> Iterator[None]:
        """Let the rows be those of one client, by its position."""
        before, self._clients = self._clients, range(client, client + 1)
        try:
            yield
        finally:
            self._clients = before

    def _linear(self, func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if weight.dim() == 2:
            rows = input.numel() // input.shape[-1]
            few = is_few(rows // self.num_clients, input.shape[-1], len(weight))
            return self._by_client_if(few, lambda part: F.linear(part, weight, bias), input)
        if self.num_clients == 1:
            (client,) = self._clients
            return F.linear(input, weight[client], None if bias is None else bias[client])
        return stacked_linear(input, weight, bias, exact=self._exact)

    def _addmm(self, func: Any, input: Tensor, mat1: Tensor, mat2: Tensor, **kwargs: Any) -> Tensor:
        few = is_few(len(mat1) // self.num_clients, *mat2.shape)
        return self._by_client_if(few, lambda part: func(input, part, mat2, **kwargs), mat1)

    def _convolution(self, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self._by_client_if(True, lambda part: func(part, *args, **kwargs), input)

    def _activation(self, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        uneven = self._has_threads or input.numel() // self.num_clients % REGISTER > 0
        kwargs.pop("inplace", None)
        return self._by_client_if(uneven, lambda part: func(part, *args, **kwargs), input)

    def _layer_norm(
        self,
        func: Any,
        input: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        if self.num_clients == 1 or weight is None or weight.dim() == len(normalized_shape):
            return func(input, normalized_shape, weight, bias, eps)
        biases = [None] * len(weight) if bias is None else bias.unbind()
        parts = zip(input.chunk(self.num_clients), weight.unbind(), biases, strict=True)
        return torch.cat([alone(lambda x, w=w, b=b: func(x, normalized_shape, w, b, eps), x) for x, w, b in parts])

    def _by_client_if(self, differs: bool, function: Callable[[Tensor], Tensor], input: Tensor) -> Tensor:
        """Apply a function to all rows, or if a client's would come out otherwise, to one client's after the other."""
        if not (differs and self._exact) or self.num_clients == 1:
            return function(input)
        return torch.cat([alone(function, part) for part in input.chunk(self.num_clients)])

    def _dropout(
        self, func: Any, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        return input * self._noise(input, p) if training and p > 0 else input

    def _noise(self, like: Tensor, p: float) -> Tensor:
        """Return what dropout multiplies with, 0 or 1 / (1 - p), each client's from its own generator."""
        noise = torch.empty_like(like, requires_grad=False)
        for client, part in zip(self._clients, noise.chunk(self.num_clients), strict=True):
            part.bernoulli_(1 - p, generator=self._generators[client])
        return noise.div_(1 - p)

    def _attention(
        self,
        func: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        # of one example the matrices lie otherwise than of several
        uneven = query.numel() * key.shape[-2] // query.shape[-1] // self.num_clients % LINE or query.numel() % LINE
        if self._exact and self.num_clients > 1 and (uneven or len(query) == self.num_clients):
            return self._attention_by_client(
                query, key, value, attn_mask, func, dropout_p, is_causal, scale, enable_gqa
            )
        if not dropout_p:
            return func(query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa)
        if enable_gqa:
            key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
        if is_causal:
            attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, -math.inf)
        root = math.sqrt(query.shape[-1] ** -0.5 if scale is None else scale)  # as torch's own plain form scales
        scores = (query * root) @ (key.mT * root)
        weights = torch.softmax(scores if attn_mask is None else scores + attn_mask, -1)
        return (weights * self._noise(weights, dropout_p)) @ value

    def _attention_by_client(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, func: Any, *settings: Any
    ) -> Tensor:
        masks = [attn_mask] * self.num_clients
        if attn_mask is not None and len(attn_mask) == len(query):
            masks = list(attn_mask.chunk(self.num_clients))
        parts = zip(*(tensor.chunk(self.num_clients) for tensor in (query, key, value)), strict=True)
        outputs = []
        for client, mask, part in zip(list(self._clients), masks, parts, strict=True):
            with self.only(client):
                outputs.append(alone(lambda q, k, v, m=mask: self._attention(func, q, k, v, m, *settings), *part))
        return torch.cat(outputs)

    def _loss(self, func: Any, input: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.num_clients == 1:
            return func(input, target, *args, **kwargs)[None]
        parts = zip(input.chunk(self.num_clients), target.chunk(self.num_clients), strict=True)
        return torch.stack([func(*part, *args, **kwargs) for part in parts])


_STAND_INS: dict[Any, Callable[..., Tensor]] = {
    F.linear: Together._linear,
    torch.addmm: Together._addmm,
    torch.conv1d: Together._convolution,
    torch.conv2d: Together._convolution,
    **dict.fromkeys([F.gelu, F.silu, torch.sigmoid, Tensor.sigmoid], Together._activation),
    F.layer_norm: Together._layer_norm,
    F.dropout: Together._dropout,
    F.scaled_dot_product_attention: Together._attention,
    **dict.fromkeys([F.cross_entropy, F.mse_loss], Together._loss),
}
"""Function of torch -> what is done instead."""


def prepare_for_many(model: nn.Module) -> None:
    """Let the modules of `ONE_BY_ONE` run client by client within :class:`Together`; outside nothing changes."""
    path, names = ONE_BY_ONE.get(find_backbone(model).config.model_type, (None, ()))
    if path is not None:
        for layer in attrgetter(ffn_location(model).layers)(find_backbone(model)):
            module = attrgetter(path)(layer)
            kind = type(module)
            module.__class__ = type(kind.__name__, (_OneByOne, kind), {"with_rows": names})


class _OneByOne:
    """Comes before a module's class."""

    with_rows: tuple[str, ...]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        forward, mode = super().forward, Together.current  # type: ignore[misc]  # the module's
        if mode is None or mode.num_clients == 1:
            return forward(*args, **kwargs)
        given = inspect.signature(forward).bind(*args, **kwargs).arguments
        num_rows = len(given[self.with_rows[0]])
        have_rows = [name for name in self.with_rows if given.get(name) is not None and len(given[name]) == num_rows]
        rows = {name: given[name].chunk(mode.num_clients) for name in have_rows}
        outputs = []
        for client in range(mode.num_clients):
            with mode.only(client):
                of_client = {name: parts[client] for name, parts in rows.items()}
                if (cache := given.get("past_key_values")) is not None:
                    of_client["past_key_values"] = type(cache)()  # of one client: keys are kept from no pass to another
                outputs.append(forward(**given | of_client))
        return tuple(None if parts[0] is None else torch.cat(parts) for parts in zip(*outputs, strict=True))
