"""Conversations as lists of messages: the one way rows are read, wherever they enter, and their text."""

from trl.trainer.utils import remove_none_values


ROLES = ("system", "user", "assistant")
# A filled placeholder has `image` or `video`, a numbered one `index`.
PARTS = {"text": ("type", "text"), "image": ("type", "image", "index"), "video": ("type", "video", "index")}
LINKS = {"image_url": "image", "video_url": "video"}  # OpenAI's chat format
MARKS = {"image": "<image>", "video": "<video>"}  # what stands for one in a text


def read_messages(turns: str | list[dict], role: str) -> list[dict]:
    """
    Messages with `role` and `content` and nothing else: a string, or parts of text, images and videos.

    Args:
        turns (`str` or `list[dict]`):
            Messages, or one turn as a plain string.
        role (`str`):
            Whose turn a plain string is.

    Returns:
        `list[dict]`: new messages; those given stay as they are.

    Raises:
        ValueError: For anything else that a message says, such as a sound or a tool call: it would be lost.
    """
    if isinstance(turns, str):
        turns = [{"role": role, "content": turns}]
    if not isinstance(turns, list | tuple) or not all(isinstance(message, dict) for message in turns):
        raise ValueError(f"neither a string nor a list of messages with `role` and `content`: {shown(turns)}.")
    # Arrow gives every message part the keys of all others, as None, and Qwen's template asks which keys are there.
    messages, n_shown = [], dict.fromkeys(MARKS, 0)
    for message in remove_none_values(list(turns)):
        check_keys(message, ("role", "content"), "a message")
        if message.get("role") not in ROLES:
            raise ValueError(f"a message has the role {message.get('role')!r}, and {', '.join(ROLES)} are read.")
        content = message.get("content")
        if isinstance(content, list | tuple):
            content = [read_part(part) for part in content]
            for part in content:
                if (kind := part["type"]) in n_shown:
                    if part.pop("index", n_shown[kind]) != n_shown[kind]:
                        one = "an image" if kind == "image" else "a video"
                        raise ValueError(f"the `index` of {one} part is not its place among the {kind}s. Sort them.")
                    n_shown[kind] += 1
        elif not isinstance(content, str):
            raise ValueError(f"the content of a message is neither text nor a list of parts: {shown(content)}.")
        messages.append({"role": message["role"], "content": content})
    check_characters(text_of(messages))
    return messages


def read_part(part: dict) -> dict:
    """A part of a message with the keys of [`PARTS`] only. Raises what [`read_messages`] does."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in LINKS:
        part, kind = filled_by_link(part, kind), LINKS[kind]
    if kind not in PARTS:
        kind = repr(kind) if isinstance(part, dict) else type(part).__name__
        raise ValueError(
            f"a message has a part of type {kind}, and only text, image and video are read. Put an image into the "
            """row's `images`, a video into its `videos`, and leave {"type": "image"} or {"type": "video"} in its """
            "place; leave the row out where it is about something else."
        )
    check_keys(part, PARTS[kind], f"a part of type {kind}")
    if not isinstance(part.get("text", ""), str):
        raise ValueError(f"the text of a message is no string: {shown(part['text'])}.")
    read = {key: part[key] for key in PARTS[kind] if key in part}
    return {"text": "", **read} if kind == "text" else read


def filled_by_link(part: dict, kind: str) -> dict:
    """A part of OpenAI's chat format, `{"type": "image_url", "image_url": {"url": ...}}`, as one that is filled."""
    check_keys(part, ("type", kind), f"a part of type {kind}")
    link = part.get(kind)
    link = link if isinstance(link, dict) else {"url": link}
    check_keys(link, ("url",) if link.get("detail") != "auto" else ("url", "detail"), f"a part of type {kind}")
    if not isinstance(link.get("url"), str) or not link["url"]:
        raise ValueError(f"a part of type {kind} has no `url`: {shown(part)}. Name a file or a data URL there.")
    return {"type": LINKS[kind], LINKS[kind]: link["url"]}


def check_keys(given: dict, known: tuple[str, ...], name: str) -> None:
    """
    Raises:
        ValueError: If `given`, which the message calls `name`, says something under a key that is not `known`.
    """
    empty = {key for key, value in given.items() if isinstance(value, str | list | dict | int) and not value}
    if unread := sorted(given.keys() - set(known) - empty):
        raise ValueError(
            f"{name} holds {', '.join(unread)}, which this project does not read, so what it says would be lost. "
            "Write it into the text, or leave the row out."
        )


def check_characters(text: str) -> None:
    """
    Raises:
        ValueError: If a text holds half of a surrogate pair, which no file and no tokenizer takes.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("a text holds half a character. It was cut there: mend it, or leave the row out.") from error


def shown(value: object) -> str:
    """A value in an error message, however long it is."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}... ({type(value).__name__})"


def as_messages(prompt: str | list[dict], completion: str | list[dict]) -> list[dict]:
    """
    Join a prompt and a completion into one conversation, as [`split_turns`] reads them. The completion goes on with an
    answer that the prompt has begun. With `[]` as completion, it is the prompt alone. Raises what [`split_turns`] does.
    """
    return read_messages(prompt, "user") if completion == [] else join_turns(*split_turns(prompt, completion))


def join_turns(before: list[dict], answer: list[dict]) -> list[dict]:
    """One conversation. An answer that is begun at the end of `before` is one turn with what comes after it."""
    if not before or before[-1]["role"] != "assistant":
        return before + answer
    begun, rest = before[-1]["content"], answer[0]["content"]
    both = begun + rest if isinstance(begun, str) and isinstance(rest, str) else as_parts(begun) + as_parts(rest)
    return [*before[:-1], {"role": "assistant", "content": both}]


