"""Many texts -> one vector each: equal texts once, similar lengths together, as many at a time as fit.

Axes in this file: N texts, B texts of a batch, E embedding.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral

import torch
from torch import nn
from transformers.utils.logging import tqdm

from .modeling_text_inputs import TokenRow

# Padded tokens of a batch. On a CPU the states of this many stay in the cache, and more were slower; an
# accelerator is idle with so few, and what is too many for it is halved.
CPU_TOKENS, ACCELERATOR_TOKENS = 1024, 32768
CHUNK_TEXTS = 4096  # tokenized at a time: the token ids of a million texts would need gigabytes

_MODE_LOCK = threading.Lock()
_HOLDERS: Counter[nn.Module] = Counter()  # calls that keep a module, which was training, in eval mode


class BatchLimit:
    """How many texts are encoded at a time; lives for one call.

    Args:
        batch_size: Texts of a batch, of any integer type, or ``"auto"``: by padded tokens, as the device
            likes it, and halved when its memory is exhausted.
        device: Where the model is.

    Raises:
        ValueError: If ``batch_size`` is neither ``"auto"`` nor a whole number of at least 1.
    """

    def __init__(self, batch_size: int | str, device: torch.device) -> None:
        is_number = isinstance(batch_size, Integral) and not isinstance(batch_size, bool)
        if not is_number and batch_size != "auto":
            raise ValueError(f"batch_size must be 'auto' or a number, got {batch_size!r}. Use 'auto'.")
        self.num_texts = int(batch_size) if is_number else None
        if self.num_texts is not None and self.num_texts < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}. Use 1 on a small machine.")
        self.num_tokens = CPU_TOKENS if device.type == "cpu" else ACCELERATOR_TOKENS

    def fit(self, longest: int) -> int:
        """Texts of a batch whose longest has ``longest`` tokens; one text always fits."""
        return self.num_texts or max(1, self.num_tokens // longest)

    def can_halve(self, num_texts: int) -> bool:
        """Whether a batch of ``num_texts`` that did not fit can be tried in halves."""
        return self.num_texts is None and num_texts > 1


def in_batches(
    lengths: Sequence[int], limit: BatchLimit, embed: Callable[[list[int]], torch.Tensor]
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Embed rows of similar length together, the longest first: too large a batch shows at once.

    Args:
        lengths: Tokens of each row.
        limit: Size of the batches; lowered when the device has no memory for one.
        embed: Indices of rows -> ``(B, E)``.

    Yields:
        The indices of a batch and its vectors.

    Raises:
        torch.OutOfMemoryError: If not even one row fits, or the size was fixed by the caller.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    start = 0
    while start < len(order):
        rows = order[start : start + limit.fit(lengths[order[start]])]
        try:
            vectors = embed(rows)
        except torch.OutOfMemoryError:
            if not limit.can_halve(len(rows)):
                raise
            vectors = None
        if vectors is None:  # outside the handler, which would keep the tensors of the failed batch alive
            limit.num_tokens = len(rows) // 2 * lengths[rows[0]]
            continue
        yield rows, vectors
        start += len(rows)


def encode_distinct(
    texts: Sequence[str],
    read: Callable[[Sequence[str]], list[TokenRow]],
    embed: Callable[[list[TokenRow]], torch.Tensor],
    limit: BatchLimit,
    show_progress: bool,
) -> torch.Tensor:
    """Embed every distinct text once.

    Args:
        texts: N texts.
        read: Texts -> rows of tokens.
        embed: Rows -> ``(B, E)``.
        limit: Size of the batches.
        show_progress: Whether to draw a bar on stderr, which counts texts.

    Returns:
        ``(N, E)`` in the order of ``texts``.

    Raises:
        ValueError: If ``read`` refuses a text; positions in the message are those in ``texts``.
    """
    if not all(text.strip() for text in texts):
        read(texts)  # refuses them before the work, and not after that of all longer texts
    counts = Counter(texts)
    distinct = sorted(counts, key=lambda text: -len(text))
    place = {text: index for index, text in enumerate(distinct)}
    vectors = torch.empty(0)
    with tqdm(total=len(texts), desc="Encoding texts", unit="text", disable=not show_progress) as bar:
        for start in range(0, max(1, len(distinct)), CHUNK_TEXTS):  # no text at all: let read refuse it
            chunk = distinct[start : start + CHUNK_TEXTS]
            rows = _read_chunk(read, chunk, texts)
            lengths = [len(row.input_ids) for row in rows]
            for batch, embeds in in_batches(lengths, limit, lambda b, rows=rows: embed([rows[i] for i in b])):  # type: ignore[misc]
                if not len(vectors):
                    vectors = embeds.new_empty(len(distinct), embeds.shape[1])
                vectors[start + torch.tensor(batch, device=vectors.device)] = embeds
                bar.update(sum(counts[chunk[row]] for row in batch))
    return vectors[torch.tensor([place[text] for text in texts], device=vectors.device)]


def _read_chunk(
    read: Callable[[Sequence[str]], list[TokenRow]], chunk: list[str], texts: Sequence[str]
) -> list[TokenRow]:
    try:
        return read(chunk)
    except ValueError:
        read(texts)  # the same refusal, with the positions the caller knows
        raise


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout off for a while; every module gets its own mode back.

    Calls may overlap, in one thread or several: the last to end gives the modes back.
    """
    with _MODE_LOCK:
        held = [module for module in model.modules() if module.training or module in _HOLDERS]
        for module in held:
            _HOLDERS[module] += 1
            module.training = False
    try:
        yield
    finally:
        with _MODE_LOCK:
            for module in held:
                _HOLDERS[module] -= 1
                if not _HOLDERS[module]:
                    del _HOLDERS[module]
                    module.training = True
