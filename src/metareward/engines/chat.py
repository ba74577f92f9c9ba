"""Chat messages as token ids: the chat template's own text with special tokens, the text of every message without.

A prompt or an answer that contains ``<|im_end|>`` must not end its turn. The local engine, vLLM in process and training
tokenize with `ChatEncoder`, so a model is trained on the tokens that it was given and wrote. Text without control
strings gets the ids of ``apply_chat_template``.
"""

from __future__ import annotations

import ctypes
import json
import re
import threading
import time
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from jinja2 import Environment, TemplateError

from metareward.errors import UserError
from metareward.method.template import (
    LOOKALIKE_BRACKET,
    LOOKALIKE_COLON,
    LOOKALIKE_SQUARE,
    control_strings_in,
    escape_brackets,
    is_control_string,
)
from metareward.text import one_line
from metareward.types import Message, Messages

_MARKS = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))  # private use
_SENTINEL = "Qz7x{}Zq"
_SENTINELS = re.compile(r"Qz7x\d+Zq")
_REASONING_TAG = re.compile(r"<(/?)(?:think|thinking|thought|reasoning)>")
_BRACKETED = re.compile(r"<{1,2}[^\s<>]{1,40}>{1,2}|\[[^\s\[\]]{1,40}\]")
_LABEL = re.compile(r"\b[A-Z][A-Za-z]{2,20}:")
_ANCHORS = ("\n", ".")
# What a chat template can raise on the messages of a user.
_TEMPLATE_ERRORS = (
    *(TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError),
    MemoryError,
)
# A conversation of a megabyte takes milliseconds.
_MOST_SECONDS = 10


def thinking_end(text: str) -> int:
    """Where the last closing tag of reasoning ends in ``text``; 0 without one."""
    return max((tag.end() for tag in _REASONING_TAG.finditer(text) if tag[1]), default=0)


def escape_messages(messages: Messages, starts: re.Pattern[str]) -> Messages:
    """``messages`` for a server, whose tokenizer makes tokens of control strings: these get look-alike brackets.

    ``starts`` are those of `control_starts`. If the last message is the assistant's, the model goes on with it, so the
    tags of its reasoning stay.
    """
    escaped = [Message(message.role, escape_brackets(message.content, starts)) for message in messages]
    if messages[-1].role == "assistant":
        text, tags = messages[-1].content, [tag.span() for tag in _REASONING_TAG.finditer(messages[-1].content)]
        places = [0, *chain.from_iterable(tags), len(text)]
        parts = [text[start:end] for start, end in pairwise(places)]
        parts[::2] = [escape_brackets(part, starts) for part in parts[::2]]
        escaped[-1] = Message("assistant", "".join(parts))
    return tuple(escaped)


def folder_control_strings(folder: Path) -> set[str]:
    """The control strings of a Hugging Face folder's tokenizer and chat template, read without transformers.

    Raises `UserError` if there is no readable tokenizer.
    """
    source, tokens = "", list[dict[str, Any]]()
    try:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            if (folder / name).is_file():
                content = json.loads((folder / name).read_text(encoding="utf-8"))
                source += json.dumps(content.get("chat_template") or "", ensure_ascii=False)
                tokens += content.get("added_tokens") or []
                tokens += (content.get("added_tokens_decoder") or {}).values()
        for path in (folder / "chat_template.jinja", folder / "chat_template.json"):
            source += path.read_text(encoding="utf-8") if path.is_file() else ""
        found = {each["content"] for each in tokens if _is_control(each["content"], bool(each.get("special")), source)}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{folder}: its tokenizer can't be read ({one_line(str(error))}); fix: save it again") from None
    if not tokens:
        raise UserError(f"{folder}: no tokenizer.json with added tokens; fix: name the folder of the served model")
    return found | control_strings_in(source)


