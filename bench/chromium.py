"""Debian's Chromium without a window, driven through the pipe of its DevTools protocol: no package is needed."""

import base64
import json
import os
import subprocess
import time
from pathlib import Path


OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"]
OPTIONS += ["--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-dev-shm-usage"]
KEYS = {"Enter": 13, "Escape": 27, "ArrowDown": 40, "ArrowUp": 38, "Tab": 9}


class Chromium:
    """
    One page of a browser that ends with the `with` block.

    Args:
        profile (`Path`):
            An empty folder for what the browser keeps.

    Attributes:
        said (`list[str]`):
            Errors, warnings and dialogs of the page since it was opened.
    """

    def __init__(self, profile: Path):
        to_read, self.writes = os.pipe()
        self.reads, to_write = os.pipe()
        # The browser reads commands from descriptor 3 and answers in 4.
        shell = ["bash", "-c", f'exec "$@" 3<&{to_read} 4>&{to_write}', "bash", "chromium"]
        command = [*shell, *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(command, pass_fds=(to_read, to_write), stderr=subprocess.DEVNULL)
        os.close(to_read)
        os.close(to_write)
        self.said: list[str] = []
        self.seen: set[str] = set()
        self.buffer, self.number, self.session = b"", 0, {}
        (target,) = [t for t in self("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        found = self("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self.session = {"sessionId": found["sessionId"]}
        for domain in ("Page", "Runtime", "Log"):
            self(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(20)
        os.close(self.reads)
        os.close(self.writes)

    def __call__(self, method: str, **parameters) -> dict:
        """Calls a method of the protocol and waits for what it returns."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters} | self.session
        os.write(self.writes, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.next_message()
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise ValueError(f"Chromium refused {method}: {answer['error']['message']}")
                return answer["result"]

    def next_message(self) -> dict:
        while b"\0" not in self.buffer:
            read = os.read(self.reads, 1 << 20)
            if not read:
                raise ValueError("Chromium ended. Start it by hand, with --headless --no-sandbox, to see why.")
            self.buffer += read
        text, self.buffer = self.buffer.split(b"\0", 1)
        message = json.loads(text)
        self.note(message.get("method", ""), message.get("params", {}))
        return message

    def note(self, method: str, event: dict) -> None:
        self.seen.add(method)
        if method == "Runtime.exceptionThrown":
            self.said.append(event["exceptionDetails"]["exception"].get("description", "an exception"))
        elif method == "Runtime.consoleAPICalled" and event["type"] in ("error", "warning", "assert"):
            self.said.append(str(event["args"]))
        elif method == "Log.entryAdded" and event["entry"]["level"] in ("error", "warning"):
            self.said.append(event["entry"]["text"])
        elif method == "Page.javascriptDialogOpening":
            self.said.append(f"dialog: {event['message']}")
            close = {"id": 0, "method": "Page.handleJavaScriptDialog", "params": {"accept": False}} | self.session
            os.write(self.writes, json.dumps(close).encode() + b"\0")  # else the page waits for it

    def open(self, page: Path, width: int = 1440, height: int = 900, dark: bool = False) -> None:
        """Opens a file in a window of this size, a telephone's below 700 pixels, and waits until it is loaded."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 700)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", features=[scheme])
        self.said.clear()
        self.seen.clear()
        self("Page.navigate", url=page.resolve().as_uri())
        while "Page.loadEventFired" not in self.seen:
            self.next_message()

    def js(self, expression: str):
        """The value of an expression in the page; a promise is waited for."""
        found = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise ValueError(f"{expression}: {found['exceptionDetails']['exception'].get('description')}")
        return found["result"].get("value")

    def key(self, name: str) -> None:
        """Presses and releases a key."""
        text = {"Enter": "\r"}.get(name, name if len(name) == 1 else "")
        code = KEYS.get(name, ord(name[0].upper()))
        pressed = {"key": name, "windowsVirtualKeyCode": code, "text": text}
        self("Input.dispatchKeyEvent", type="keyDown", **pressed)
        self("Input.dispatchKeyEvent", type="keyUp", **pressed | {"text": ""})

    def click(self, selector: str) -> None:
        """Clicks the middle of an element with the mouse."""
        middle = self.js(
            f"(b => [b.x + b.width / 2, b.y + b.height / 2])(document.querySelector({json.dumps(selector)})"
            ".getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            place = dict(zip("xy", middle, strict=True))
            self("Input.dispatchMouseEvent", type=kind, **place, button="left", clickCount=1)

    def screenshot(self) -> bytes:
        """What the window shows, as PNG."""
        time.sleep(0.3)  # pictures are decoded after they are drawn
        return base64.b64decode(self("Page.captureScreenshot", format="png")["data"])
