"""What a teacher that is asked with text gives besides `Teacher`: embeddings prompt by prompt.

Encoding is separated from batching, so that every prompt is encoded once, kept without padding, and put together with
whatever prompts share its batch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from teachers.base import Teacher
from teachers.conditions import Condition
from teachers.errors import TeacherError

#: embeddings of one prompt by name, without a batch axis and without padding, e.g. {"text": [length, width]}
Row = Mapping[str, Tensor]

#: a text that begins so is encoded as a negative prompt; no prompt file can hold a NUL
NEGATIVE = "\0negative:"

#: what is drawn when nobody asks for anything
EXAMPLES = (
    "a red fox asleep in fresh snow, morning light",
    "a glass teapot on a wooden table, steam rising",
    "an old lighthouse on a cliff above a stormy sea",
    "a bowl of ripe cherries, oil painting",
    "a tram climbing a steep street at dusk",
    "a paper boat on a rain puddle, close-up photograph",
    "a snow leopard looking over its shoulder",
    "a greenhouse full of ferns, early spring",
)


class PromptTeacher(Teacher):
    """A teacher whose condition is text."""

    condition_kind: Literal["prompt"] = "prompt"  # type: ignore[misc]

    def __init__(self, settings: Any, architecture: Mapping[str, Any]) -> None:
        super().__init__(settings, architecture)
        self._known: dict[str, Row] = {}

    @abstractmethod
    def encode_rows(self, texts: Sequence[str]) -> list[Row]:
        """The embedding of each text, on the CPU. Loads the text encoder if it is not there."""

    @abstractmethod
    def collate(self, rows: Sequence[Row]) -> Condition:
        """Rows as one condition: padded to the longest of them, with masks, ready for `velocity`."""

    @abstractmethod
    def encoding(self) -> dict[str, str]:
        """All that an embedding depends on besides its text: encoder and revision, settings, dtype, model's format."""

    def own_texts(self) -> list[str]:
        """Texts that the teacher itself needs, such as the negative prompt of its guidance."""
        return []

    def release_encoder(self) -> None:
        """Lets the text encoder leave memory; `encode_rows` would load it again."""

    def remember(self, texts: Sequence[str], rows: Mapping[str, Row] | None = None) -> None:
        """Keeps the rows of texts that will be asked for again (previews), and encodes those that `rows` lacks."""
        self._known |= rows or {}
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        self._known |= dict(zip(new, self.encode_rows(new) if new else [], strict=True))

    def encode(self, asked: Sequence[int | str]) -> Condition:
        """Prompts as a condition; those that were remembered need no encoder."""
        texts = [text for text in asked if isinstance(text, str)]
        if len(texts) != len(asked):
            raise TeacherError(f"{asked[0]!r} is no prompt", allowed="texts")
        missing = [text for text in dict.fromkeys(texts) if text not in self._known]
        fresh = dict(zip(missing, self.encode_rows(missing) if missing else [], strict=True))
        return self.collate([self._known[text] if text in self._known else fresh[text] for text in texts])

    def examples(self, count: int) -> list[int | str]:
        """Eight texts in turn."""
        return [EXAMPLES[index % len(EXAMPLES)] for index in range(count)]
