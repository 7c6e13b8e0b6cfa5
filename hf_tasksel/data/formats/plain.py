"""Formats of plain text: a prompt template, and what completes it."""

from __future__ import annotations

from typing import Any

from ...core.errors import DataError
from .cells import spaced, text
from .row_format import FormattedRow, RowFormat


class TemplateFormat(RowFormat):
    """A format whose prompt is a template with its fields filled in."""

    def read(self, fields: dict[str, Any]) -> FormattedRow:
        """Fill in the template, and complete it."""
        completion, answer = self.complete(fields)
        return FormattedRow(self.prompt(fields), completion, answer)

    def complete(self, fields: dict[str, Any]) -> tuple[str, str]:
        """Return the completion and the final answer."""
        raise NotImplementedError

    def prompt(self, fields: dict[str, Any]) -> str:
        """Fill in the template."""
        template = self.template_for(fields)
        try:
            return template.format(**{k: self.cell(k, v) for k, v in fields.items() if f"{{{k}" in template})
        except (KeyError, IndexError, ValueError) as error:
            raise DataError(f"the template {template!r} does not fit the fields {sorted(fields)}: {error!r}") from None

    def template_for(self, fields: dict[str, Any]) -> str:
        """Return the template of one row."""
        return self.template

    def cell(self, field: str, value: Any) -> str:
        """Return a cell as it is filled in."""
        return text(value)


class Instruction(TemplateFormat):
    """An instruction, in many rows with an input, and an output; as Alpaca has them."""

    name = "instruction"
    required = ("instruction", "output")
    optional = ("input",)
    default_template = "Instruction: {instruction}\nInput: {input}\nResponse:"

    def template_for(self, fields: dict[str, Any]) -> str:
        """Leave the line of the input out for a row that has none."""
        if self.own_template or text(fields.get("input")):
            return self.template
        return self.template.replace("Input: {input}\n", "")

    def complete(self, fields: dict[str, Any]) -> tuple[str, str]:
        """Return the output."""
        return spaced(fields["output"]), ""


class ChainOfThought(TemplateFormat):
    """A question, an answer, and in many rows what leads from one to the other."""

    name = "chain_of_thought"
    required = ("question",)
    optional = ("rationale", "answer")
    default_template = "Question: {question}\nAnswer:"

    def complete(self, fields: dict[str, Any]) -> tuple[str, str]:
        """Return the rationale with the answer stated at its end."""
        rationale, answer = text(fields.get("rationale")), text(fields.get("answer"))
        if rationale == answer:
            rationale = ""  # both fields read the same column
        both = rationale or answer
        if "####" in both and not (rationale and answer):  # GSM8K keeps the answer behind four hashes
            rationale, answer = (part.strip() for part in both.rsplit("####", 1))
        if not answer:
            return "", ""
        stated = f"The answer is {answer}" + ("" if answer.endswith((".", "!", "?")) else ".")
        return f" {rationale} {stated}" if rationale else f" {stated}", answer


class Classification(TemplateFormat):
    """A text and its class."""

    name = "classification"
    required = ("text", "label")
    default_template = "Text: {text}\nLabel:"

    def complete(self, fields: dict[str, Any]) -> tuple[str, str]:
        """Return the class, which is also the answer."""
        label = fields["label"]
        if isinstance(label, float) and label.is_integer():  # whole numbers beside missing ones become 1.0
            label = int(label)
        return spaced(label), text(label)


class Text(RowFormat):
    """Text to model as it is, every token of it."""

    name = "text"
    required = ("text",)

    def read(self, fields: dict[str, Any]) -> FormattedRow:
        """Return the text as what is learned."""
        return FormattedRow(completion=text(fields["text"], strip=False), is_text=True)
