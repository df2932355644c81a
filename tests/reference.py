"""The joint loss by the book, for comparison: imports nothing of the project.

Every occurrence of an item is quantized on its own, codes are dense one-hot matrices, histories are
padded on the right to the longest sample, the transformer is Hugging Face's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import T5Config, T5Model


def t5(*, width: int, inner: int, heads: int, d_kv: int, layers: tuple[int, int]) -> T5Model:
    """Hugging Face's T5 in float64, without dropout."""
    config = T5Config(
        d_model=width, d_kv=d_kv, d_ff=inner, num_heads=heads, num_layers=layers[0], num_decoder_layers=layers[1],
        vocab_size=2, dropout_rate=0.0, feed_forward_proj="relu", pad_token_id=0, eos_token_id=1,
        decoder_start_token_id=0,
    )  # fmt: skip
    return T5Model(config).double()


def exact_norm(self: torch.nn.Module, x: Tensor) -> Tensor:
    """T5LayerNorm.forward without its detour through float32."""
    return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


def quantize(z, codebooks, scale, noise, tau, beta):
    """One latent -> (m_1 ... m_L [K] each, |q - z|^2, VQ loss), as method.md, 3.1, writes it."""
    r, q_sum, vq, chosen = z, torch.zeros_like(z), 0.0, []
    for level, book in enumerate(codebooks):
        a = -scale[level] * ((r - book) ** 2).sum(1)
        noisy = (a + noise[level]) / tau
        p = noisy.softmax(0)
        m = F.one_hot(noisy.argmax(), len(book)) + (p - p.detach())
        q = m @ book
        vq = vq + ((r.detach() - q) ** 2).mean() + beta * ((r - q.detach()) ** 2).mean()
        r, q_sum = r - q, q_sum + q
        chosen.append(m)
    return chosen, ((q_sum - z) ** 2).mean(), vq / len(codebooks)


def joint_loss(  # noqa: PLR0913, PLR0917
    model, start, tables, codebooks, latents, suffixes, scale, noise, tau, beta, samples
):
    """L_rec + |q - z|^2 + L_vq over samples [(history, target)], item numbers from 1.

    latents [N, d], suffixes [N]; noise(item) -> [L] list of s * g [K].
    """
    sequences, targets, recon, vq = [], [], 0.0, 0.0
    for history, target in samples:
        tokens = []
        for item in history:
            m, _, _ = quantize(latents[item - 1], codebooks, scale, noise(item), tau, beta)
            tokens += [one @ table for one, table in zip(m, tables, strict=False)] + [tables[-1][suffixes[item - 1]]]
        sequences.append(torch.stack(tokens))
        m, distance, loss = quantize(latents[target - 1], codebooks, scale, noise(target), tau, beta)
        targets.append((m, suffixes[target - 1]))
        recon, vq = recon + distance / len(samples), vq + loss / len(samples)
    longest = max(map(len, sequences))
    x = torch.stack([F.pad(s, (0, 0, 0, longest - len(s))) for s in sequences])
    mask = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in sequences])
    prefix = torch.stack(
        [torch.stack([start, *(one @ t for one, t in zip(m, tables, strict=False))]) for m, _ in targets]
    )
    hidden = model(inputs_embeds=x, attention_mask=mask, decoder_inputs_embeds=prefix).last_hidden_state
    terms = []
    for i, (m, suffix) in enumerate(targets):
        for level, table in enumerate(tables):
            log_p = (table @ hidden[i, level]).log_softmax(0)
            terms.append(-(m[level] @ log_p) if level < len(m) else -log_p[suffix])
    return torch.stack(terms).mean() + recon + vq
