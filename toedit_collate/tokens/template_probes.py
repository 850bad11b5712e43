"""Renders a chat template for many conversations, to see what it writes around their contents."""

from __future__ import annotations

import datetime
import itertools
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

logger = logging.getLogger("toedit_collate")

# Words that replace the contents of messages, a role and a date.
CONTENT = re.compile(r"qzc\d{4}zq", re.IGNORECASE)
ROLE, DATE = "qzrolezq", "qzdatezq"

# Every ordered pair of these roles is tried; the others are tried one by one.
_ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython", ROLE)
_MORE_ROLES = (
    "ai", "available_tools", "bot", "context", "critic", "custom", "documents", "environment",
    "gpt", "human", "model", "narrator", "observation", "planner", "tool_call", "tool_response",
)  # fmt: skip
_LONG = 20  # longer constants count even if no rendering writes them
_DAY = datetime.datetime(2001, 2, 13, 14, 25, 36)

Messages = list[dict[str, Any]]


class TemplateProbes:
    """A chat template in an environment like that of transformers.

    Its clock writes `DATE`, so that the patterns do not depend on the day.
    """

    def __init__(self, source: str, special_tokens: dict[str, Any]) -> None:
        from jinja2 import meta, nodes
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        class Generation(Extension):
            """The tag `{% generation %}` of transformers, which writes nothing."""

            tags = {"generation"}  # noqa: RUF012 - as Jinja wants it

            def parse(self, parser: Any) -> Any:
                line = next(parser.stream).lineno
                body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
                return nodes.Scope(body, lineno=line)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
        )
        environment.filters["tojson"] = _as_json
        environment.globals.update(raise_exception=_refuse, strftime_now=self._clock)
        tree = environment.parse(source)
        self._template = environment.from_string(source)
        self._options = sorted(
            meta.find_undeclared_variables(tree)
            - {"messages", "tools", "documents", "add_generation_prompt"}
            - {*environment.globals, *special_tokens}
        )
        self.constants = set(_constants(tree, nodes))
        self._special_tokens = special_tokens
        self._numbers = itertools.count()

    @classmethod
    def of(cls, source: str, special_tokens: dict[str, Any]) -> TemplateProbes | None:
        """Parse a template with its special tokens by name (`bos_token`, ...); None: not valid."""
        from jinja2 import TemplateError

        try:
            return cls(source, special_tokens)
        except TemplateError as error:
            logger.debug("chat template not understood: %s", error)
            return None

    def renderings(self) -> Iterator[str]:
        """What the template writes for each conversation that it accepts."""
        for messages in self._conversations():
            yield from self._render(messages)
        tools, documents = [self._tool()], [self._document()]
        some = [self._talk("system", "user", "assistant", "user", "assistant"), *self._calls()]
        for messages in (self._talk("user", "assistant"), *some):
            yield from self._render(messages, tools=tools)
            yield from self._render(messages, documents=documents)
        for name in self._options:
            # A date from the user replaces that of the clock.
            text = DATE if re.search("date|today|time", name) else self._content()
            for value in (True, False, text, [text]):
                for messages in some[:2]:
                    yield from self._render(messages, **{name: value})
                    yield from self._render(messages, tools=tools, **{name: value})

    def _render(self, messages: Messages, **options: Any) -> Iterator[str]:
        """Render the conversation, and the prompt of its last answer."""
        asked = messages[:-1] if messages[-1]["role"] == "assistant" else messages
        for some, prompt in ((messages, False), (asked, True)):
            values = {
                "messages": some, "add_generation_prompt": prompt, "tools": None, "documents": None,
                **self._special_tokens, **options,
            }  # fmt: skip
            text = self._write(values)
            if text is not None:
                yield text

    def _write(self, values: dict[str, Any]) -> str | None:
        text = None
        for self._has_real_clock in (False, True):
            self._dates: list[str] = []
            try:
                text = str(self._template.render(values))
            except Exception:  # templates are programs: they may raise anything
                text = None
            if self._dates and self._has_real_clock and text is not None:
                return re.sub(rf"\b({'|'.join(self._dates)})\b", DATE, text)
            if text is not None and text.count(DATE) == len(self._dates):
                return text
            # The template may take dates apart, which needs a real date.
        return text

    def _clock(self, form: str) -> str:
        date = _DAY.strftime(form) if self._has_real_clock else DATE
        self._dates.extend(re.findall(r"\w+", date))
        return date

    def _conversations(self) -> Iterator[Messages]:
        yield self._talk("user", "assistant", "user", "assistant")
        yield self._talk("system", "user", "assistant", "user", "assistant")
        for role in (*_ROLES, *_MORE_ROLES):
            yield self._talk(role, "user", "assistant")
            yield self._talk("user", "assistant", role, "assistant", role)
        yield self._talk(*itertools.chain(*itertools.product(_ROLES, _ROLES)))
        yield from self._calls()
        for number in (1, 2):
            yield [
                {**message, **dict.fromkeys(("reasoning_content", "reasoning", "thinking"), text)}
                for text in [self._content()] * number
                for message in self._talk("user", "assistant")
            ]
        for messages in (self._talk("user", "assistant"), self._talk("system", "user")):
            for message in messages:
                message["content"] = [{"type": "text", "text": message["content"]}]
            yield messages

    def _calls(self) -> Iterator[Messages]:
        """Conversations with tool calls, in every form that data sets use."""
        for number, as_text, has_content in itertools.product((1, 2), (False, True), (False, True)):
            (question, answer), (tool,) = self._talk("user", "assistant"), self._talk("tool")
            arguments: Any = {self._content(): self._content()}
            if as_text:
                arguments = json.dumps(arguments)
            calls = [
                {
                    "id": self._content(),
                    "type": "function",
                    "function": {"name": self._content(), "arguments": arguments},
                }
                for _ in range(number)
            ]
            asking = {"role": "assistant", "tool_calls": calls}
            if has_content:
                asking["content"] = self._content()
            results = [
                {**tool, "tool_call_id": call["id"], "name": self._content()} for call in calls
            ]
            yield [question, asking, *results, answer]
            yield [question, asking]

    def _talk(self, *roles: str) -> Messages:
        return [{"role": role, "content": self._content()} for role in roles]

    def _content(self) -> str:
        return f"qzc{next(self._numbers):04d}zq"

    def _tool(self) -> dict[str, Any]:
        described = {"type": "string", "description": self._content()}
        return {
            "type": "function",
            "function": {
                "name": self._content(),
                "description": self._content(),
                "parameters": {"type": "object", "properties": {self._content(): described}},
            },
        }

    def _document(self) -> dict[str, str]:
        return {name: self._content() for name in ("doc_id", "title", "text", "content")}


def _refuse(message: str) -> None:
    raise ValueError(message)


def _as_json(value: Any, **options: Any) -> str:
    return json.dumps(value, **{"ensure_ascii": False, **options})


def _constants(node: Any, nodes: Any) -> Iterator[str]:
    """The long texts that a template can write, in any of its branches."""
    if isinstance(node, (nodes.Compare, nodes.Getitem, nodes.Test, nodes.Filter)):
        inside = [node.node] if isinstance(node, nodes.Filter) and node.node else []
    elif isinstance(node, nodes.Call) and getattr(node.node, "name", "") == "raise_exception":
        inside = []
    else:
        inside = list(node.iter_child_nodes())
    if isinstance(node, nodes.TemplateData):
        text = node.data
    else:
        text = node.value if isinstance(node, nodes.Const) and isinstance(node.value, str) else ""
    if len(text.strip()) >= _LONG:
        yield text.strip()
    for child in inside:
        yield from _constants(child, nodes)
