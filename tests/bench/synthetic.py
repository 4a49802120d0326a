"""Seeded text and endpoint events, for measuring sizes."""

from datetime import UTC, datetime

import numpy as np


class Words:
    """Seeded text of 2,000 made-up words, the frequent ones frequent."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        letters = np.array(list("etaoinshrdlucmfwypvbgk"))
        self._words = ["".join(self._rng.choice(letters, self._rng.integers(2, 10))) for _ in range(2000)]
        weights = 1 / np.arange(1, 2001)
        self._weights = weights / weights.sum()

    def text(self, chars: int) -> str:
        """So many characters, or a few less."""
        return " ".join(self._rng.choice(self._words, chars // 4, p=self._weights))[:chars]

    def event(self, number: int, question_chars: int, answer_chars: int) -> dict[str, object]:
        """Fields of an endpoint event with five hits."""
        rng = self._rng
        return {
            "trace_id": rng.bytes(16).hex(),
            "time": datetime.fromtimestamp(1_800_000_000 + number, UTC).isoformat(),
            "session_id": rng.bytes(8).hex(),
            "endpoint": "assistant",
            "release_id": "ab" * 32,
            "track": "champion" if rng.random() < 0.9 else "candidate",
            "status": 200,
            "question": self.text(question_chars),
            "answer": self.text(answer_chars),
            "language": "en",
            "prompt_tokens": int(rng.lognormal(6.9, 1)),
            "completion_tokens": int(rng.lognormal(4.9, 0.9)),
            "ttft_ms": float(rng.gamma(2, 100)),
            "latency_ms": float(rng.gamma(2, 1500)),
            "finish_reason": "stop",
            "streamed": True,
            "retrieval_ids": tuple(rng.bytes(16).hex() for _ in range(5)),
            "retrieval_scores": tuple(rng.random(5).tolist()),
            "support_score": float(rng.random()),
        }
