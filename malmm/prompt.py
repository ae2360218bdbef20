"""From a sample's words to the text of a prompt. Pure functions of strings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from string import Formatter

PLACEHOLDERS = ("visual", "caption", "history", "question")
HISTORY_PLACEHOLDERS = ("question", "answer")


@dataclass(frozen=True)
class Prompt:
    """Text on either side of the visual tokens."""

    before: str
    after: str


def _fields(name: str, text: str, allowed: Sequence[str]) -> list[str]:
    """The placeholders of ``text``, in order. Raises ValueError naming the allowed ones."""
    names = "allowed: " + ", ".join("{" + a + "}" for a in allowed)
    try:
        fields = [(field, spec, conv) for _, field, spec, conv in Formatter().parse(text) if field is not None]
    except ValueError as error:
        raise ValueError(f"{name}: {error}; {names}; write {{{{ and }}}} for braces") from None
    for field, spec, conversion in fields:
        if field not in allowed or spec or conversion:
            raise ValueError(f"{name}: unknown placeholder {{{field}}}; {names}")
    return [field for field, _, _ in fields]


@dataclass(frozen=True)
class Template:
    """
    text: the prompt, with {question} and, where wanted, {caption} and {history}; {visual} says where the visual tokens
    go (in front, if it is left out). history: one past turn, with {question} and {answer}; turns are joined as they
    are. Raises ValueError on an unknown placeholder, a missing {question}, or more than one {visual}.
    """

    text: str = "{visual}Caption: {caption}\n{history}Question: {question}\nAnswer:"
    history: str = "Question: {question}\nAnswer: {answer}\n"

    def __post_init__(self) -> None:
        used = self.fields
        if "question" not in used:
            raise ValueError("template: {question} is missing")
        if used.count("visual") > 1:
            raise ValueError("template: {visual} may stand only once")
        _fields("history template", self.history, HISTORY_PLACEHOLDERS)

    @property
    def fields(self) -> list[str]:
        """The placeholders in use, in order."""
        return _fields("template", self.text, PLACEHOLDERS)

    def render(
        self,
        question: str,
        caption: str | None = None,
        history: Sequence[tuple[str, str]] = (),
        budget: int | None = None,
        count: Callable[[str], int] = len,
    ) -> Prompt:
        """
        The prompt of one sample. ``history`` holds (question, answer), oldest first. While ``count(text)`` exceeds
        ``budget`` the oldest turn is left out; a prompt that is too long without any history is left as it is.
        Raises ValueError if the template has {caption} and the sample has none.
        """
        used = self.fields
        if caption is None and "caption" in used:
            raise ValueError(f"the template has {{caption}}, but the sample has none (question: {question!r})")
        turns = [self.history.format(question=q, answer=a) for q, a in history]
        if "history" not in used:
            turns = []

        def fill(start: int) -> Prompt:
            parts: list[list[str]] = [[], []]
            values = {"caption": caption, "history": "".join(turns[start:]), "question": question}
            side = 0 if "visual" in used else 1
            for literal, field, _, _ in Formatter().parse(self.text):
                parts[side].append(literal)
                if field == "visual":
                    side = 1
                elif field is not None:
                    parts[side].append(str(values[field]))
            return Prompt("".join(parts[0]), "".join(parts[1]))

        def fits(start: int) -> bool:
            prompt = fill(start)
            return count(prompt.before + prompt.after) <= budget

        start = 0
        while budget is not None and start < len(turns) and not fits(start):
            start += 1
        return fill(start)
