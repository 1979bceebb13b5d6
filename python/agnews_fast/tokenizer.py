"""Text to token ids, with the ``tokenizers`` library."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece

from agnews_fast._core import ModelError
from agnews_fast.model_file import parse_json, read_regular

# A text is tokenised by prefixes of this many characters a wanted token, growing until they suffice: English has five
# or six characters a token, and nobody should wait for the end of a book whose first 512 tokens count.
_PREFIX_CHARACTERS = 16
_GROWTH = 4


class TextEncoder:
    """Turns texts into token ids with [CLS] and [SEP], at most ``max_length`` of them.

    Thread-safe. Never starts threads of its own, so that forking stays safe.

    Raises:
        ModelError: the tokenizer cannot be read.
        ValueError: max_length leaves no room for the special tokens.
    """

    def __init__(self, tokenizer_json: str, max_length: int) -> None:
        self.max_length = max_length
        self._json = tokenizer_json
        self._truncated = _parse(tokenizer_json)
        special = self._truncated.num_special_tokens_to_add(False)
        if special > max_length:
            raise ValueError(f"max_length: expected at least {special}, for the special tokens, got {max_length}")
        self._truncated.enable_truncation(max_length)

    @cached_property
    def _whole(self) -> Tokenizer:
        """The tokenizer without truncation: few texts need it, and parsing it would slow every start."""
        return _parse(self._json)

    def encode(self, text: str, *, truncation: bool = True) -> list[int]:
        """Ids of one text.

        Raises:
            ValueError: the text has more tokens than ``max_length`` and ``truncation`` is off, or the tokenizer fails.
        """
        try:
            part = self._sufficient_part(text)
            ids: list[int] = (self._truncated if truncation else self._whole).encode(part).ids
        except BaseException as error:
            if not _is_failure(error):
                raise
            raise ValueError(f"the tokenizer fails ({error})") from None
        if len(ids) > self.max_length:
            number = f"{'at least ' if len(part) < len(text) else ''}{len(ids)}"
            raise ValueError(f"expected at most {self.max_length} tokens (truncation is off), got {number}")
        return ids

    def _sufficient_part(self, text: str) -> str:
        """``text``, or a shorter text with the same first ``max_length`` tokens, and more than those."""
        size = _PREFIX_CHARACTERS * self.max_length
        if len(text) <= size or not self._splits_into_words:
            return text
        while size < len(text):
            part = text[:size]
            if self._settled_tokens(part) > self.max_length:
                return part
            size *= _GROWTH
        return text

    @cached_property
    def _added_tokens(self) -> list[str]:
        return [token.content for token in self._whole.get_added_tokens_decoder().values()]

    @cached_property
    def _splits_into_words(self) -> bool:
        """Whether a word's tokens depend on nothing but its own characters, as BERT's do."""
        return (
            isinstance(self._whole.pre_tokenizer, pre_tokenizers.BertPreTokenizer)
            and isinstance(self._whole.normalizer, normalizers.BertNormalizer)
            # One that is looked for after normalisation may be cut by any number of characters that vanish.
            and not any(token.normalized for token in self._whole.get_added_tokens_decoder().values())
        )

    def _settled_tokens(self, prefix: str) -> int:
        """How many tokens of ``prefix`` stay as they are whatever follows.

        That is all but the last word's, and those in reach of an added token ([SEP]) that may be cut in two.
        """
        encoding = self._whole.encode(prefix, add_special_tokens=False)
        words, offsets = encoding.word_ids, encoding.offsets
        reach = len(prefix) - max(map(len, self._added_tokens), default=0)
        settled = len(words)
        while settled > 0 and (words[settled - 1] == words[-1] or offsets[settled - 1][1] > reach):
            settled -= 1
        return settled


def _is_failure(error: BaseException) -> bool:
    """Whether ``tokenizers`` raised it: a bare Exception, or what a panic in Rust becomes, which is none."""
    return type(error) is Exception or type(error).__name__ == "PanicException"


def _parse(tokenizer_json: str) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_str(tokenizer_json)
        tokenizer.no_padding()
        tokenizer.no_truncation()
    except BaseException as error:
        if not _is_failure(error):
            raise
        raise ModelError(f"the tokenizer cannot be read: {error}") from None
    _check_unknown(tokenizer)
    return tokenizer


def _check_unknown(tokenizer: Tokenizer) -> None:
    model = tokenizer.model
    if isinstance(model, WordPiece) and model.token_to_id(model.unk_token) is None:
        raise ModelError(f"the tokenizer: expected its unknown token {model.unk_token!r} in the vocabulary")


def read_tokenizer(checkpoint: Path) -> str:
    """The tokenizer of a checkpoint folder as JSON: ``tokenizer.json``, or BERT's WordPiece made from ``vocab.txt``.

    Raises:
        ModelError: the folder has neither, or it cannot be read.
    """
    path = checkpoint / "tokenizer.json"
    if not path.exists():
        path = checkpoint / "vocab.txt"
    if not path.exists():
        raise ModelError(f"{checkpoint}: expected tokenizer.json or vocab.txt")
    settings = _Settings(checkpoint / "tokenizer_config.json")
    if settings.get("truncation_side", "right", str) != "right":
        raise ModelError(f"{settings.path}: truncation_side: expected 'right', got another")
    try:
        text = read_regular(path).decode("utf-8")
        if path.name == "tokenizer.json":
            text = _with_settings(text, settings)
        elif (checkpoint / "added_tokens.json").exists():
            raise ModelError(
                f"{checkpoint}: added_tokens.json: expected tokenizer.json, which tells how they are added"
            )
        else:
            text = _make_wordpiece(text, settings).to_str()
        _parse(text)
    except UnicodeDecodeError as error:
        raise ModelError(f"{path}: expected UTF-8, got {error.reason} at byte {error.start}") from None
    except ModelError as error:
        if str(error).startswith(str(checkpoint)):
            raise
        raise ModelError(f"{path}: {error}") from None
    return text


class _Settings:
    """What ``tokenizer_config.json`` says, if there is one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._settings: dict[str, Any] = {}
        if path.exists():
            settings = parse_json(read_regular(path), path)
            if not isinstance(settings, dict):
                raise ModelError(f"{path}: expected a JSON object, got {type(settings).__name__}")
            self._settings = settings

    def get(self, key: str, default: Any, *types: type) -> Any:
        value = self._settings.get(key, default)
        if isinstance(value, dict) and str in types:
            value = value.get("content")  # an AddedToken
        if not isinstance(value, types):
            raise ModelError(f"{self.path}: {key}: expected {types[0].__name__}, got {type(value).__name__}")
        return value

    def added_tokens(self) -> set[str]:
        """All but the special tokens that have names of their own."""
        decoder = self.get("added_tokens_decoder", {}, dict).values()
        added = [*(self.get("additional_special_tokens", None, list, type(None)) or []), *decoder]
        return {str(token.get("content") if isinstance(token, dict) else token) for token in added}


