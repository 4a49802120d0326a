"""Continuous batching: rows decode together, join at any step and leave when they finish.

transformers' own continuous batching (5.23) is not used: its requests carry temperature, top-k and top-p, but no
constraint and no adapter, which are the whole model's there.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from serin.core.errors import InputError
from serin.core.generation.llama import LlamaForward, Segment, Step
from serin.core.generation.rows import Row
from serin.core.generation.sampling import choose
from serin.core.generation.slots import PrefixCache

if TYPE_CHECKING:
    import torch

    from serin.core.generation.generator import Generator
    from serin.core.generation.lora import Adapter

PROMPT_TOKENS = 512
"""Of prompts that are run at once, so that the answers under way never wait for more."""
IDLE_BYTES = 64 << 20
"""Of the cache that are kept while nothing is decoded."""


class Batch(Protocol):
    """Rows that decode together."""

    @property
    def rows(self) -> Sequence[Row]:
        """Rows that were not finished, or not known to be, at the last step."""
        ...

    @property
    def prompt_tokens(self) -> int:
        """Tokens of prompts that the next step runs; 0 where it decodes."""
        ...

    def join(self, rows: Sequence[Row]) -> None:
        """Take rows in."""
        ...

    def step(self) -> None:
        """Decode some more."""
        ...


class Decoder:
    """Rows that decode together; not thread-safe.

    Args:
        generator: the model.
        prefix_cache_bytes: kept of prompts and answers, for prompts that begin alike; 0 keeps nothing.
    """

    def __init__(self, generator: "Generator", prefix_cache_bytes: int = 0) -> None:
        from serin.core.generation.library import LibraryBatch

        forward = generator.forward
        self._batch: Batch = (
            LibraryBatch(generator) if forward is None else SlotBatch(generator, forward, prefix_cache_bytes)
        )
        self._vocab_size = generator.vocab_size

    @property
    def rows(self) -> Sequence[Row]:
        """Rows that were not finished, or not known to be, at the last step."""
        return self._batch.rows

    @property
    def prompt_tokens(self) -> int:
        """Tokens of prompts that the next step runs; 0 where it decodes."""
        return self._batch.prompt_tokens

    def join(self, rows: Sequence[Row]) -> None:
        """Take rows in; those that share a prompt (the very list) and an adapter share its computation."""
        import torch

        for row in rows:
            if row.finish_reason is None and not all(0 <= token < self._vocab_size for token in row.prompt):
                row.fail(InputError("The tokenizer makes tokens that the model does not have: resize its embeddings."))
        with torch.inference_mode():
            self._batch.join([row for row in rows if row.finish_reason is None])

    def step(self) -> None:
        """Run a part of the prompts that wait, or one more token of every row; finished rows leave first."""
        import torch

        with torch.inference_mode():
            self._batch.step()


@dataclass(eq=False)
class _Pending:
    """Rows whose common prompt is not run to its end yet; it is run in the first one's slot."""

    rows: list[Row]
    done: int = 0

    @property
    def prompt(self) -> list[int]:
        return self.rows[0].prompt

    @property
    def adapter(self) -> "Adapter | None":
        return self.rows[0].adapter


