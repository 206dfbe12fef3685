"""What a generative judge is asked, and how its verdict is read. The verdict's form is official, the wording ours."""

import re

from ..data.messages import dialogue


class Verdict:
    """What a judge is asked, how its verdicts are read, and how votes on two responses become one choice."""

    FORM: str

    def prompt(self, prompt: str | list[dict], first: str, second: str) -> str:
        """The user turn that shows all turns of `prompt` and the answers `first` and `second`, and asks to compare."""
        shown = (
            text.replace("<image>", "[image]").replace("<video>", "[video]")
            for text in (dialogue(prompt), first, second)
        )
        return self.FORM.format(*shown)  # `<image>` would be the place of an image

    def parse(self, text: str) -> int | None:
        """0 or 1 for the first or the second answer as shown, `None` without a verdict."""
        raise NotImplementedError

    def votes(self, straight: list[str], turned: list[str]) -> list[int | None]:
        """
        Which response each judgement prefers, 0 or 1 in the row's order, or `None` without a verdict.

        Args:
            straight (`list[str]`):
                Judgements of the responses in the row's order.
            turned (`list[str]`):
                Judgements of the second response shown before the first.
        """
        of_turned = {0: 1, 1: 0, None: None}
        return [*map(self.parse, straight), *(of_turned[self.parse(text)] for text in turned)]

    def majority(self, votes: list[int | None]) -> int | None:
        """The response with more than half of all votes, those without a verdict included, as `cal.py` counts them."""
        return next((choice for choice in (0, 1) if votes.count(choice) > len(votes) / 2), None)


class NumberedVerdict(Verdict):
    """
    VL-RewardBench's form: the verdict is a sentence such as "Overall Judgment - Answer 1 is better." `parse` uses the
    pattern of its `cal.py`.
    """

    PATTERN = re.compile(
        r"(?:Overall Judgment|Therefore)\s*.*\s*-*\s*Answer\s*(\d+)\s*is\s*(?:the\s*)?(?:slightly\s*)?better",
        re.IGNORECASE,
    )

    FORM = (
        "You see an image, a question about it, and two answers. Which answer is more accurate about the image, "
        "and more useful? Neither the order of the answers nor their length may decide. Explain your "
        "reasons, then end with one line: `Overall Judgment - Answer X is better.`, X being 1 or 2.\n\n"
        "Question: {}\n\nAnswer 1: {}\n\nAnswer 2: {}"
    )

    def parse(self, text: str) -> int | None:
        """0 or 1 for the first or the second answer as shown, `None` without a verdict."""
        match = self.PATTERN.search(text.replace("\n", "").replace("*", ""))
        number = int(match.group(1)) if match else None
        return number - 1 if number in (1, 2) else None


class LetterVerdict(Verdict):
    """
    The form of Multimodal RewardBench and of RewardBench's generative script: the verdict is [[A]] or [[B]]. As in
    `2_get_accuracy.py`, [[A]] is looked for first.
    """

    FORM = (
        "Two assistants answered a user's question. Judge which of them follows the instructions and answers the "
        "question better. Neither the order of the answers nor their length may decide. "
        'Explain briefly, then give your verdict as "[[A]]" or "[[B]]".\n\n'
        "[User Question]\n{}\n\n[Assistant A]\n{}\n[End of Assistant A]\n\n"
        "[Assistant B]\n{}\n[End of Assistant B]"
    )

    def parse(self, text: str) -> int | None:
        """0 or 1 for the first or the second answer as shown, `None` without a verdict."""
        return 0 if "[[A]]" in text else 1 if "[[B]]" in text else None