def _with_settings(tokenizer_json: str, settings: _Settings) -> str:
    """As ``transformers``, let ``tokenizer_config.json`` overrule the settings of BERT's normaliser."""
    tokenizer = _parse(tokenizer_json)
    normalizer = tokenizer.normalizer
    if not isinstance(normalizer, normalizers.BertNormalizer):
        return tokenizer_json
    said = {
        "lowercase": settings.get("do_lower_case", normalizer.lowercase, bool),
        "strip_accents": settings.get("strip_accents", normalizer.strip_accents, bool, type(None)),
        "handle_chinese_chars": settings.get("tokenize_chinese_chars", normalizer.handle_chinese_chars, bool),
    }
    if all(getattr(normalizer, name) == value for name, value in said.items()):
        return tokenizer_json
    for name, value in said.items():
        setattr(normalizer, name, value)
    tokenizer.normalizer = normalizer
    return tokenizer.to_str()


def _make_wordpiece(vocabulary: str, settings: _Settings) -> Tokenizer:
    """The tokenizer that ``transformers`` makes from the lines of ``vocab.txt`` and ``tokenizer_config.json``."""
    ids = {token.rstrip(): i for i, token in enumerate(vocabulary.removesuffix("\n").split("\n"))}
    special = {
        name: settings.get(f"{name}_token", f"[{name.upper()}]", str) for name in ("unk", "sep", "cls", "pad", "mask")
    }
    for name in ("unk", "sep", "cls"):
        if special[name] not in ids:
            raise ModelError(f"the vocabulary has no {special[name]}")
    added = settings.added_tokens() - set(special.values())
    if added:
        raise ModelError(f"{settings.path}: {min(added)!r}: expected tokenizer.json, which tells how tokens are added")
    tokenizer = Tokenizer(WordPiece(ids, unk_token=special["unk"]))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=settings.get("do_lower_case", True, bool),
        strip_accents=settings.get("strip_accents", None, bool, type(None)),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True, bool),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(
        (special["sep"], ids[special["sep"]]), (special["cls"], ids[special["cls"]])
    )
    tokenizer.add_special_tokens([token for token in special.values() if token in ids])
    return tokenizer
