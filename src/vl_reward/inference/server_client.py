"""Requests to vLLM servers, by the client that their users have."""

import base64
import io
import logging
import os
import queue
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from urllib.parse import urlsplit

import openai
from PIL import Image
from tqdm import tqdm


logger = logging.getLogger(__name__)

PAUSE_SECONDS = 2.0


class RequestRefused(ValueError):
    """A request that a server does not take, and would not take again."""


class ServerClient:
    """
    Asks one or several servers that serve the same model. A request goes to whichever has room.

    A request that times out, finds no server, or is answered with 429 or 5xx is sent again, with growing pauses by
    `openai`'s client, and then, to any of the servers, until `patience` is over: a server may be started anew in the
    middle of a run.

    Args:
        urls (`str` or `list[str]`):
            Addresses, such as `http://localhost:8000/v1`. One without a path, as `vllm serve` prints it, has `/v1`.
        in_flight (`int`):
            Requests that each server has at a time.
        timeout (`float`, *optional*, defaults to `3600`):
            Seconds that an answer may take.
        patience (`float`, *optional*, defaults to `900`):
            Seconds that the servers may be away. A 7B model takes minutes to load.

    Attributes:
        models (`dict[str, int]`): The names that the model is served under, and the tokens that it takes.

    Raises:
        ConnectionError: If a server does not answer. Without a first answer nothing is waited for.
        ValueError: If the servers serve different models, or a URL is none.
    """

    def __init__(self, urls: str | list[str], in_flight: int, timeout: float = 3600, patience: float = 900):
        self.urls = [with_path(url.rstrip("/")) for url in ([urls] if isinstance(urls, str) else urls)]
        self.in_flight, self.patience = in_flight, patience
        key = os.environ.get("VLLM_API_KEY", "none")
        clients = [openai.OpenAI(base_url=url, api_key=key, timeout=timeout) for url in self.urls]
        self.models = served(clients[0])
        for client in clients[1:]:
            if (other := served(client)) != self.models:
                raise ValueError(
                    f"{self.urls[0]} serves {self.models} and {str(client.base_url).rstrip('/')} serves {other}: names "
                    "with the tokens that they take. All servers of a run have to serve the same model alike."
                )
        self.free = queue.Queue()
        for client in clients * in_flight:
            self.free.put(client)

    def post(self, name: str, path: str, body: dict) -> dict:
        """
        Ask, and wait for the answer, which is JSON.

        Args:
            name (`str`):
                What the request is about, for error messages.
            path (`str`):
                From the host on: `/v1/chat/completions`, or `/classify`.
            body (`dict`):
                The request.

        Raises:
            RequestRefused: If the server answers with 4xx. Its words are in the message.
            ConnectionError: If no server answers for as long as `patience` says.
        """
        started = time.monotonic()
        while True:
            client = self.free.get()
            url = str(client.base_url).rstrip("/")
            try:
                answer = client.post(url.removesuffix("/v1") + path, body=body, cast_to=dict[str, object])
            except openai.APIError as error:
                answered = isinstance(error, openai.APIStatusError)
                if answered and error.status_code < 500 and error.status_code not in (408, 409, 429):
                    said = f"{url} answered {error.status_code}: {error.response.text[:500]}"
                    raise RequestRefused(f"{name}: {said}") from error
                if time.monotonic() - started > self.patience:
                    raise ConnectionError(
                        f"{name}: {' and '.join(self.urls)} gave no answer for {self.patience:.0f} seconds; at last: "
                        f"{error}. What was done before is kept: start the server again, and run the same command."
                    ) from error
                logger.warning(f"{name}: {url}: {error} It is asked again.")
            else:
                if not isinstance(answer, dict):
                    raise RequestRefused(f"{name}: {url} answered no JSON, but {str(answer)[:200]!r}. Is it vLLM?")
                return answer
            finally:
                self.free.put(client)
            time.sleep(PAUSE_SECONDS)

    @contextmanager
    def asking(self) -> Iterator[Callable[..., Future]]:
        """A function that starts a call in the background, as many at a time as the servers have room for."""
        with ThreadPoolExecutor(self.in_flight * len(self.urls)) as pool:
            yield pool.submit


def with_path(url: str) -> str:
    """
    A URL with the path `/v1`, where it has none.

    Raises:
        ValueError: For a URL that does not say `http` or `https`.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"`server_url: {url}` is no address of a server. Write it like http://localhost:8000/v1.")
    return url if parts.path else f"{url}/v1"


def served(client: openai.OpenAI) -> dict[str, int]:
    """
    The names that a server serves its model under, each with the number of tokens that it takes.

    Raises:
        ConnectionError: If it does not answer, or with an error.
        ValueError: If it says no number.
    """
    url = str(client.base_url).rstrip("/")
    try:
        limits = {model.id: model.to_dict().get("max_model_len") for model in client.models.list().data}
    except openai.APIStatusError as error:
        raise ConnectionError(f"{url} answered {error.status_code}: {error.response.text[:500]}") from error
    except openai.APIError as error:
        raise ConnectionError(f"{url} does not answer ({error}) Is `vllm serve` running there?") from error
    if None in limits.values():
        raise ValueError(f"{url} does not say how many tokens its model takes, as vLLM does. Is it another server?")
    return limits


def results(futures: list[Future], description: str = "") -> list:
    """
    The results of `futures`, in their order. The first failure ends the wait: what has not begun is not begun any more.
    With a `description`, a progress bar is shown of 100 or more.
    """
    with tqdm(total=len(futures), desc=description, disable=len(futures) < 100 or not description) as bar:
        for future in futures:
            future.add_done_callback(lambda _: bar.update())
        failed = [future for future in wait(futures, return_when=FIRST_EXCEPTION).done if future.exception()]
        for future in futures if failed else ():
            future.cancel()
        return [future.result() for future in failed or futures]


def as_url(image: Image.Image) -> str:
    """An image as data in a URL, without loss."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def as_video_part(url: str) -> dict:
    """A video in OpenAI's form, with a name by which vLLM's cache knows it."""
    return {"type": "video_url", "video_url": {"url": url}, "uuid": uuid.uuid4().hex}


def as_openai(messages: list[dict], videos: Sequence[dict] = ()) -> list[dict]:
    """
    Messages with URLs of images in their places, as [`fill`] puts them there, in OpenAI's form, and what
    [`as_video_part`] gives in those of the videos.

    Of several videos vLLM processes only those that its cache does not hold, and would give them the times of others.
    So they have other names in each request, and a single video keeps its own.
    """
    named = [as_video_part(part["video_url"]["url"]) for part in videos] if len(videos) > 1 else videos
    parts = iter(named)
    return [{**message, "content": [as_part(part, parts) for part in message["content"]]} for message in messages]


def as_part(part: dict, videos: Iterator[dict]) -> dict:
    """A part of a message in OpenAI's form. In the place of a video it is the next of `videos`."""
    if part["type"] == "image":
        return {"type": "image_url", "image_url": {"url": part["image"]}}
    return next(videos) if part["type"] == "video" else part
