"""What a chat template does with `<think>` blocks, looked at before a run."""

import logging

from transformers import ProcessorMixin

from ..data.encoding import render, render_prompt


logger = logging.getLogger(__name__)
QUESTION = [{"role": "user", "content": "What is 4 + 5?"}]
ANSWER = [{"role": "assistant", "content": "9"}]


def check_template(processor: ProcessorMixin) -> None:
    """
    Look at a chat template. One that opens a thought in the prompt is that of a Thinking model: what is sampled goes on
    after `<think>`, and is scored and trained on with the tags that the template gives it. An Instruct model that has
    such a template is warned of.

    Raises:
        ValueError: If a conversation does not begin as its prompt does. A template that puts an empty thought into the
            prompt alone, as one that is not the model's own may, asks a policy something else than what is scored.
    """
    prompt = render_prompt(processor, "a prompt", QUESTION, [])
    whole = render(processor, "a conversation", QUESTION + ANSWER, [])
    if not whole.startswith(prompt):
        raise ValueError(
            f"The chat template ends a prompt in {prompt[-40:]!r}, and a conversation with an answer goes "
            f"{whole[-60:]!r}. What is sampled would not be what is scored and trained on. Use the checkpoint's own "
            "`chat_template.jinja`, or one that only adds to the prompt."
        )
    name = str(processor.tokenizer.name_or_path)
    if "<think>" in prompt and "instruct" in name.lower():
        logger.warning(
            f"The chat template of {name} ends a prompt in {prompt[-18:]!r}, and an Instruct model does not "
            "think: its answers would be those of a model that was never trained so. Is it the template of the "
            "Thinking checkpoint? Use the Instruct checkpoint's own `chat_template.jinja`."
        )
