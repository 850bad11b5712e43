"""Renders a chat template for many conversations, to see what it writes around their contents."""

from __future__ import annotations

import datetime
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

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
# The day that the clock of a template shows, so that the patterns do not depend on today.
_DAY = datetime.datetime(2001, 2, 13, 14, 25, 36)
_CLOCK = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")

Messages = list[dict[str, Any]]


class TemplateProbes:
    """The source of a chat template, rendered by its tokenizer.

    Attributes:
        constants: long texts of the template, in any of its branches.

    Raises:
        jinja2.TemplateError: the source is not a valid template.
    """

    def __init__(self, source: str, tokenizer: Any) -> None:
        import jinja2.meta

        environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
        # The tag is one of transformers, and writes nothing.
        tree = environment.parse(re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", source))
        known = {"messages", "tools", "documents", "add_generation_prompt", "raise_exception"}
        known |= {"strftime_now", *environment.globals, *tokenizer.special_tokens_map}
        self.constants = _constants(tree)
        self._options = sorted(jinja2.meta.find_undeclared_variables(tree) - known)
        self._dates = [_DAY.strftime(form) for _, form in _CLOCK.findall(source)]
        self._source = _CLOCK.sub(lambda call: repr(_DAY.strftime(call[2])), source)
        self._tokenizer = tokenizer
        self._numbers = itertools.count()

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
            try:
                text = self._tokenizer.apply_chat_template(
                    some, chat_template=self._source, tokenize=False, add_generation_prompt=prompt,
                    **options,
                )  # fmt: skip
            except Exception:  # templates are programs: they may raise anything
                continue
            for date in self._dates:
                # The template may take the date apart.
                for part in [date] if date in text else re.findall(r"\w+", date):
                    text = re.sub(rf"(?<!\w){re.escape(part)}(?!\w)", DATE, text)
            yield text

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


def _constants(tree: Any) -> set[str]:
    """The long texts that a template can write, in any of its branches."""
    from jinja2 import nodes

    texts = [node.data for node in tree.find_all(nodes.TemplateData)]
    is_error = {
        id(constant)
        for call in tree.find_all(nodes.Call)
        if getattr(call.node, "name", "") == "raise_exception"
        for constant in call.find_all(nodes.Const)
    }
    for node in tree.find_all(nodes.Const):
        if isinstance(node.value, str) and id(node) not in is_error:
            texts.append(node.value)
    return {text.strip() for text in texts if len(text.strip()) >= _LONG}