def has_power(template: str) -> bool:
    """Whether a chat template has the operator ``**``: ``9 ** 9 ** 9`` is one call into C, which nothing interrupts."""
    try:
        return any(kind == "operator" and value == "**" for _, kind, value in Environment().lex(template))
    except TemplateError:  # refused where it is rendered
        return False


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise `TimeoutError` in the block if it runs longer; a single call into C isn't interrupted.

    Time for which the process was stopped (SIGSTOP, a sleeping machine) doesn't count.
    """
    thread, lock, over = ctypes.c_ulong(threading.get_ident()), threading.Lock(), threading.Event()
    raised = False

    def watch() -> None:
        nonlocal raised
        if any(over.wait(1) for _ in range(seconds)):
            return
        with lock:
            if not over.is_set():
                raised = bool(ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(_OverdueError)))

    threading.Thread(target=watch, name="time limit", daemon=True).start()
    arrived = False
    try:
        try:
            yield
        except _OverdueError:
            arrived = True
            raise
        finally:
            with lock:
                over.set()
            for _ in range(100 * (raised and not arrived)):  # it must not reach the code behind this block
                time.sleep(0.001)
    except _OverdueError:
        raise TimeoutError(f"more than {seconds} s") from None


class _OverdueError(Exception):
    """Sent to a thread whose time is over."""


class ChatTemplateError(ValueError):
    """The chat template can't write these messages; the text is the reason in one line."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What the chat template writes around the assistant's turn that follows messages of certain roles.

    ``before``: between the last message and what the model writes, as before generation; ``gap``: white space that the
    template puts before an answer; ``after``: the end of the turn. ``otherwise``: what the template writes before an
    answer instead of ``before``; empty if it writes the same.
    """

    before: str
    gap: str
    after: str
    otherwise: str = ""

    @property
    def opens_reasoning(self) -> bool:
        """Whether the model's turn begins inside its reasoning: ``<think>`` is the template's."""
        tags = list(_REASONING_TAG.finditer(self.before))
        return bool(tags) and not tags[-1][1]


class ChatEncoder:
    """Token ids of conversations for one tokenizer; the template has ``most_seconds`` for each. Not thread-safe.

    Raises `UserError` if the tokenizer has no chat template that can be used.
    """

    def __init__(self, tokenizer: Any, most_seconds: int = _MOST_SECONDS) -> None:
        self._tokenizer, self._most_seconds = tokenizer, most_seconds
        try:
            source: str = tokenizer.get_chat_template()
            source.encode()
        except ValueError as error:  # none, several without a default, or one with lone surrogates
            raise UserError(f"{tokenizer.name_or_path}: {one_line(str(error))}; fix: add chat_template.jinja") from None
        if has_power(source):
            why = "the chat template has the operator **, which can take forever"
            raise UserError(f"{tokenizer.name_or_path}: {why}; fix: use a chat_template.jinja without it")
        added = tokenizer.added_tokens_decoder
        specials = frozenset(tokenizer.all_special_tokens)
        controls = {
            id: token.content
            for id, token in added.items()
            if _is_control(token.content, token.special or token.content in specials, source)
        }
        self._control_ids = frozenset(controls) - {tokenizer.unk_token_id}
        self._control = _any_of(controls.values())
        self._control_start = re.compile(f"(?={self._control.pattern})")
        self._live_tags = frozenset(token.content for token in added.values() if not token.special)
        self._turns: dict[tuple[str, ...], Turn] = {}
        self._written = set[tuple[str, ...]]()  # the roles of prompts that the template is known to write wholly
        self._delimiters = self._plain_delimiters()

    def encode(self, messages: Messages, *, continue_last: bool = False) -> list[int]:
        """The ids of a prompt: the messages and the header of the assistant's turn.

        With ``continue_last`` the last message is the assistant's and the ids end with it, so that the model goes on
        with its turn. Raises `ChatTemplateError` if the template rejects the messages or leaves one out, such as the
        system prompt, `UnicodeEncodeError` if they hold lone surrogates.
        """
        if continue_last:
            if messages[-1].role != "assistant":
                raise ValueError("continue_last needs a last message of the assistant")
            return self.encode(messages[:-1]) + self.encode_completion(messages[:-1], messages[-1].content, False)
        self._refuse_unwritten(messages)
        contents = [self._delimiters.sub(_lookalike, message.content) for message in messages]
        for spread in (False, True):
            mark = _unused_character(contents) if spread or any(map(self._control.search, contents)) else ""
            marked = [_spread(content, mark) if spread else self._cut(content, mark) for content in contents]
            turns = [Message(message.role, content) for message, content in zip(messages, marked, strict=True)]
            segments = _segments(self._render(turns, True), mark)
            ids = self._encode_segments("", segments)
            if self._control_count(ids) <= self._expected(segments):
                return ids
        raise ChatTemplateError("the tokenizer makes special tokens of ordinary text")

    def encode_completion(self, prompt: Messages, text: str, end_turn: bool = True) -> list[int]:
        """The ids of the assistant's ``text`` after the ids of ``prompt``: what the model would have written.

        With ``end_turn`` followed by the end of the turn. The tags of reasoning around the beginning of ``text`` are
        tokens where the tokenizer has them, as the model wrote them; all other control strings are text.
        """
        text.encode()
        if not text and not end_turn:
            return []
        turn, mark = self.turn(prompt), _unused_character([text])
        for written in (self._cut(text, mark, self._live_positions(text, turn)), _spread(text, mark)):
            ids, expected = self._encode_answer(turn, text, written, mark, turn.after if end_turn else "")
            if self._control_count(ids) <= expected:
                return ids
        raise ChatTemplateError("the tokenizer makes special tokens of ordinary text")

    def _encode_answer(self, turn: Turn, text: str, written: str, mark: str, after: str) -> tuple[list[int], int]:
        """The ids of ``written``, which is ``text`` with marks, and of ``after``, and their number of control tokens.

        First as the template puts it, then by itself, because a token of the template may take in white space (Phi-3).
        """
        gap, before, decode = turn.gap, self._ids(turn.before), self._tokenizer.decode
        if gap and text[:1].isspace() and decode(self._after(turn.before, text)) == text:
            gap = ""  # the model wrote this space itself
        found = []
        for context in (turn.before, *_ANCHORS):
            segments = _segments(gap + written, mark)
            segments[-1] += after
            ids = self._encode_segments(context, segments)
            found.append((ids, self._expected(segments)))
            if _begins(decode(before + ids)[len(decode(before)) :], gap + text):
                return found[-1]
        return found[0]

    def writes(self, prompt: Messages, text: str) -> bool:
        """Whether the chat template would write the assistant's ``text`` after ``prompt`` unchanged."""
        try:
            return text in self._render([*prompt, Message("assistant", text)], False)
        except ChatTemplateError:
            return False

    def turn(self, prompt: Messages) -> Turn:
        """What the template writes around the assistant's turn after ``prompt``; it depends on the roles alone."""
        roles = tuple(message.role for message in prompt)
        if roles not in self._turns:
            self._turns[roles] = self._find_turn(prompt)
        return self._turns[roles]

    def _find_turn(self, prompt: Messages) -> Turn:
        stubs = [Message(message.role, _SENTINEL.format(place)) for place, message in enumerate(prompt)]
        answer = _SENTINEL.format(len(stubs))
        generation = self._render(stubs, True)
        head, found, after = self._render([*stubs, Message("assistant", answer)], False).partition(answer)
        if not found:
            raise ChatTemplateError("the chat template leaves out the assistant's text")
        before = _SENTINELS.split(generation)[-1]
        if head.startswith(generation) and not head[len(generation) :].strip():
            return Turn(before, head[len(generation) :], after)
        return Turn(before, "", after, _SENTINELS.split(head)[-1])

    def _refuse_unwritten(self, prompt: Messages) -> None:
        """Raise `ChatTemplateError` if the template writes nothing of a message of ``prompt``, by the roles alone."""
        roles = tuple(message.role for message in prompt)
        if roles not in self._written:
            stubs = [Message(role, _SENTINEL.format(place)) for place, role in enumerate(roles)]
            text = self._render(stubs, True)
            for stub in stubs:
                if stub.content not in text:
                    raise ChatTemplateError(f"the chat template leaves out the {stub.role}'s text")
            self._written.add(roles)

    def _render(self, messages: Sequence[Message], generation: bool) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            with time_limit(self._most_seconds):
                text: str = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation)
        except TimeoutError as error:
            raise ChatTemplateError(f"the chat template takes {error} for one conversation") from error
        except _TEMPLATE_ERRORS as error:
            kind = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
            raise ChatTemplateError(f"{kind}{' '.join(str(error).split())[:300]}") from error
        text.encode()
        return text

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _after(self, before: str, text: str) -> list[int]:
        """The ids of ``text`` where it follows ``before``; its own if a token would span both."""
        # SentencePiece puts a space before a text, which must not come into the middle of one.
        ids, both = self._ids(before), self._ids(before + text)
        return both[len(ids) :] if both[: len(ids)] == ids else self._ids(text)

    def _encode_segments(self, before: str, segments: Sequence[str]) -> list[int]:
        first = self._after(before, segments[0]) if before else self._ids(segments[0])
        return list(chain(first, *(self._after("\n", segment) for segment in segments[1:] if segment)))

    def _cut(self, text: str, mark: str, live: Set[int] = frozenset()) -> str:
        """``text`` with ``mark`` before every control string that isn't at a ``live`` position."""
        if not self._control.search(text):
            return text
        return self._control_start.sub(lambda found: "" if found.start() in live else mark, text)

    def _control_count(self, ids: Iterable[int]) -> int:
        return sum(map(self._control_ids.__contains__, ids))

    def _expected(self, segments: Iterable[str]) -> int:
        """How many control tokens the template, and the tags of reasoning, have in ``segments``."""
        return sum(len(self._control.findall(segment)) for segment in segments)

    def _live_positions(self, text: str, turn: Turn) -> set[int]:
        """Where the tags around the reasoning at the beginning of ``text`` are, if they are tokens of the tokenizer."""
        tags = [tag for tag in _REASONING_TAG.finditer(text) if tag[0] in self._live_tags]
        begun = [tag.start() for tag in tags if not tag[1] and not text[: tag.start()].strip()][:1]
        ends = [tag.start() for tag in tags if tag[1]][-1:] if begun or turn.opens_reasoning else []
        return {*begun, *ends}

    def _plain_delimiters(self) -> re.Pattern[str]:
        """Delimiters of the template that are ordinary text for the tokenizer, such as Llama 2's ``[INST]``."""
        found: set[str] = set()
        for roles in (("system", "user", "assistant", "user"), ("user", "assistant", "user")):
            stubs = [Message(role, _SENTINEL.format(place)) for place, role in enumerate(roles)]  # type: ignore[arg-type]
            try:
                parts = _SENTINELS.split(self._render(stubs, True))
            except (ChatTemplateError, UnicodeEncodeError):
                continue  # such as a template without system prompts
            for part in parts:
                plain = self._control.sub("", part)
                found.update(_BRACKETED.findall(plain) or ([] if plain != part else _LABEL.findall(plain)))
        return _any_of(found)


