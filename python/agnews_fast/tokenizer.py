"""Text to token ids, with the ``tokenizers`` library."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece

from agnews_fast._core import ModelError

# A text is tokenised by prefixes of this many characters a wanted token, growing until they suffice: English has five
# or six characters a token, and nobody should wait for the end of a book whose first 512 tokens count.
_PREFIX_CHARACTERS = 16


class TextEncoder:
    """Turns texts into token ids with [CLS] and [SEP], at most ``max_length`` of them.

    Thread-safe. Never starts threads of its own, so that forking stays safe.
    """

    def __init__(self, tokenizer_json: str, max_length: int) -> None:
        self.max_length = max_length
        self._json = tokenizer_json
        self._truncated = _parse(tokenizer_json)
        self._truncated.enable_truncation(max_length)
        # BERT's pre-tokenizer splits at white space, so that the tokens before a space do not depend on what follows.
        self._splits_at_spaces = isinstance(self._truncated.pre_tokenizer, pre_tokenizers.BertPreTokenizer)

    @cached_property
    def _whole(self) -> Tokenizer:
        """The tokenizer without truncation: few texts need it, and parsing it would slow every start."""
        return _parse(self._json)

    def encode(self, text: str, *, truncation: bool = True) -> list[int]:
        """Ids of one text.

        Raises:
            ValueError: the text has more tokens than ``max_length`` and ``truncation`` is off, or is not valid Unicode.
        """
        if not truncation:
            ids: list[int] = self._whole.encode(text).ids
            if len(ids) > self.max_length:
                raise ValueError(f"expected at most {self.max_length} tokens (truncation is off), got {len(ids)}")
            return ids
        if self._splits_at_spaces:
            text = self._sufficient_prefix(text)
        truncated: list[int] = self._truncated.encode(text).ids
        return truncated

    def _sufficient_prefix(self, text: str) -> str:
        wanted = _PREFIX_CHARACTERS * self.max_length
        while len(text) > wanted:
            end = text.find(" ", wanted)
            if end < 0:
                break
            prefix = text[:end]
            # Compared without special tokens: what truncation would leave is all there.
            if len(self._whole.encode(prefix, add_special_tokens=False).ids) >= self.max_length:
                return prefix
            wanted = 4 * end
        return text


def _parse(tokenizer_json: str) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_str(tokenizer_json)
    except Exception as error:  # tokenizers raises bare Exception
        raise ModelError(f"the tokenizer cannot be read: {error}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def read_tokenizer(checkpoint: Path) -> str:
    """The tokenizer of a checkpoint folder as JSON: ``tokenizer.json``, or BERT's WordPiece made from ``vocab.txt``.

    Raises:
        ModelError: the folder has neither, or it cannot be read.
    """
    described = checkpoint / "tokenizer.json"
    if described.exists():
        text = described.read_text("utf-8")
        _parse(text)
        return text
    vocabulary = checkpoint / "vocab.txt"
    if not vocabulary.exists():
        raise ModelError(f"{checkpoint}: expected tokenizer.json or vocab.txt")
    settings: dict[str, Any] = {}
    if (checkpoint / "tokenizer_config.json").exists():
        settings = json.loads((checkpoint / "tokenizer_config.json").read_text("utf-8"))
    tokenizer = Tokenizer(WordPiece.from_file(str(vocabulary), unk_token=settings.get("unk_token", "[UNK]")))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=settings.get("do_lower_case", True),
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special: list[tuple[str, int]] = []
    for key, default in (("sep_token", "[SEP]"), ("cls_token", "[CLS]")):
        token = settings.get(key, default)
        number = tokenizer.token_to_id(token)
        if number is None:
            raise ModelError(f"{vocabulary}: the vocabulary has no {token}")
        special.append((token, number))
    tokenizer.post_processor = processors.BertProcessing(special[0], special[1])
    text = tokenizer.to_str()
    return text
