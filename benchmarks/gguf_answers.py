"""llama.cpp against transformers on one model: prompt tokens, greedy text, image features, answers to easy-VQA.

Two steps, for llama.cpp's Python package lives in an environment of its own (`pip install llama-cpp-python`, built from source):

    python benchmarks/gguf_answers.py expect runs/demo/merged work --count 400
    OTHER/bin/python benchmarks/gguf_answers.py compare work --outtype f16

The first writes the GGUF files and what transformers answers in float32; the second prints one line a comparison.
"""

from __future__ import annotations

import argparse
import base64
import ctypes
import json
from pathlib import Path

TEXTS = ("A red circle is", "USER: Which colors are there? ASSISTANT:", "the blue square")
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
PROMPT = "Answer the question using a single word or phrase."
NEW = 32  # tokens of greedy text


def expect(model: Path, work: Path, count: int) -> None:
    """GGUF files of every type, and transformers' side, into `work`."""
    import easy_vqa
    import numpy as np
    import torch
    from PIL import Image

    from qllava.api import load
    from qllava.artifact.convert.gguf import to_gguf
    from qllava.artifact.convert.gguf_file import OUTTYPES
    from qllava.data.collate import collate
    from qllava.data.sample import ask

    work.mkdir()
    for outtype in OUTTYPES:
        to_gguf(model, work / outtype, outtype)
    loaded = load(model, dtype="float32")
    llava, processing = loaded.model, loaded.processing
    tokenizer = processing.encoder.tokenizer

    def greedy(batch: dict, new: int) -> list[int]:
        out = llava.generate(**batch, max_new_tokens=new, do_sample=False)[0]
        return out[batch["input_ids"].shape[1] :].tolist()

    data = Path(easy_vqa.__file__).parent / "data" / "test"
    questions = json.loads((data / "questions.json").read_text())
    rows, pixels = [], None
    for question, answer, number in questions[:: len(questions) // count][:count]:
        file, text = data / "images" / f"{number}.png", f"{question}\n{PROMPT}"
        prompt = processing.prompt(ask(text, 1), [Image.open(file).convert("RGB")])
        pixels = prompt["pixel_values"] if pixels is None else pixels
        batch = collate([prompt], processing)
        batch.pop("labels")
        said = tokenizer.decode(greedy(batch, 12), skip_special_tokens=True).strip()
        rows.append(
            {"text": text, "image": str(file), "answer": answer, "said": said, "ids": batch["input_ids"][0].tolist()}
        )
    texts = []
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt").input_ids
        texts.append({"text": text, "ids": ids[0].tolist(), "out": greedy({"input_ids": ids}, NEW)})
    layer = llava.config.vision_feature_layer
    read = layer if layer >= 0 else llava.config.vision_config.num_hidden_layers + 1 + layer
    with torch.no_grad():
        for name, last in (("features", False), ("features_class_last", True)):
            np.save(work / f"{name}.npy", features(llava.model, pixels, read, last))
    image = processing.image_token_id
    (work / "expected.json").write_text(json.dumps({"name": model.name, "rows": rows, "texts": texts, "image": image}))
    right = sum(row["said"] == row["answer"] for row in rows)
    print(f"transformers, float32: {right} of {len(rows)} right")


def features(model: object, pixels: object, read: int, class_last: bool) -> object:
    """The image features [patches, hidden]; with the class token put last, what llama.cpp computes (its issue 25814)."""
    import torch

    tower = model.vision_tower
    patches = tower.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
    first = tower.embeddings.class_embedding.view(1, 1, -1)
    hidden = torch.cat([patches, first] if class_last else [first, patches], 1)
    hidden = tower.pre_layrnorm(hidden + tower.embeddings.position_embedding.weight)
    for layer in tower.encoder.layers[:read]:
        out = layer(hidden, attention_mask=None)
        hidden = out[0] if isinstance(out, tuple) else out
    return model.multi_modal_projector(hidden[:, 1:])[0].numpy()


def compare(work: Path, outtype: str) -> None:
    """llama.cpp's side, one line a comparison."""
    import llama_cpp
    import numpy as np
    from llama_cpp import mtmd_cpp as mtmd
    from llama_cpp.llama_chat_format import Llava15ChatHandler

    class Vicuna(Llava15ChatHandler):
        """The handler with LLaVA-1.5's own prompt; the package's has line breaks where that has spaces."""

        DEFAULT_SYSTEM_MESSAGE = SYSTEM
        CHAT_FORMAT = (
            "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% else %}{{ ' USER: ' }}"
            "{% for c in m.content if c.type == 'image_url' %}{{ c.image_url.url + '\\n' }}{% endfor %}"
            "{% for c in m.content if c.type == 'text' %}{{ c.text }}{% endfor %}{% endif %}{% endfor %}{{ ' ASSISTANT:' }}"
        )

    expected = json.loads((work / "expected.json").read_text())
    folder, name, rows = work / outtype, expected["name"], expected["rows"]
    handler = Vicuna(clip_model_path=str(folder / f"mmproj-{name}-f16.gguf"), verbose=False)
    llama = llama_cpp.Llama(
        str(folder / f"{name}-{outtype}.gguf"), n_ctx=2048, n_threads=1, verbose=False, chat_handler=handler
    )
    print(f"llama-cpp-python {llama_cpp.__version__}, {outtype}")
    for text in expected["texts"]:
        ids, out = llama.tokenize(text["text"].encode(), add_bos=True, special=True), []
        llama.reset()
        for token in llama.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0):
            out.append(token)
            if len(out) == len(text["out"]) or token == llama.token_eos():
                break
        print(
            f"  {text['text']!r}: ids equal {ids == text['ids']}, {len(out)} greedy tokens equal {out == text['out']}"
        )
    handler._init_mtmd_context(llama)
    bitmap = handler._create_bitmap_from_bytes(Path(rows[0]["image"]).read_bytes())
    prompt = f"{SYSTEM} USER: {mtmd.mtmd_default_marker().decode()}\n{rows[0]['text']} ASSISTANT:".encode()
    given = mtmd.mtmd_input_text()
    given.text, given.text_len, given.add_special, given.parse_special = prompt, len(prompt), True, True
    chunks, ids = mtmd.mtmd_input_chunks_init(), []
    mtmd.mtmd_tokenize(handler.mtmd_ctx, chunks, ctypes.byref(given), (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap), 1)
    for i in range(mtmd.mtmd_input_chunks_size(chunks)):
        chunk = mtmd.mtmd_input_chunks_get(chunks, i)
        if mtmd.mtmd_input_chunk_get_type(chunk) == mtmd.MTMD_INPUT_CHUNK_TYPE_TEXT:
            size = ctypes.c_size_t()
            found = mtmd.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(size))
            ids += [found[j] for j in range(size.value)]
            continue
        ids += [expected["image"]] * mtmd.mtmd_input_chunk_get_n_tokens(chunk)
        mtmd.mtmd_encode_chunk(handler.mtmd_ctx, chunk)
        for file in ("features", "features_class_last"):
            ours = np.load(work / f"{file}.npy")
            theirs = np.ctypeslib.as_array(mtmd.mtmd_get_output_embd(handler.mtmd_ctx), shape=(ours.size,))
            error = np.abs(theirs.reshape(ours.shape) - ours).max()
            print(f"  image against transformers' {file}: largest difference {error:.4f} of {np.abs(ours).max():.1f}")
    print(f"  prompt with an image: ids equal {ids == rows[0]['ids']} ({len(ids)})")
    same = right = 0
    for row in rows:
        url = "data:image/png;base64," + base64.b64encode(Path(row["image"]).read_bytes()).decode()
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": row["text"]}]
        answer = llama.create_chat_completion(
            [{"role": "user", "content": content}], temperature=0.0, top_k=1, repeat_penalty=1.0, max_tokens=12
        )
        said = answer["choices"][0]["message"]["content"].strip()
        same, right = same + (said == row["said"]), right + (said == row["answer"])
    print(f"  answers: {same} of {len(rows)} equal to transformers', {right} right")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(required=True)
    step = steps.add_parser("expect")
    step.add_argument("model", type=Path)
    step.add_argument("work", type=Path)
    step.add_argument("--count", type=int, default=400)
    step.set_defaults(run=expect)
    step = steps.add_parser("compare")
    step.add_argument("work", type=Path)
    step.add_argument("--outtype", default="f16")
    step.set_defaults(run=compare)
    values = vars(parser.parse_args())
    values.pop("run")(**values)
