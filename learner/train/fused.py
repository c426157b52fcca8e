"""Row-wise parts of a transformer layer in fewer kernels: RMS norm, gated activation, rotary embedding.

transformers writes these in single operations, each of which reads and writes all of its arrays. Between the products
of matrices that is most of the time of a layer. Here they take one kernel:

* the RMS norm always: PyTorch has a kernel for it;
* the gated activation act(gate) · up and the rotary embedding with ``learner.compile``, which generates theirs.

The products of matrices, the attention, FSDP's hooks and adapters are not touched. A part is exchanged only if it
computes what ours does, which is tried out on a few numbers; others stay as they are.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learner.train.kernels import kernel

_EPSILONS = ("variance_epsilon", "eps")  # what norms of transformers call the number that is added to the variance
_ROTARY = "apply_rotary_pos_emb"  # the function of transformers' modules, under which attention layers call it
_ROWS = 3  # that a part is tried out on
_ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 0.03}  # relative difference of norms, by rounding alone
_PLAIN = "_plain_class"  # attribute of the classes made here: the class that was exchanged


def fuse(model: nn.Module, *, compiled: bool) -> int:
    """Exchanges the row-wise parts of a model, in place. Parameters keep their names.

    Args:
        compiled: also those whose kernels are generated.

    Returns:
        How many modules compute otherwise now.
    """
    made: dict[tuple[type, str], type | None] = {}
    count = 0
    for module in model.modules():
        own = type(module)
        if hasattr(own, _PLAIN):
            continue
        # Norms are tried out each; of the larger ones, those of one class and activation are all alike.
        key = own, f"{id(module) if _is_norm(module) else type(getattr(module, 'act_fn', None))}"
        if key not in made:
            forward = _fused_forward(module, compiled)
            made[key] = None
            if forward is not None:
                made[key] = type(f"Fused{own.__name__}", (own,), {"forward": forward, _PLAIN: own})
        if (fused := made[key]) is not None:
            module.__class__ = fused
            count += 1
    return count


@contextmanager
def plain(model: nn.Module) -> Iterator[None]:
    """Within the block all parts compute as in transformers."""
    exchanged = [(module, type(module)) for module in model.modules() if hasattr(type(module), _PLAIN)]
    for module, made in exchanged:
        module.__class__ = getattr(made, _PLAIN)
    try:
        yield
    finally:
        for module, made in exchanged:
            module.__class__ = made


def _is_norm(module: nn.Module) -> bool:
    return "RMSNorm" in type(module).__name__


def _fused_forward(module: nn.Module, compiled: bool) -> Callable[..., Any] | None:
    """Another ``forward`` for the class of the module; None where there is none."""
    if _is_norm(module):
        return _norm(module)
    if not compiled:
        return None
    return _gated_layer(module) if hasattr(module, "act_fn") else _rotating(module)


def _agree(module: nn.Module, ours: Callable[[Tensor], Tensor], width: int) -> bool:
    """Whether the module computes what ``ours`` does, by a few rows of random numbers."""
    weight = next(module.parameters())
    x = torch.randn(_ROWS, width, generator=torch.Generator().manual_seed(0)).to(weight)
    with torch.no_grad():
        return _same(ours(x), module(x))


def _same(ours: Tensor, theirs: Tensor) -> bool:
    apart = (ours.float() - theirs.float()).norm()
    return bool(apart <= _ALLOWED.get(theirs.dtype, 0.0) * theirs.float().norm())


# -- RMS norm ----------------------------------------------------------------------------------------------------------


def _norm(module: nn.Module) -> Callable[..., Any] | None:
    epsilon = next((name for name in _EPSILONS if isinstance(getattr(module, name, None), float)), None)
    weight = getattr(module, "weight", None)
    if epsilon is None or not isinstance(weight, nn.Parameter) or weight.dim() != 1:
        return None

    def times_weight(self: Any, hidden_states: Tensor) -> Tensor:
        return F.rms_norm(hidden_states, self.weight.shape, self.weight, getattr(self, epsilon))

    def times_one_plus_weight(self: Any, hidden_states: Tensor) -> Tensor:
        # Of Gemma, in float32: PyTorch's kernel wants weight and input in one dtype, and 1 + w in bfloat16 loses w.
        gain = 1.0 + self.weight.float()
        return F.rms_norm(hidden_states.float(), gain.shape, gain, getattr(self, epsilon)).to(hidden_states.dtype)

    for forward in (times_weight, times_one_plus_weight):
        if _agree(module, partial(forward, module), len(weight)):
            return forward
    return None


# -- gated activation --------------------------------------------------------------------------------------------------


def _silu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def _silu_backward(gradient: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.aten.silu_backward(gradient * up, gate), gradient * F.silu(gate)


def _gelu(gate: Tensor, up: Tensor) -> Tensor:
    return F.gelu(gate, approximate="tanh") * up


def _gelu_backward(gradient: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    d_gate = torch.ops.aten.gelu_backward(gradient * up, gate, approximate="tanh")
    return d_gate, gradient * F.gelu(gate, approximate="tanh")


class _Gated(torch.autograd.Function):
    """act(gate) · up, which keeps gate and up alone for the backward pass."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, forward: Any, backward: Any) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.gradient_of = backward
        result_T_I: Tensor = kernel(forward, True)(*(one.detach().flatten(0, -2) for one in (gate, up)))
        return result_T_I.view_as(gate)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        found = kernel(ctx.gradient_of, True)(*(one.detach().flatten(0, -2) for one in (gradients[0], gate, up)))
        d_gate, d_up = (one.view_as(gate) for one in found)
        return d_gate, d_up, None, None


