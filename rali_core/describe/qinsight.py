"""The `qinsight` source: a reasoning model of the kind Qwen2.5-VL describes the image.

After W. Li et al., "Q-Insight: Understanding Image Quality via Visual Reinforcement Learning", NeurIPS 2025: the model
reasons about the quality between think tags and then gives a rating from 1 to 5 as JSON between answer tags. RALI
trains on the text between the think tags. The question is our own wording, and can be replaced by the exact words that
a model was trained with. The weights are the user's: any folder or hub name that transformers loads as an
image-text-to-text model with a processor and a chat template, such as the Q-Insight release.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch

from .request import Description, DescriptionError, DescriptionRequest

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
WORST, BEST = 1.0, 5.0
"""Ends of the rating scale."""

PROMPT = """\
How good is the quality of this image? Look at its sharpness, noise, compression, exposure, contrast and colours, and \
at whatever else disturbs or pleases, and reason about it step by step. Then rate the quality with a number from 1 \
(very bad) to 5 (excellent) that has two decimals.
Put your reasoning between <think> and </think>. After it, put only the rating, as JSON with the single key "rating", \
between <answer> and </answer>, for example: <think>...</think><answer>{"rating": 3.47}</answer>"""

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


class QInsightDescriber:
    """Asks a reasoning model; each seed samples another answer.

    An unparsable answer is sampled again, with a further random state of the same seed.

    Args:
        model: Folder of the model, or its name on the hub.
        device: Where it runs; by default a GPU where there is one.
        dtype: Arithmetic: `"bfloat16"`, `"float16"` or `"float32"`.
        max_new_tokens: Longest answer in tokens.
        attempts: Attempts before an unreadable answer counts as a failure.
        temperature, top_p: Of the sampling; a higher temperature gives more different texts.
        prompt: The question; by default `PROMPT`. A model may want the words that it was trained with.

    Raises:
        ModuleNotFoundError: transformers is not installed.
        ValueError: An option is out of range, or the model has no chat template.
        OSError: There is no such model.
    """

    def __init__(
        self, model: str | Path, *, device: str | None = None, dtype: str = "bfloat16", max_new_tokens: int = 1024,
        attempts: int = 3, temperature: float = 1.0, top_p: float = 0.95, prompt: str | None = None,
    ) -> None:  # fmt: skip
        for good, wanted, got in (
            (dtype in DTYPES, f"dtype must be one of {', '.join(DTYPES)}", dtype),
            (min(attempts, max_new_tokens) >= 1, "attempts and max_new_tokens must be at least 1",
             (attempts, max_new_tokens)),
            (temperature > 0.0 and 0.0 < top_p <= 1.0, "temperature must be above 0 and top_p in (0, 1]",
             (temperature, top_p)),
            (prompt is None or prompt.strip(), "prompt must hold words", prompt),
        ):  # fmt: skip
            if not good:
                raise ValueError(f"{wanted}, got {got!r}")
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.prompt = PROMPT if prompt is None else prompt
        self.attempts = attempts
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        words = hashlib.sha256(self.prompt.encode()).hexdigest()[:8]
        self.source = f"qinsight {Path(model).name}, prompt {words}"
        processor: Any = AutoProcessor  # transformers gives this call no types
        self._processor: Any = processor.from_pretrained(str(model))
        if getattr(self._processor, "chat_template", None) is None:
            raise ValueError(f"{model} has no chat template, so there is no way to ask it; expected an instruct model")
        loaded: Any = AutoModelForImageTextToText.from_pretrained(str(model), dtype=DTYPES[dtype])
        self._model = loaded.to(self.device).eval()
        self._sampling: dict[str, Any] = {
            "do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0, "max_new_tokens": max_new_tokens,
        }  # fmt: skip

    def describe(self, request: DescriptionRequest, *, seed: int = 0) -> Description:
        """See `Describer.describe`; the score is the model's own, and that of the request is not shown to it."""
        question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": self.prompt}]}
        text = self._processor.apply_chat_template([question], add_generation_prompt=True, tokenize=False)
        inputs = self._processor(text=[text], images=[request.open()], return_tensors="pt").to(self.device)
        outputs: list[str] = []
        reasons: dict[str, None] = {}
        for attempt in range(self.attempts):
            outputs.append(self._generate(inputs, seed, attempt))
            try:
                return read_answer(outputs[-1])
            except ValueError as error:
                reasons[str(error)] = None  # each once, in order
        message = f"no readable answer in {self.attempts} attempt(s): {'; '.join(reasons)}"
        raise DescriptionError(message, outputs=tuple(outputs))

    @torch.inference_mode()
    def _generate(self, inputs: Any, seed: int, attempt: int) -> str:
        # generate() draws from the global state: it is set for this call only, and restored afterwards.
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(int.from_bytes(hashlib.sha256(f"{seed},{attempt}".encode()).digest()[:7], "big"))
            tokens = self._model.generate(**inputs, **self._sampling)
        answer = tokens[0, inputs["input_ids"].shape[1] :]
        # Special tokens are left out, but the tags may be among them in some models.
        text: str = self._processor.tokenizer.decode(answer, skip_special_tokens=False)
        for token in self._processor.tokenizer.all_special_tokens:
            if token.strip("</>").lower() not in ("think", "answer"):
                text = text.replace(token, "")
        return text


def read_answer(output: str) -> Description:
    """The text between the think tags of a model's output, with white space collapsed, and its rating in [0, 1].

    Raises:
        ValueError: There is no closed think block with words in it, no closed answer block, more than one of either, or
            no single rating from 1 to 5 in the answer.
    """
    blocks = {}
    for name in ("think", "answer"):
        found = re.findall(rf"<{name}>(.*?)</{name}>", output, re.DOTALL | re.IGNORECASE)
        if len(found) != 1:
            raise ValueError(f"expected one closed {name} block, got {len(found)}")
        blocks[name] = " ".join(found[0].split())
        if name == "think" and not any(character.isalpha() for character in blocks[name]):
            raise ValueError("the think block holds no words")
    answer = blocks["answer"]
    try:
        rating = float(json.loads(answer[answer.index("{") : answer.rindex("}") + 1])["rating"])
    except (ValueError, KeyError, TypeError):  # not JSON as requested: then its only number
        numbers = NUMBER.findall(answer)
        if len(numbers) != 1:
            raise ValueError(f"expected one rating in the answer, got {answer[:80]!r}") from None
        rating = float(numbers[0])
    if not WORST <= rating <= BEST:  # also NaN, which JSON as Python reads it can hold
        raise ValueError(f"expected a rating from {WORST:g} to {BEST:g}, got {rating:g}")
    return Description(blocks["think"], (rating - WORST) / (BEST - WORST))
