"""The reasoning model as a source: a tiny Qwen2.5-VL that was taught three answers, asked through the real code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rali_core.cli import main
from rali_core.describe.qinsight import PROMPT, QInsightDescriber, read_answer
from rali_core.describe.records import read_descriptions
from rali_core.describe.request import DescriptionError, DescriptionRequest

THOUGHTS = {"The image is sharp.": "4.00", "Strong blur hides it.": "2.00", "There is some noise.": "3.00"}
ANSWERS = [f'<think>{text}</think><answer>{{"rating": {rating}}}</answer>' for text, rating in THOUGHTS.items()]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]  # fmt: skip
TEMPLATE = """\
{% for message in messages %}<|im_start|>{{ message['role'] }}
{% for part in message['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>\
{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def save_processor(folder: Path, *, template: str | None = TEMPLATE) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Qwen2_5_VLProcessor, Qwen2Tokenizer, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([PROMPT, *ANSWERS], trainer)
    learnt = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learnt["vocab"], merges=[tuple(pair) for pair in learnt["merges"]],
        eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token="<|endoftext|>", extra_special_tokens=SPECIAL,
    )  # fmt: skip
    sizes = {"patch_size": 14, "merge_size": 2, "size": {"shortest_edge": 56 * 56, "longest_edge": 56 * 56}}
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes), tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**sizes), chat_template=template,
    )  # fmt: skip
    processor.save_pretrained(folder)


def save_model(folder: Path) -> None:
    from transformers import AutoTokenizer, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 1024,
            "bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32,
            "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Qwen2_5_VLForConditionalGeneration(config).eval().save_pretrained(folder)


def teach(folder: Path, *, steps: int = 60) -> None:
    """A few steps in which the random model learns to give each of the three answers equally often."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    model, tokenizer = AutoModelForImageTextToText.from_pretrained(folder).train(), processor.tokenizer
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}
    text = processor.apply_chat_template([question], add_generation_prompt=True, tokenize=False)
    inputs = processor(text=[text], images=[Image.new("RGB", (64, 64), "grey")], return_tensors="pt")
    asked = inputs["input_ids"].shape[1]
    answers = [tokenizer(text + "<|im_end|>", return_tensors="pt")["input_ids"] for text in ANSWERS]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        for answer in answers:
            ids = torch.cat([inputs["input_ids"], answer], dim=1)
            labels = ids.clone()
            labels[:, :asked] = -100
            parts = {name: value for name, value in inputs.items() if name.startswith(("pixel", "image"))}
            kinds = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(answer)], dim=1)
            model(input_ids=ids, labels=labels, mm_token_type_ids=kinds, **parts).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(folder)


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("random-qwen")
    save_processor(folder)
    save_model(folder)
    return folder


@pytest.fixture(scope="module")
def taught_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("taught-qwen")
    save_processor(folder)
    save_model(folder)
    teach(folder)
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (70, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_seeds_give_different_readable_answers_and_the_same_seed_the_same(taught_model: Path) -> None:
    describer = QInsightDescriber(taught_model, device="cpu", dtype="float32", max_new_tokens=80)
    request = DescriptionRequest("white", Image.new("RGB", (80, 60), "white"))
    state = torch.random.get_rng_state()
    found = [describer.describe(request, seed=seed) for seed in range(6)]
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator is left as it was"
    assert describer.describe(request, seed=3) == found[3]
    assert len({item.text for item in found}) >= 2
    for item in found:  # now and then it mixes two of its answers
        assert set(item.text.split()) <= set(" ".join(THOUGHTS).split())
        assert item.score in {(float(rating) - 1) / 4 for rating in THOUGHTS.values()}


def test_an_interrupted_run_resumes_to_the_file_of_a_whole_one(
    taught_model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(output: str) -> list[str]:
        return ["describe", str(images), "-o", str(tmp_path / output), "--source", "qinsight", "--model",
                str(taught_model), "--seeds", "2", "--device", "cpu", "--dtype", "float32", "--max-new-tokens", "80"]  # fmt: skip

    assert main(command("whole.jsonl")) == 0
    records = read_descriptions(tmp_path / "whole.jsonl", root=images)
    assert [(record.image, record.seed) for record in records] == [(f"{n}.png", s) for n in range(2) for s in range(2)]

    describe, calls = QInsightDescriber.describe, []

    def stop_at_the_fourth(self: QInsightDescriber, *arguments: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return describe(self, *arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(QInsightDescriber, "describe", stop_at_the_fourth)
        assert main(command("parts.jsonl")) == 130
    assert len(read_descriptions(tmp_path / "parts.jsonl")) == 3
    assert main(command("parts.jsonl")) == 0
    assert (tmp_path / "parts.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_an_untrained_model_fails_with_its_output_in_the_error(random_model: Path) -> None:
    describer = QInsightDescriber(random_model, device="cpu", dtype="bfloat16", max_new_tokens=12, attempts=2)
    with pytest.raises(
        DescriptionError, match=r"no readable answer in 2 attempt\(s\): expected one closed think block, got 0"
    ) as caught:
        describer.describe(DescriptionRequest("black", Image.new("RGB", (60, 60))), seed=0)
    assert len(caught.value.outputs) == 2
    assert len(set(caught.value.outputs)) == 2


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    save_processor(tmp_path, template=None)
    with pytest.raises(ValueError, match="has no chat template"):
        QInsightDescriber(tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("output", "text", "score"),
    [('<think>Sharp.</think><answer>{"rating": 4.00}</answer>', "Sharp.", 0.75),
     ('Well: <THINK> Sharp,\n\n but  noisy. </THINK>\n<Answer>\n{"rating": "1"}\n</Answer> Done.', "Sharp, but noisy.", 0.0),
     ("<think>Blurred.</think><answer>5</answer>", "Blurred.", 1.0),
     ('<think>Fair.</think><answer>```json\n{"rating": 3}\n```</answer>', "Fair.", 0.5)],
)  # fmt: skip
def test_an_answer_is_read(output: str, text: str, score: float) -> None:
    description = read_answer(output)
    assert (description.text, description.score) == (text, pytest.approx(score))


@pytest.mark.parametrize(
    ("output", "message"),
    [("Sharp. 4.0", "one closed think block, got 0"), ("<think>Sharp.<answer>4</answer>", "one closed think block, got 0"),
     ("<think>a</think><think>b</think><answer>4</answer>", "one closed think block, got 2"),
     ("<think> ... </think><answer>4</answer>", "the think block holds no words"),
     ("<think>Sharp.</think>", "one closed answer block, got 0"),
     ("<think>Sharp.</think><answer>good</answer>", "one rating in the answer, got 'good'"),
     ("<think>Sharp.</think><answer>4 of 5</answer>", "one rating in the answer, got '4 of 5'"),
     ('<think>Sharp.</think><answer>{"rating": 85}</answer>', "a rating from 1 to 5, got 85"),
     ('<think>Sharp.</think><answer>{"rating": NaN}</answer>', "a rating from 1 to 5, got nan")],
)  # fmt: skip
def test_an_answer_that_cannot_be_read_is_refused(output: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_answer(output)
