"""Conversations as lists of messages, and their text."""

from trl.trainer.utils import remove_none_values


def as_messages(prompt: str | list[dict], completion: str | list[dict]) -> list[dict]:
    """Join a prompt and a completion into one conversation. A plain string is one user or one assistant turn."""
    prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    completion = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
    # Arrow gives every message part the keys of all others, as None, and Qwen's template asks which keys are there.
    return remove_none_values(prompt + completion)


def extract_images(prompt: str | list[dict]) -> tuple[str | list[dict], list]:
    """
    Part a prompt and the images that its placeholders hold already, as `GRPOTrainer` fills them in before it asks for
    rewards.

    Returns:
        `tuple[str | list[dict], list]`: the prompt with empty placeholders, and the images, in order.
    """
    images = []
    if isinstance(prompt, str):
        return prompt, images
    messages = remove_none_values(prompt)
    for i, message in enumerate(messages):
        if not isinstance(message["content"], str):
            images += [part["image"] for part in message["content"] if "image" in part]
            parts = [{key: part[key] for key in part if key != "image"} for part in message["content"]]
            messages[i] = {**message, "content": parts}
    return messages, images


def text_of(messages: str | list[dict]) -> str:
    """All text of a conversation without its images, one turn a line. A plain string is its own text."""
    if isinstance(messages, str):
        return messages
    contents = [message["content"] for message in messages]
    return "\n".join(
        content if isinstance(content, str) else "".join(part.get("text") or "" for part in content)
        for content in contents
    )