def _is_control(content: str, special: bool, source: str) -> bool:
    """Whether an added token is the template's to write: a special token, a token of its source, a known form."""
    if not content.strip() or len(content) < 2:
        return False
    named = content in source and not content.isalnum()
    return special or named or is_control_string(content)


def _any_of(strings: Iterable[str]) -> re.Pattern[str]:
    """A pattern for all of ``strings``, longest first; numbers in them match every number, which keeps it short."""
    escaped = {re.sub(r"\d+", r"\\d+", re.escape(each)) for each in strings}
    return re.compile("|".join(sorted(escaped, key=lambda each: (-len(each), each))) or r"(?!)")


def _begins(spelled: str, text: str) -> bool:
    """Whether ``spelled`` begins with ``text``, or with more spaces: SentencePiece may put one before a text."""
    spaces = [len(each) - len(each.lstrip(" ")) for each in (spelled, text)]
    return spaces[0] >= spaces[1] and spelled.startswith(text.lstrip(" "), spaces[0])


def _unused_character(contents: Iterable[str]) -> str:
    """A private-use character that none of ``contents`` has, if there is one."""
    used = set(chain.from_iterable(contents))
    return next((chr(code) for code in chain(*_MARKS) if chr(code) not in used), chr(_MARKS[0][0]))


def _spread(content: str, mark: str) -> str:
    """``content`` with every character marked, so that no two of them are tokenized together."""
    return "".join(mark + letter for letter in content)


def _segments(text: str, mark: str) -> list[str]:
    """``text`` cut after the character behind each mark, so that a marked control string is in two segments."""
    first, *others = text.split(mark) if mark else [text]
    segments = [first]
    for piece in others:
        segments[-1] += piece[:1]
        segments.append(piece[1:])
    return segments


def _lookalike(delimiter: re.Match[str]) -> str:
    text = delimiter[0]
    if text.endswith(":"):
        return text[:-1] + LOOKALIKE_COLON
    return {"<": LOOKALIKE_BRACKET, "[": LOOKALIKE_SQUARE}.get(text[0], LOOKALIKE_BRACKET) + text[1:]