def _gated_mlp(
    function: Callable[[Tensor, Tensor], Tensor], gate: nn.Linear, up: nn.Linear, down: nn.Linear, x: Tensor
) -> Tensor:
    result: Tensor = down(function(gate(x), up(x)))
    return result


def _gated_layer(module: nn.Module) -> Callable[..., Any] | None:
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if not all(isinstance(one, nn.Linear) for one in parts):
        return None
    gate, up, down = cast(list[nn.Linear], parts)
    for forward, backward in ((_silu, _silu_backward), (_gelu, _gelu_backward)):
        if _agree(module, partial(_gated_mlp, forward, gate, up, down), gate.in_features):

            def fused(self: Any, x: Tensor, forward: Any = forward, backward: Any = backward) -> Tensor:
                result: Tensor = self.down_proj(_Gated.apply(self.gate_proj(x), self.up_proj(x), forward, backward))  # type: ignore[no-untyped-call]
                return result

            return fused
    return None


# -- rotary embedding --------------------------------------------------------------------------------------------------


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x · cos + (−x₂, x₁) · sin for the halves x₁ and x₂ of each head, [T, heads, d]; cos and sin are [T, 1, d]."""
    (x1, x2), (cos1, cos2), (sin1, sin2) = (one.chunk(2, -1) for one in (x, cos, sin))
    return torch.cat([x1 * cos1 - x2 * sin1, x2 * cos2 + x1 * sin2], -1)


def _rotate_backward(gradient: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The transpose of :func:`_rotate`."""
    (g1, g2), (cos1, cos2), (sin1, sin2) = (one.chunk(2, -1) for one in (gradient, cos, sin))
    return torch.cat([g1 * cos1 + g2 * sin2, g2 * cos2 - g1 * sin1], -1)


class _Rotated(torch.autograd.Function):
    """:func:`_rotate` of [T, heads, d], the layout in which projections make it and attention takes it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return kernel(_rotate, True)(x.detach(), cos, sin)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return kernel(_rotate_backward, True)(gradients[0].detach(), cos, sin), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As transformers has them: [1, heads, T, d]; cos and sin are [1, T, d]."""
    cos_T_1_d, sin_T_1_d = (one.detach().transpose(0, 1) for one in (cos, sin))
    rotated_T_H_d = _Rotated.apply(x.squeeze(0).transpose(0, 1), cos_T_1_d, sin_T_1_d)  # type: ignore[no-untyped-call]
    result: Tensor = rotated_T_H_d.transpose(0, 1).unsqueeze(0)
    return result


def _rotating(module: nn.Module) -> Callable[..., Any] | None:
    """The forward function of an attention layer, with a rotary embedding in one kernel.

    The function is the layer's own; only the name under which it finds the rotary embedding means ours.
    """
    forward: Any = type(module).forward
    code, known = getattr(forward, "__code__", None), getattr(forward, "__globals__", {})
    theirs = known.get(_ROTARY)
    if code is None or theirs is None or _ROTARY not in code.co_names or not _rotates_halves(theirs):
        return None

    def ours(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *more: Any, **named: Any) -> tuple[Tensor, Tensor]:
        if more or named or len(q) != 1 or cos.dim() != 3 or cos.shape[-1] != q.shape[-1]:
            rotated: tuple[Tensor, Tensor] = theirs(q, k, cos, sin, *more, **named)
            return rotated
        return _rotated(q, cos, sin), _rotated(k, cos, sin)

    ours_known = {**known, _ROTARY: ours}
    bound = types.FunctionType(code, ours_known, forward.__name__, forward.__defaults__, forward.__closure__)
    bound.__kwdefaults__ = forward.__kwdefaults__
    return bound


def _rotates_halves(theirs: Callable[..., Any]) -> bool:
    """Whether a function of transformers computes :func:`_rotate` of queries and keys."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, heads, _ROWS, 8, generator=generator) for heads in (2, 1))
    cos, sin = (torch.randn(1, _ROWS, 8, generator=generator) for _ in range(2))
    try:
        found = theirs(q, k, cos, sin)
    except (TypeError, ValueError, RuntimeError, IndexError):  # another signature, or other shapes
        return False
    # _rotate looks at the last dimension alone, so that another order of the others does not matter.
    ours = [_rotate(one, cos[:, None], sin[:, None]) for one in (q, k)]
    return all(_same(one, other) for one, other in zip(ours, found, strict=False))
