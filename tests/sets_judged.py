"""Small LLaVA-Bench and MM-Vet sets in the layout of the real ones, and a local server that plays their judge."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock

from PIL import Image

from qllava.evaluate.judge import Judge

LLAVA_QUESTIONS = [  # id, image, text, category
    (0, "001.jpg", "What is this?", "conv"),
    (1, "001.jpg", "Describe this photo in detail.", "detail"),
    (2, "002.jpg", "Why is it funny?", "complex"),
    (3, "002.jpg", "Which colour is it?", "conv"),
]
CAPTIONS = {"001.jpg": "A red square.", "002.jpg": ["A blue square.", "It is not funny."]}
MMVET_QUESTIONS = [  # question, answer, capabilities
    ("What is x in the equation?", "-1<AND>-5", ["ocr", "math"]),
    ("What is the name?", "Ann<OR>Anna", ["ocr"]),
    ("Who painted it?", "Vermeer", ["know", "rec"]),
    ("What color is it?", "green", ["rec"]),
]


def write_lines(file: Path, rows: list[dict]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_llava_bench(root: Path) -> Path:
    folder = root / "llava-bench-in-the-wild"
    (folder / "images").mkdir(parents=True)
    for name, color in (("001.jpg", "red"), ("002.jpg", "blue")):
        Image.new("RGB", (40, 30), color).save(folder / "images" / name)
    asked = [dict(zip(("question_id", "image", "text", "category"), q, strict=True)) for q in LLAVA_QUESTIONS]
    write_lines(folder / "questions.jsonl", asked)
    contexts = [{"id": name[:3], "image": name, "caption": caption} for name, caption in CAPTIONS.items()]
    write_lines(folder / "context.jsonl", contexts)
    write_lines(
        folder / "answers_gpt4.jsonl",
        [
            {"question_id": number, "prompt": text, "answer_id": f"a{number}", "model_id": "gpt-4-0314",
             "metadata": {}, "text": f"Reference {number}."}
            for number, _, text, _ in LLAVA_QUESTIONS
        ],
    )  # fmt: skip
    return folder


def make_mmvet(root: Path) -> Path:
    folder = root / "mm-vet"
    (folder / "images").mkdir(parents=True)
    asked, truths = [], {}
    for number, (question, answer, capability) in enumerate(MMVET_QUESTIONS):
        image = f"v1_{number}.png"
        Image.new("RGB", (30, 40), "green").save(folder / "images" / image)
        asked.append({"question_id": number, "image": image, "text": question, "category": "default"})
        truths[f"v1_{number}"] = {
            "imagename": image, "question": question, "answer": answer, "imagesource": "none", "capability": capability,
        }  # fmt: skip
    write_lines(folder / "llava-mm-vet.jsonl", asked)
    (folder / "mm-vet.json").write_text(json.dumps(truths, indent=4))
    return folder


def usual(body: dict) -> str:
    """LLaVA-Bench's prompts come with a system message, and MM-Vet's without."""
    return "8 6\nThe first is better." if body["messages"][0]["role"] == "system" else "0.5"


@dataclass
class Served:
    """A judge's server, and what it was asked."""

    url: str = ""
    answer: Callable[[dict], str] = usual
    first: Iterator[tuple[int, str, dict]] = field(default_factory=lambda: iter(()))
    """Status, body and headers of the next responses, before usual ones."""
    bodies: list[dict] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    headers: list[dict] = field(default_factory=list)

    def judge(self, **values) -> Judge:
        return Judge(**{"url": self.url, "model": "small-judge", "pause": 0.0, "timeout": 10.0} | values)

    @property
    def prompts(self) -> list[str]:
        return [body["messages"][-1]["content"] for body in self.bodies]


@contextmanager
def judge_server() -> Iterator[Served]:
    """A local server that answers as an OpenAI-compatible one."""
    served = Served()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            served.bodies.append(body)
            served.paths.append(self.path)
            served.headers.append(dict(self.headers))
            choice = {"index": 0, "finish_reason": "stop"}
            status, text, headers = next(served.first, (200, None, {}))
            if text is None:
                message = {"role": "assistant", "content": served.answer(body)}
                text = json.dumps({"model": f"{body['model']}-0314", "choices": [choice | {"message": message}]})
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(text.encode()))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        with mock.patch.dict(os.environ, {"no_proxy": "127.0.0.1"}):  # it outranks NO_PROXY
            yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