class SlotBatch:
    """Rows over a slot cache: the row at place i of ``rows`` lives in slot i, the decoding ones before the pending."""

    def __init__(self, generator: "Generator", forward: LlamaForward, prefix_cache_bytes: int) -> None:
        self.rows: list[Row] = []
        self._generator, self._forward = generator, forward
        self._cache, self._prefixes = forward.new_cache(), PrefixCache(prefix_cache_bytes)
        self._num_decoding = 0
        self._pending: list[_Pending] = []
        self._plan: Step | None = None
        self._groups: list[tuple[Adapter, torch.Tensor | None]] = []
        self._prompts_next = True

    @property
    def prompt_tokens(self) -> int:
        """Tokens of prompts that the next step runs; 0 where it decodes."""
        if not self._pending or not (self._prompts_next or not self._num_decoding):
            return 0
        return min(sum(len(pending.prompt) - pending.done for pending in self._pending), PROMPT_TOKENS)

    def join(self, rows: Sequence[Row]) -> None:
        """Take rows in; their prompts are run by the next steps."""
        pending: dict[tuple[int, int], _Pending] = {}
        for row in rows:
            self.rows.append(row)
            key = (id(row.prompt), id(row.adapter))
            if key in pending:
                pending[key].rows.append(row)
                continue
            pending[key] = _Pending([row])
        if not rows:
            return
        self._cache.reserve(len(self.rows), max(len(row.prompt) for row in rows))
        slots = self._slots()
        for new in pending.values():
            new.done = self._prefixes.load(self._cache, slots[id(new.rows[0])], new.prompt, _salt(new.adapter))
        self._pending += pending.values()

    def step(self) -> None:
        """A part of the prompts that wait and a token of each row take turns."""
        self._leave()
        if self._pending and (self._prompts_next or not self._num_decoding):
            self._run_prompts()
            self._prompts_next = False
        elif self._num_decoding:
            self._run_step()
            self._prompts_next = True

    def _run_step(self) -> None:
        rows = self.rows[: self._num_decoding]
        if self._plan is None or not self._plan.fits(self._cache):
            self._plan = self._forward.plan(self._cache, [row.position for row in rows])
            self._groups = self._grouped([(row.adapter, 1) for row in rows])
        logits = self._forward.step(self._cache, self._plan, [row.tokens[-1] for row in rows], self._groups)
        choose(rows, logits, self._generator.end_ids)

    def _run_prompts(self) -> None:
        room, parts = PROMPT_TOKENS, []
        for pending in self._pending:
            take = min(room, len(pending.prompt) - pending.done)
            parts.append((pending, take))
            room -= take
            if not room:
                break
        slots = self._slots()
        segments = [Segment(slots[id(p.rows[0])], p.done, p.prompt[p.done : p.done + take]) for p, take in parts]
        groups = self._grouped([(p.adapter, take) for p, take in parts])
        logits = self._forward.prompts(self._cache, segments, groups)
        rows, numbers = [], []
        for number, (pending, take) in enumerate(parts):
            pending.done += take
            if pending.done == len(pending.prompt):
                rows += pending.rows
                numbers += [number] * len(pending.rows)
                self._share(pending, slots)
        self._pending = [pending for pending in self._pending if pending.done < len(pending.prompt)]
        if rows:
            self._begin(rows)
            choose(rows, logits[numbers], self._generator.end_ids)

    def _share(self, pending: _Pending, slots: dict[int, int]) -> None:
        first = slots[id(pending.rows[0])]
        for row in pending.rows[1:]:
            self._cache.move(first, slots[id(row)], len(pending.prompt))
        self._prefixes.store(self._cache, first, pending.prompt, _salt(pending.adapter))

    def _begin(self, rows: Sequence[Row]) -> None:
        """Have rows whose prompts were run decode from now on: their slots follow those of the decoding ones."""
        begun = set(map(id, rows))
        order = [
            *range(self._num_decoding),
            *(i for i in range(self._num_decoding, len(self.rows)) if id(self.rows[i]) in begun),
            *(i for i in range(self._num_decoding, len(self.rows)) if id(self.rows[i]) not in begun),
        ]
        self._num_decoding += len(rows)
        self._arrange(order)

    def _leave(self) -> None:
        """Let finished rows go, and keep what they computed; the last rows move into their slots."""
        # the reasons are read once, since requests may be cancelled from another thread meanwhile
        reasons = [row.finish_reason for row in self.rows]
        if not any(reasons):
            return
        gone = {id(row) for row, reason in zip(self.rows, reasons, strict=True) if reason}
        for slot, (row, reason) in enumerate(zip(self.rows, reasons, strict=True)):
            if reason == "error":
                self._cache.wipe(slot)
            elif reason and slot < self._num_decoding:
                self._prefixes.store(self._cache, slot, [*row.prompt, *row.tokens[:-1]], _salt(row.adapter))
        decoding = [i for i in range(self._num_decoding) if not reasons[i]]
        holes = [i for i in range(len(decoding)) if reasons[i]]
        order = list(range(len(decoding)))
        for hole, mover in zip(holes, decoding[len(decoding) - len(holes) :], strict=True):
            order[hole] = mover
        waiting = [i for i in range(self._num_decoding, len(self.rows)) if not reasons[i]]
        self._num_decoding = len(decoding)
        slots = self._slots()
        for pending in self._pending:
            first = pending.rows[0]
            pending.rows = [row for row in pending.rows if id(row) not in gone]
            if pending.rows and pending.rows[0] is not first:
                self._cache.move(slots[id(first)], slots[id(pending.rows[0])], pending.done)
        self._pending = [pending for pending in self._pending if pending.rows]
        self._arrange([*order, *waiting])
        if not self.rows and self._cache.num_bytes > IDLE_BYTES:
            self._cache.clear()

    def _arrange(self, order: Sequence[int]) -> None:
        """Have the rows at some places, in their order, and their cached tokens with them."""
        lengths = {id(p.rows[0]): p.done for p in self._pending}
        moves = {
            target: (source, self._cached(self.rows[source], lengths))
            for target, source in enumerate(order)
            if target != source
        }
        self._plan = None
        free = {target for target in moves if target not in order}
        while moves:
            target = next((t for t in moves if t in free), None)
            if target is None:
                target = next(iter(moves))  # a cycle: its first row goes by way of a spare slot
                self._cache.reserve(len(self.rows) + 1, 1)
                spare = len(self.rows)
                self._cache.move(target, spare, self._cached(self.rows[target], lengths))
                waiting = next(t for t, (source, _) in moves.items() if source == target)
                moves[waiting] = (spare, moves[waiting][1])
            source, length = moves.pop(target)
            self._cache.move(source, target, length)
            free.discard(target)
            free.add(source)
        self.rows = [self.rows[source] for source in order]

    def _cached(self, row: Row, pending: dict[int, int]) -> int:
        if id(row) in pending:
            return pending[id(row)]
        return len(row.prompt) + max(len(row.tokens) - 1, 0)

    def _grouped(self, parts: Iterable[tuple["Adapter | None", int]]) -> list[tuple["Adapter", "torch.Tensor | None"]]:
        """Each adapter with the numbers of its tokens, where a part is an adapter and how many tokens it has."""
        import torch

        numbers: dict[Adapter | None, list[int]] = {}
        start = 0
        for adapter, count in parts:
            numbers.setdefault(adapter, []).extend(range(start, start + count))
            start += count
        if len(numbers) == 1:
            return [(adapter, None) for adapter in numbers if adapter is not None]
        device = self._forward.device
        return [(adapter, torch.tensor(its, device=device)) for adapter, its in numbers.items() if adapter is not None]

    def _slots(self) -> dict[int, int]:
        return {id(row): slot for slot, row in enumerate(self.rows)}


def _salt(adapter: "Adapter | None") -> str:
    return adapter.salt if adapter is not None else ""
