"""Kernels against plain arithmetic in float32: attention, the vocabulary projection, the encoder of the reward."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from scripts.gpu_check.figures import Figure, Sizes

_ROUNDING = 0.02  # relative, of sums in bfloat16


def device_of_checks() -> torch.device:
    """The GPU, or the CPU where there is none."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def check_attention(sizes: Sizes) -> list[Figure]:
    """Packed attention in bfloat16, forward and backward, against each sequence by itself in float32."""
    from learner.train.attention import packed_attention

    device, found = device_of_checks(), []
    lengths = [5, 17, 9] if sizes.tiny else [700, 33, 1500, 1, 900]
    bounds = torch.tensor([0, *lengths], device=device).cumsum(0).int()
    for width, window in ((128, None), (128, 64), (256, None), (256, 64)):
        head, seen = (width // 8, window and window // 8) if sizes.tiny else (width, window)
        generator = torch.Generator(device).manual_seed(0)
        shapes = [(1, heads, sum(lengths), head) for heads in (8, 2, 2)]
        made = [torch.randn(s, generator=generator, device=device).bfloat16() for s in shapes]
        towards = torch.randn((1, sum(lengths), 8, head), generator=generator, device=device)
        results = []
        for exact in (False, True):
            q, k, v = (one.float().requires_grad_() if exact else one.clone().requires_grad_() for one in made)
            if exact:
                out = _plain_attention(q, k, v, bounds.tolist(), seen)
            else:
                arguments: dict[str, Any] = {"sliding_window": seen, "cu_seq_lens_q": bounds}
                out = packed_attention(torch.nn.Module(), q, k, v, None, max_length_q=max(lengths), **arguments)[0]
            (out.float() * towards).sum().backward()
            results.append([out, q.grad, k.grad, v.grad])
        for name, got, wanted in zip(("output", "d query", "d key", "d value"), *results, strict=True):
            error = relative_error(got, wanted)
            what = f"head width {head}, {'no window' if seen is None else f'window {seen}'}: {name}"
            found.append(Figure(what, error, "relative error", error < _ROUNDING, f"< {_ROUNDING}"))
    return found


def _plain_attention(query: Tensor, key: Tensor, value: Tensor, bounds: list[int], window: int | None) -> Tensor:
    pieces = []
    repeats = query.shape[1] // key.shape[1]
    key, value = (one.repeat_interleave(repeats, 1) for one in (key, value))
    for begin, end in pairwise(bounds):
        q, k, v = (one[0, :, begin:end] for one in (query, key, value))
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        seen = torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device).tril()
        if window is not None:
            seen = seen.triu(1 - window)
        pieces.append(scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v)
    return torch.cat(pieces, 1).transpose(0, 1)[None]


def check_head(sizes: Sizes) -> list[Figure]:
    """Log-probabilities, entropies and gradients of the vocabulary projection in bfloat16 against float32."""
    from learner.train.logprob import chunked_logp

    device = device_of_checks()
    rows, hidden, vocabulary = (40, 32, 320) if sizes.tiny else (2048, 1536, 151936)
    generator = torch.Generator(device).manual_seed(0)
    states = torch.randn(rows, hidden, generator=generator, device=device).bfloat16()
    head = (torch.randn(vocabulary, hidden, generator=generator, device=device) * 3 / hidden**0.5).bfloat16()
    targets = torch.randint(0, vocabulary, (rows,), generator=generator, device=device)
    towards = torch.randn(rows, generator=generator, device=device)

    def ours() -> list[Tensor]:
        x, w = states.clone().requires_grad_(), head.clone().requires_grad_()
        logp, entropy = chunked_logp(x, w, targets, 1.0, 16 if sizes.tiny else 1024)
        (logp * towards).sum().backward()
        assert x.grad is not None and w.grad is not None
        return [logp.detach(), entropy, x.grad, w.grad]

    seconds, peak, got = measured(ours, device)
    x, w = states.float().requires_grad_(), head.float().requires_grad_()
    table = (x @ w.T).log_softmax(-1)
    logp = table.gather(1, targets[:, None])[:, 0]
    (logp * towards).sum().backward()
    wanted = [logp.detach(), -(table.exp() * table).sum(-1).detach(), x.grad, w.grad]
    # On a GPU the products are summed in float32, so that only the order of additions differs.
    allowed = 1e-3 if device.type == "cuda" else 0.1
    off = float((got[0] - wanted[0]).abs().max())
    found = [Figure("log-probabilities, largest error", off, "nats", off < allowed, f"< {allowed}")]
    for name, one, other in zip(("entropy", "d hidden", "d head"), got[1:], wanted[1:], strict=True):
        error = relative_error(one, other)
        found.append(Figure(name, error, "relative error", error < _ROUNDING, f"< {_ROUNDING}"))
    return [*found, Figure("forward and backward", seconds * 1e3, "ms"), Figure("peak memory", peak / 1e9, "GB")]


def check_encoder(sizes: Sizes) -> list[Figure]:
    """A random encoder on the GPU, where it runs in bfloat16, against the same on the CPU in float32."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    from reward.embedder import Embedder

    directory, words = sizes.scratch / "encoder", [f"w{n}" for n in range(1000)]
    vocabulary = {piece: n for n, piece in enumerate(["[PAD]", "[UNK]", *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(directory)
    width, layers = (16, 1) if sizes.tiny else (384, 12)
    shape = BertConfig(
        vocab_size=len(vocabulary), hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 8,
        intermediate_size=4 * width, max_position_embeddings=512,
    )  # fmt: skip
    torch.manual_seed(0)
    BertModel(shape).save_pretrained(directory)
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 100, (20 if sizes.tiny else 2000,), generator=generator).tolist()
    texts = [" ".join(words[n * 7919 % 1000] for n in range(at, at + length)) for at, length in enumerate(lengths)]
    embedder = Embedder(str(directory), device_of_checks().type)
    embedder.embed(texts[:8])
    begin = time.perf_counter()
    vectors = embedder.embed(texts)
    rate = len(texts) / (time.perf_counter() - begin)
    some = min(200, len(texts))
    cosine = float((vectors[:some] * Embedder(str(directory), "cpu").embed(texts)[:some]).sum(1).min())
    return [
        Figure("smallest cosine with float32 on the CPU", cosine, "", cosine > 0.995, "> 0.995"),
        Figure("throughput", rate, "texts/s"),
    ]


def relative_error(got: Tensor | None, wanted: Tensor | None) -> float:
    """‖got − wanted‖ / ‖wanted‖."""
    assert got is not None and wanted is not None
    got, wanted = got.detach().float(), wanted.detach()
    return float((got - wanted).norm() / wanted.norm())


def measured(work: Callable[[], Any], device: torch.device) -> tuple[float, int, Any]:
    """Seconds and peak bytes of GPU memory of a second call, and its result; without a GPU the peak is 0."""
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin, torch.cuda.max_memory_allocated() if device.type == "cuda" else 0, result