def as_parts(content: str | list[dict]) -> list[dict]:
    """A message's content as a list of parts."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def split_turns(
    prompt: str | list[dict] | None, completion: str | list[dict], name: str = "the answer"
) -> tuple[list[dict], list[dict]]:
    """
    The turns before an answer, and the answer: one turn of the assistant.

    Args:
        prompt (`str` or `list[dict]`, *optional*):
            A user's turn, or messages. They may end in an answer that is begun. Without it, they stand in `completion`.
        completion (`str` or `list[dict]`):
            The answer, or a conversation that ends in it. Turns of the prompt that it repeats count once.
        name (`str`, *optional*, defaults to `"the answer"`):
            What to call the completion in an error message.

    Returns:
        `tuple[list[dict], list[dict]]`: the turns before the answer, and the answer as a list of one message.

    Raises:
        ValueError: For an answer that is missing, empty or not the assistant's, for two conversations that do not fit
            together, and for what [`read_messages`] refuses.
    """
    if completion is None:
        raise ValueError(f"{name} is missing: it is None. Leave the row out.")
    before = [] if prompt is None else read_messages(prompt, "user")
    turns = read_messages(completion, "assistant")
    if not turns or not text_of(turns[-1:]).strip():
        raise ValueError(f"{name} is empty, so there is nothing to learn from or to score. Leave the row out.")
    if turns[-1]["role"] != "assistant":
        raise ValueError(f"{name} ends in a turn of the {turns[-1]['role']}, and the assistant's is needed.")
    if shows(turns[-1:]):
        raise ValueError(f"{name} holds an image or a video, and only text is an answer. Leave the row out.")
    head = turns[:-1]
    if before and head and before[-1]["role"] == "assistant" and turn_keys(before[:-1]) == turn_keys(head):
        if text_of(turns).startswith(text_of([*head, before[-1]])):
            return before[:-1], turns[-1:]
    return with_turns(before, head, name), turns[-1:]


def with_turns(prompt: list[dict], head: list[dict], name: str) -> list[dict]:
    """A prompt and the turns that a completion has before its answer, those that both have once."""
    if not prompt or not head:
        return prompt + head
    if any(kind in part for turn in head for part in as_parts(turn["content"]) for kind in MARKS):
        raise ValueError(
            f"{name} repeats turns of the prompt and holds an image or a video in them, which may be another than the "
            "prompt's. Give it with the prompt alone."
        )
    asked, held, n = turn_keys(prompt), turn_keys(head), len(prompt)
    if held[0][0] != "assistant":  # a whole conversation
        for start in range(len(head) - n + 1):
            if held[start : start + n] == asked:
                same = prompt if shows(prompt) else head[start : start + n]
                return [*head[:start], *same, *head[start + n :]]
    for n in range(min(len(asked), len(held)), 0, -1):
        if asked[-n:] == held[:n]:
            return prompt + head[n:]
    if held[0][0] == "system" or (held[0][0], asked[-1][0]) == ("user", "user"):
        raise ValueError(
            f"{name} is a conversation that begins with other turns than the prompt ends in. Give the turns before the "
            "answer as the prompt, and the answer alone."
        )
    return prompt + head


def shows(messages: list[dict]) -> bool:
    """Whether a message has a part that is an image or a video."""
    return any(part["type"] in MARKS for turn in messages for part in as_parts(turn["content"]))


def turn_keys(messages: list[dict]) -> list[tuple[str, str]]:
    """Who says what in each turn, whatever the blanks and wherever its images and videos stand."""
    return [(turn["role"], " ".join(without_marks(text_of([turn])).split())) for turn in messages]


def without_marks(text: str) -> str:
    """A text with a blank for each of [`MARKS`]."""
    for mark in MARKS.values():
        text = text.replace(mark, " ")
    return text


def split_pair(
    prompt: str | list[dict] | None, chosen: str | list[dict], rejected: str | list[dict]
) -> tuple[list[dict], list[dict], list[dict]]:
    """
    A pair's prompt, its chosen and its rejected answer. The turns that both conversations begin with belong to the
    prompt.

    Args:
        prompt (`str` or `list[dict]`, *optional*):
            As [`split_turns`] takes it.
        chosen (`str` or `list[dict]`), rejected (`str` or `list[dict]`):
            The answers, or conversations that end in them.

    Returns:
        `tuple[list[dict], list[dict], list[dict]]`: the prompt's turns, and each answer as a list of one message.

    Raises:
        ValueError: What [`split_turns`] refuses, and two conversations that part before their last turn.
    """
    before, answer = split_turns(prompt, chosen, "the chosen response")
    other, other_answer = split_turns(prompt, rejected, "the rejected response")
    if not before or not other or turn_keys(before[:1]) != turn_keys(other[:1]):
        raise ValueError("the two conversations share no prompt. Their answers do not compare: leave the row out.")
    if turn_keys(before) != turn_keys(other):
        raise ValueError("the two conversations part before their last turn. Their answers do not compare.")
    return before, answer, other_answer


def text_of(messages: str | list[dict]) -> str:
    """All text of a conversation without its images and videos, one turn a line. A plain string is its own text."""
    if isinstance(messages, str):
        return messages
    contents = [message["content"] for message in messages]
    return "\n".join(
        content if isinstance(content, str) else "".join(part.get("text") or "" for part in content or ())
        for content in contents
    )


def dialogue(messages: str | list[dict]) -> str:
    """All turns of a prompt for someone to read: a single user's as it is, of several each with the speaker's name."""
    messages = read_messages(messages, "user")
    if [message["role"] for message in messages] == ["user"]:
        return text_of(messages)
    return "\n\n".join(f"{message['role'].capitalize()}: {text_of([message])}" for message in messages)
