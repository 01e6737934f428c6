"""The snippets of the official model page and of the Hub's README run here with only their import lines changed.

Each ends in a comparison: with transformers on the same folder (ids, pixels to the last bit, sentences), with numbers
worked out by hand, or with the same thing asked for in another way. Where a snippet says "Qwen/Qwen2-VL-7B-Instruct"
it says "tiny" here, and its addresses are those of files made below.
"""

import base64
import inspect
import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import transformers
from PIL import Image, ImageDraw
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor as OfficialTorchvision

import qwen2vl_mini
from qwen2vl_io import options as known_options
from qwen2vl_io import urls
from qwen2vl_mini import (
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLImageProcessorFast,
    Qwen2VLModel,
    Qwen2VLTextConfig,
    Qwen2VLVisionConfig,
)
from qwen2vl_mini import Qwen2VLProcessor as AutoProcessor
from tests.official import load_official, official_rope_index, official_twin, twins
from tests.small_models import (
    SHAPES,
    image,
    make_inputs,
    one_row,
    real_tokens,
    relative_difference,
    small_config,
    small_model,
    video,
)

TINY = Path(qwen2vl_mini.__file__).parent / "checkpoints" / "tiny"
TEMPLATE_OPTIONS = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
SAME = 1e-5  # largest difference relative to the largest number, float32
NEW = 10  # tokens of an answer that are compared

# --- files, models, and the official side -----------------------------------------------------------------------------

CLIP_SECONDS, CLIP_FPS = 3, 8
CLIP_FRAMES = CLIP_SECONDS * CLIP_FPS


def picture(width: int, height: int, seed: int) -> Image.Image:
    """A few coloured shapes on grey noise."""
    rng = np.random.default_rng(seed)
    drawn = Image.fromarray(rng.integers(170, 200, (height, width, 3), dtype=np.uint8))
    draw = ImageDraw.Draw(drawn)
    for colour in ((220, 40, 40), (50, 80, 220), (40, 170, 60))[: 1 + seed % 3]:
        x, y = rng.integers(0, width - 30), rng.integers(0, height - 30)
        draw.ellipse((x, y, x + 28, y + 28), fill=colour)
    return drawn


def clip_frames() -> list[np.ndarray]:
    """A red square that moves to the right: (84, 112, 3) each."""
    frames = []
    for i in range(CLIP_FRAMES):
        frame = np.full((84, 112, 3), 245, np.uint8)
        frame[30:54, 2 + 3 * i : 26 + 3 * i] = (220, 40, 40)
        frames.append(frame)
    return frames


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    """image1.png, image2.jpg, image3.png, image4.jpg, frame1.jpg … frame4.jpg, video.mp4, animation.gif."""
    folder = tmp_path_factory.mktemp("media")
    for number, (width, height) in enumerate(((140, 112), (100, 90), (84, 168), (64, 48)), start=1):
        drawn = picture(width, height, number)
        drawn.save(folder / f"image{number}.{'png' if number % 2 else 'jpg'}")
        picture(112, 84, 10 + number).save(folder / f"frame{number}.jpg", quality=95)
    frames = clip_frames()
    with av.open(str(folder / "video.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=CLIP_FPS, options={"qscale": "2"})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    stills = [Image.fromarray(frame) for frame in frames[::4]]
    stills[0].save(folder / "animation.gif", save_all=True, append_images=stills[1:], duration=500, loop=0)
    return folder


def decoded(path: Path) -> list[np.ndarray]:
    """All frames of a video file, by PyAV alone."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def clip_tensor(frames: list) -> torch.Tensor:
    """Frames → (T, 3, height, width), what the official processor takes."""
    return torch.from_numpy(np.stack([np.array(frame) for frame in frames])).movedim(-1, 1)


@pytest.fixture(scope="module")
def model() -> Qwen2VLForConditionalGeneration:
    return Qwen2VLForConditionalGeneration.from_pretrained("tiny", torch_dtype=torch.float32, device_map="auto")


@pytest.fixture(scope="module")
def processor() -> AutoProcessor:
    return AutoProcessor.from_pretrained("tiny")


@pytest.fixture(scope="module")
def official(model):
    return load_official(TINY).to(model.device)


@pytest.fixture(scope="module")
def official_processor():
    official = transformers.AutoProcessor.from_pretrained(TINY)
    official.image_processor = transformers.AutoImageProcessor.from_pretrained(TINY, backend="pil")
    official.tokenizer.padding_side = "left"
    return official


@pytest.fixture
def same_as_official(model, processor, official, official_processor):
    """A function that compares inputs and the answers to them with the official ones; returns the sentences."""

    def compare(inputs, conversations: list, pictures=None, clips=None, new: int = NEW, **template) -> list[str]:
        texts = official_processor.apply_chat_template(conversations, add_generation_prompt=True, **template)
        expected = official_processor(text=texts, images=pictures, videos=clips, padding=True, return_tensors="pt")
        for name in expected.keys() - {"mm_token_type_ids"}:
            assert torch.equal(inputs[name].cpu(), expected[name]), name
        assert inputs.keys() - {"mm_token_type_ids"} == expected.keys() - {"mm_token_type_ids"}
        inputs, expected = inputs.to(model.device), expected.to(model.device)
        with torch.no_grad():
            found, reference = model(**inputs).logits, official(**expected).logits
        assert relative_difference(real_tokens(found, inputs), real_tokens(reference, inputs)) < SAME
        output_ids = model.generate(**inputs, max_new_tokens=new)
        banned = list(range(model.config.vision_start_token_id, model.config.video_token_id + 1))
        reference = official.generate(**expected, max_new_tokens=new, suppress_tokens=banned)
        assert torch.equal(output_ids, reference)
        generated_ids = [output_ids[len(ids) :] for ids, output_ids in zip(inputs.input_ids, output_ids)]
        sentences = processor.batch_decode(generated_ids, skip_special_tokens=True, clean_up_tokenization_spaces=True)
        assert sentences == official_processor.batch_decode(generated_ids, skip_special_tokens=True)
        assert all(sentences)
        return sentences

    return compare


def ask(*content) -> list[dict]:
    return [{"role": "user", "content": [{"type": "text", "text": c} if isinstance(c, str) else c for c in content]}]


# --- the model page: single media -------------------------------------------------------------------------------------


def test_image_snippet(model, processor, media, same_as_official):
    conversation = [
        {
            "role": "user",
            "content": [
                {"type": "image", "url": str(media / "image1.png")},
                {"type": "text", "text": "Describe this image."},
            ],
        }
    ]
    inputs = processor.apply_chat_template(
        conversation, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(model.device)

    output_ids = model.generate(**inputs, max_new_tokens=128)
    generated_ids = [output_ids[len(input_ids) :] for input_ids, output_ids in zip(inputs.input_ids, output_ids)]
    output_text = processor.batch_decode(generated_ids, skip_special_tokens=True, clean_up_tokenization_spaces=True)

    assert inputs.image_grid_thw.tolist() == [[1, 8, 10]]  # 140×112 pixels: 20 tokens, and all of them in the ids
    assert (inputs.input_ids == model.config.image_token_id).sum() == 20
    assert output_text == same_as_official(inputs, [conversation], [Image.open(media / "image1.png")], new=128)


@pytest.fixture
def site(media, monkeypatch):
    """The address of a local server of the same files."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    monkeypatch.setattr(urls, "ALLOW_PRIVATE", True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(media)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def sources(folder: Path, site: str, name: str) -> dict:
    """All the ways to name one file."""
    content, path = (folder / name).read_bytes(), folder / name
    kind = {"png": "image/png", "jpg": "image/jpeg", "mp4": "video/mp4", "gif": "image/gif"}[name[-3:]]
    return {
        "path": str(path),
        "Path": path,
        "file": f"file://{path}",
        "http": f"{site}/{name}",
        "data": f"data:{kind};base64,{base64.b64encode(content).decode()}",
        "bytes": content,
    }


@pytest.mark.parametrize("name", ("image1.png", "image2.jpg"))
def test_an_image_from_anywhere(processor, media, site, same_as_official, name):
    """Whatever names it, under whatever key: the same bits."""
    opened = Image.open(media / name).convert("RGB")
    pixels = np.array(opened)
    given = sources(media, site, name) | {
        "PIL": opened,
        "numpy": pixels,
        "tensor": torch.from_numpy(pixels).movedim(-1, 0),
        "fractions": torch.from_numpy(pixels).movedim(-1, 0) / 255,
    }
    expected = processor.apply_chat_template(ask({"type": "image", "image": opened}, "Hi"), **TEMPLATE_OPTIONS)
    same_as_official(expected, [ask({"type": "image"}, "Hi")], [opened])
    for how, source in given.items():
        keys = ["image"] + ["url", "path"] * isinstance(source, str)
        items = [{"type": "image", key: source} for key in keys] + [{"image": source}]
        if isinstance(source, str):
            items.append({"type": "image_url", "image_url": {"url": source}})
        if how == "data":
            items.append({"type": "image", "base64": source.partition(",")[2]})
        for item in items:
            inputs = processor.apply_chat_template(ask(item, "Hi"), **TEMPLATE_OPTIONS)
            for tensor in expected:
                assert torch.equal(inputs[tensor], expected[tensor]), (how, item.keys(), tensor)


def test_video_snippet(model, processor, media, same_as_official):
    conversation = [
        {
            "role": "user",
            "content": [
                {"type": "video", "path": str(media / "video.mp4")},
                {"type": "text", "text": "What happened in the video?"},
            ],
        }
    ]
    inputs = processor.apply_chat_template(
        conversation,
        video_fps=1,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device)

    output_ids = model.generate(**inputs, max_new_tokens=128)
    generated_ids = [output_ids[len(input_ids) :] for input_ids, output_ids in zip(inputs.input_ids, output_ids)]
    output_text = processor.batch_decode(generated_ids, skip_special_tokens=True, clean_up_tokenization_spaces=True)

    # 3 seconds at 1 frame a second would be 3 frames; at least 4 are taken, spread over the 24 there are
    clip = clip_tensor([decoded(media / "video.mp4")[i] for i in (0, 8, 15, 23)])
    assert inputs.video_grid_thw.tolist() == [[2, 6, 8]]
    assert output_text == same_as_official(inputs, [conversation], clips=[clip], new=128)


@pytest.mark.parametrize("options", ({"video_fps": 2}, {"fps": 2.0}, {"nframes": 6}, {"num_frames": 6}, {}))
def test_the_names_of_the_frame_rate(processor, media, options):
    """3 seconds, 2 frames a second (the default): 6 frames, however it is said, in the call or in the item."""
    wanted = clip_tensor([decoded(media / "video.mp4")[i] for i in (0, 5, 9, 14, 18, 23)])
    expected = processor.image_processor.preprocess(videos=[wanted])
    item = {"type": "video", "video": str(media / "video.mp4")}
    for inputs in (
        processor.apply_chat_template(ask(item, "Hi"), **options, **TEMPLATE_OPTIONS),
        processor.apply_chat_template(ask(item | options, "Hi"), **TEMPLATE_OPTIONS),
        processor(text=processor.apply_chat_template(ask(item, "Hi")), videos=item["video"], **options),
    ):
        assert inputs.video_grid_thw.tolist() == [[3, 6, 8]]
        assert torch.equal(inputs.pixel_values_videos, expected.pixel_values_videos)


@pytest.mark.parametrize("name", ("video.mp4", "animation.gif"))
def test_a_clip_from_anywhere(processor, media, site, name):
    frames = decoded(media / name)
    # GIF: 6 frames of half a second, all of them taken
    wanted = [frames[i] for i in (0, 5, 9, 14, 18, 23)] if name == "video.mp4" else clip_frames()[::4]
    expected = processor.image_processor.preprocess(videos=clip_tensor(wanted))
    for how, source in sources(media, site, name).items():
        for key in ["video"] + ["url", "path", "video_url"] * isinstance(source, str):
            inputs = processor.apply_chat_template(ask({"type": "video", key: source}, "Hi"), **TEMPLATE_OPTIONS)
            assert torch.equal(inputs.video_grid_thw, expected.video_grid_thw), (how, key)
            assert torch.equal(inputs.pixel_values_videos, expected.pixel_values_videos), (how, key)


# --- the model page: a batch of mixed media ---------------------------------------------------------------------------


def test_batch_snippet(model, processor, media, same_as_official):
    conversation1 = [
        {
            "role": "user",
            "content": [
                {"type": "image", "path": str(media / "image1.png")},
                {"type": "text", "text": "Describe this image."},
            ],
        }
    ]
    conversation2 = [
        {
            "role": "user",
            "content": [
                {"type": "image", "path": str(media / "image2.jpg")},
                {"type": "image", "path": str(media / "image3.png")},
                {"type": "text", "text": "What is written in the pictures?"},
            ],
        }
    ]
    conversation3 = [{"role": "user", "content": "who are you?"}]
    conversation4 = [
        {
            "role": "user",
            "content": [
                {"type": "image", "path": str(media / "image3.png")},
                {"type": "image", "path": str(media / "image4.jpg")},
                {"type": "video", "path": str(media / "video.mp4")},
                {"type": "text", "text": "What are the common elements in these medias?"},
            ],
        }
    ]
    conversations = [conversation1, conversation2, conversation3, conversation4]
    inputs = processor.apply_chat_template(
        conversations,
        video_fps=1,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device)
    output_ids = model.generate(**inputs, max_new_tokens=NEW)
    generated_ids = [output_ids[len(input_ids) :] for input_ids, output_ids in zip(inputs.input_ids, output_ids)]
    output_text = processor.batch_decode(generated_ids, skip_special_tokens=True, clean_up_tokenization_spaces=True)

    assert inputs.attention_mask.sum(1).unique().numel() == 4 and inputs.attention_mask[:, -1].all()  # left padding
    pictures = [Image.open(media / name) for name in ("image1.png", "image2.jpg", "image3.png", "image3.png")]
    pictures.append(Image.open(media / "image4.jpg"))
    clip = clip_tensor([decoded(media / "video.mp4")[i] for i in (0, 8, 15, 23)])
    assert output_text == same_as_official(inputs, conversations, pictures, [clip])
    padded = processor.apply_chat_template(conversations, video_fps=1, padding=True, **TEMPLATE_OPTIONS)
    assert padded.keys() == inputs.keys()
    assert all(torch.equal(padded[name], inputs[name].cpu()) for name in inputs)
    for conversation, sentence in zip(conversations, output_text):  # and each row alone says the same
        alone = processor.apply_chat_template(conversation, video_fps=1, **TEMPLATE_OPTIONS).to(model.device)
        new = model.generate(**alone, max_new_tokens=NEW)[:, alone.input_ids.shape[1] :]
        assert processor.batch_decode(new, skip_special_tokens=True) == [sentence]


# --- the model page: usage tips ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", ((224 * 224, 2048 * 2048), (256 * 28 * 28, 1024 * 28 * 28)))
def test_image_resolution_snippet(limits):
    min_pixels, max_pixels = limits
    processor = AutoProcessor.from_pretrained("tiny", min_pixels=min_pixels, max_pixels=max_pixels)
    reference = Qwen2VLImageProcessorPil(min_pixels=min_pixels, max_pixels=max_pixels)
    for width, height in ((64, 48), (400, 500), (900, 840)):
        drawn = picture(width, height, 1)
        inputs = processor.apply_chat_template(ask({"type": "image", "image": drawn}), **TEMPLATE_OPTIONS)
        expected = reference(images=drawn, return_tensors="pt")
        assert torch.equal(inputs.pixel_values, expected["pixel_values"])
        assert torch.equal(inputs.image_grid_thw, expected["image_grid_thw"])
        tokens = int((inputs.input_ids == 510).sum())
        assert tokens == processor.image_processor.num_image_tokens(height, width)
        assert min_pixels <= tokens * 784 <= max_pixels  # 64 to 5349 tokens, and 256 to 1024


def test_pixel_limits_of_call_item_and_nested_dicts_are_the_same(media):
    """… as those of from_pretrained, for pictures and for frames; an item's own win."""
    processor, limits = AutoProcessor.from_pretrained("tiny"), {"min_pixels": 16 * 784, "max_pixels": 24 * 784}
    limited = AutoProcessor.from_pretrained("tiny", **limits)
    large, clip = picture(300, 200, 2), str(media / "video.mp4")
    plain = ask({"type": "image", "image": large}, {"type": "video", "video": clip}, "Hi")
    expected = limited.apply_chat_template(plain, **TEMPLATE_OPTIONS)
    assert expected.image_grid_thw.tolist() == [[1, 8, 12]]  # 200×300 → 4 × 6 cells, at most 24
    assert expected.video_grid_thw.tolist() == [[3, 8, 10]]  # 84×112 → grown to at least 16
    own = ask({"type": "image", "image": large, **limits}, {"type": "video", "video": clip, **limits}, "Hi")
    ways = {
        "call": processor.apply_chat_template(plain, **limits, **TEMPLATE_OPTIONS),
        "item": processor.apply_chat_template(own, **TEMPLATE_OPTIONS),
        "item wins": processor.apply_chat_template(own, min_pixels=784, max_pixels=784, **TEMPLATE_OPTIONS),
        "processor_kwargs": processor.apply_chat_template(plain, processor_kwargs=limits, **TEMPLATE_OPTIONS),
        "nested": processor.apply_chat_template(
            plain, images_kwargs=limits, videos_kwargs=limits, text_kwargs={"padding": True}, **TEMPLATE_OPTIONS
        ),
        "text": processor(text=[processor.apply_chat_template(plain, add_generation_prompt=True)],
                          images=[large], videos=[clip], **limits),
    }  # fmt: skip
    for way, inputs in ways.items():
        for name in expected:
            assert torch.equal(inputs[name], expected[name]), (way, name)


def test_nested_dicts_hold_for_their_own_kind_only(processor, media):
    """images_kwargs say nothing about clips, nor videos_kwargs about pictures."""
    item = {"type": "video", "video": str(media / "video.mp4")}
    chat = ask({"type": "image", "image": picture(300, 200, 2)}, item, "Hi")
    kwargs = {"images_kwargs": {"max_pixels": 4 * 784}, "videos_kwargs": {"max_pixels": 6 * 784, "fps": 1}}
    for options in (kwargs, {"processor_kwargs": kwargs}):
        inputs = processor.apply_chat_template(chat, **options, **TEMPLATE_OPTIONS)
        assert inputs.image_grid_thw.tolist() == [[1, 2, 4]]  # 4 cells at most: 1 × 2 of them keep the shape best
        assert inputs.video_grid_thw.tolist() == [[2, 4, 4]]  # 2 × 2 of at most 6


def test_resized_height_and_width(processor, media, same_as_official):
    """To the nearest multiples of 28, and nothing else is done to the picture."""
    drawn = picture(300, 200, 2)
    size = {"resized_height": 100, "resized_width": 150}
    inputs = processor.apply_chat_template(ask({"type": "image", "image": drawn, **size}, "Hi"), **TEMPLATE_OPTIONS)
    assert inputs.image_grid_thw.tolist() == [[1, 8, 10]]  # 100 → 4 cells, 150 → 5
    resized = drawn.resize((140, 112), Image.Resampling.BICUBIC)
    same_as_official(inputs, [ask({"type": "image"}, "Hi")], [resized])
    by_call = processor.apply_chat_template(ask({"type": "image", "image": drawn}, "Hi"), **size, **TEMPLATE_OPTIONS)
    assert torch.equal(by_call.pixel_values, inputs.pixel_values)
    clip = ask({"type": "video", "path": str(media / "video.mp4"), "resized_height": 56, "resized_width": 84}, "Hi")
    assert processor.apply_chat_template(clip, **TEMPLATE_OPTIONS).video_grid_thw.tolist() == [[3, 4, 6]]
    with pytest.raises(ValueError, match="resized_height and resized_width go together"):
        processor.apply_chat_template(ask({"type": "image", "image": drawn, "resized_height": 56}), **TEMPLATE_OPTIONS)


PAGE_CHAT = [  # shortened; the golden strings of the whole are in test_parity_text.py
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hello, how are you?"}]},
    {"role": "assistant", "content": "I'm doing well, thank you for asking."},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "Can you describe these images and video?"},
            {"type": "image"},
            {"type": "image"},
            {"type": "video"},
            {"type": "text", "text": "These are from my vacation."},
        ],
    },
]


def test_vision_ids_snippet(processor, official_processor, media, same_as_official):
    for options in ({}, {"add_vision_id": True}):
        prompt = processor.apply_chat_template(PAGE_CHAT, add_generation_prompt=True, **options)
        assert prompt == official_processor.apply_chat_template(PAGE_CHAT, add_generation_prompt=True, **options)
        labels = ("Picture 1: ", "Picture 2: ", "Picture 3: ", "Video 1: ")
        assert [prompt.count(f"{label}<|vision_start|>") for label in labels] == [len(options)] * 4
    # the same with files: what is tokenized is that text
    names = iter(("image1.png", "image2.jpg", "image3.png", "video.mp4"))
    filled = [
        {**message, "content": [
            {**item, "path": str(media / next(names))} if item["type"] != "text" else item
            for item in message["content"]
        ]} if message["role"] == "user" else message
        for message in PAGE_CHAT
    ]  # fmt: skip
    inputs = processor.apply_chat_template(filled, add_vision_id=True, **TEMPLATE_OPTIONS)
    pictures = [Image.open(media / name) for name in ("image1.png", "image2.jpg", "image3.png")]
    clip = clip_tensor([decoded(media / "video.mp4")[i] for i in (0, 5, 9, 14, 18, 23)])
    same_as_official(inputs, [PAGE_CHAT], pictures, [clip], add_vision_id=True)


@torch.no_grad()
@pytest.mark.parametrize("dtype", ("torch_dtype", "dtype"))
def test_flash_attention_snippet(model, processor, media, dtype, monkeypatch):
    half = Qwen2VLForConditionalGeneration.from_pretrained(
        "tiny", **{dtype: torch.bfloat16}, attn_implementation="flash_attention_2", device_map="auto"
    )
    assert half.dtype == torch.bfloat16 and {p.dtype for p in half.parameters()} == {torch.bfloat16}
    kernels, plain = [], qwen2vl_mini.sdpa_kernel
    monkeypatch.setattr(qwen2vl_mini, "sdpa_kernel", lambda kernel: kernels.append(kernel) or plain(kernel))
    chat = ask({"type": "image", "path": str(media / "image1.png")}, "Describe this image.")
    inputs = processor.apply_chat_template(chat, **TEMPLATE_OPTIONS).to(half.device)
    logits = half(**inputs).logits
    assert logits.dtype == torch.bfloat16
    layers = half.config.vision_config.depth + half.config.text_config.num_hidden_layers
    assert len(kernels) == layers and set(kernels) == {torch.nn.attention.SDPBackend.FLASH_ATTENTION}
    exact = model(**inputs).logits
    assert 0 < relative_difference(logits, exact) < 0.03  # 8 bits of mantissa
    assert relative_difference(logits, official_half(half, inputs)) < 0.03
    found = half.generate(**inputs, max_new_tokens=NEW)
    expected = model.generate(**inputs, max_new_tokens=NEW)
    assert processor.batch_decode(found) == processor.batch_decode(expected)


def official_half(half, inputs) -> torch.Tensor:
    """The official model's logits in bfloat16."""
    official = load_official(TINY).to(half.device, torch.bfloat16)
    types = (inputs.input_ids == half.config.image_token_id).int()
    return official(**inputs, mm_token_type_ids=types).logits


# --- the Hub's README -------------------------------------------------------------------------------------------------


def readme_inputs(processor, messages, images=None, videos=None):
    """The README's second way: a text, and beside it what was loaded before."""
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return processor(text=[text], images=images, videos=videos, padding=True, return_tensors="pt")


def test_readme_default_snippet(processor, media, same_as_official):
    model = Qwen2VLForConditionalGeneration.from_pretrained("tiny", torch_dtype="auto", device_map="auto")
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": str(media / "image1.png")},
                {"type": "text", "text": "Describe this image."},
            ],
        }
    ]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    image_inputs, video_inputs = [Image.open(media / "image1.png")], None
    inputs = processor(
        text=[text],
        images=image_inputs,
        videos=video_inputs,
        padding=True,
        return_tensors="pt",
    )
    inputs = inputs.to(model.device)
    generated_ids = model.generate(**inputs, max_new_tokens=128)
    generated_ids_trimmed = [out_ids[len(in_ids) :] for in_ids, out_ids in zip(inputs.input_ids, generated_ids)]
    output_text = processor.batch_decode(
        generated_ids_trimmed, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    sentences = same_as_official(inputs, [messages], [Image.open(media / "image1.png")], new=128)
    assert model.dtype != torch.float32 or output_text == sentences  # "auto" may be half precision
    assert output_text[0].endswith(".") and "<|" not in output_text[0]
    by_template = processor.apply_chat_template(messages, **TEMPLATE_OPTIONS)
    assert all(torch.equal(by_template[name], inputs[name].cpu()) for name in inputs)


def test_readme_several_images(processor, media, same_as_official):
    names = ("image1.png", "image2.jpg")
    messages = ask(
        *({"type": "image", "image": f"file://{media / name}"} for name in names),
        "Identify the similarities between these images.",
    )
    pictures = [Image.open(media / name) for name in names]
    inputs = processor.apply_chat_template(messages, **TEMPLATE_OPTIONS)
    same_as_official(inputs, [messages], pictures)
    beside = readme_inputs(processor, messages, pictures)
    assert all(torch.equal(beside[name], inputs[name]) for name in inputs)


def frame_urls(media: Path) -> list[str]:
    return [f"file://{media / f'frame{number}.jpg'}" for number in range(1, 5)]


def test_readme_video_of_frames(processor, media, same_as_official):
    """The README writes "fps" beside the list: at which rate the frames were taken. All of them are used."""
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "video", "video": frame_urls(media), "fps": 1.0},
                {"type": "text", "text": "Describe this video."},
            ],
        }
    ]
    inputs = processor.apply_chat_template(messages, **TEMPLATE_OPTIONS)
    clip = clip_tensor([Image.open(media / f"frame{number}.jpg") for number in range(1, 5)])
    same_as_official(inputs, [messages], clips=[clip])
    for frames in ([Image.open(media / f"frame{n}.jpg") for n in range(1, 5)], clip, clip.movedim(1, -1).numpy()):
        beside = readme_inputs(processor, messages, videos=[frames])
        assert all(torch.equal(beside[name], inputs[name]) for name in inputs)


def test_frames_and_a_file_in_one_call_with_a_frame_rate(processor, media):
    """`video_fps` is for the file: a list of frames beside it is taken whole."""
    frames, file = {"type": "video", "video": frame_urls(media)}, {"type": "video", "path": str(media / "video.mp4")}
    inputs = processor.apply_chat_template(ask(frames, file, "Hi"), video_fps=2, **TEMPLATE_OPTIONS)
    assert inputs.video_grid_thw.tolist() == [[2, 6, 8], [3, 6, 8]]


def test_readme_video_file(processor, media, same_as_official):
    path = media / "video.mp4"
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "video", "video": f"file://{path}", "max_pixels": 360 * 420, "fps": 1.0},
                {"type": "text", "text": "Describe this video."},
            ],
        }
    ]
    inputs = processor.apply_chat_template(messages, **TEMPLATE_OPTIONS)
    clip = clip_tensor([decoded(path)[i] for i in (0, 8, 15, 23)])
    same_as_official(inputs, [messages], clips=[clip])
    messages[0]["content"][0]["max_pixels"] = 4 * 784
    small = processor.apply_chat_template(messages, **TEMPLATE_OPTIONS)
    assert small.video_grid_thw.tolist() == [[2, 2, 4]]


def test_frames_as_qwen_vl_utils_hands_them_over(processor, media):
    """`process_vision_info` of qwen-vl-utils gives clips as float tensors of whole numbers 0..255."""
    clip = clip_tensor(decoded(media / "video.mp4")[:4])
    messages = ask({"type": "video"}, "Describe this video.")
    expected = readme_inputs(processor, messages, videos=[clip])
    found = readme_inputs(processor, messages, videos=[clip.float()])
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_readme_batch(model, processor, media, same_as_official):
    messages1 = ask(
        {"type": "image", "image": f"file://{media / 'image1.png'}"},
        {"type": "image", "image": f"file://{media / 'image2.jpg'}"},
        "What are the common elements in these pictures?",
    )
    messages2 = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Who are you?"},
    ]
    messages = [messages1, messages2]
    texts = [processor.apply_chat_template(msg, tokenize=False, add_generation_prompt=True) for msg in messages]
    image_inputs, video_inputs = [Image.open(media / name) for name in ("image1.png", "image2.jpg")], None
    inputs = processor(
        text=texts,
        images=image_inputs,
        videos=video_inputs,
        padding=True,
        return_tensors="pt",
    )
    inputs = inputs.to(model.device)
    sentences = same_as_official(inputs, messages, image_inputs)
    assert len(sentences) == 2
    # one list of pictures for each text is understood too
    nested = processor(text=texts, images=[image_inputs, []], padding=True)
    assert all(torch.equal(nested[name], inputs[name].cpu()) for name in inputs)


def test_earlier_versions_of_the_page(model, processor, media, same_as_official):
    """They opened pictures themselves and gave all media of a batch as flat lists."""
    image1, image2, image3, image4 = (Image.open(path) for path in sorted(media.glob("image?.*")))
    video_frames = clip_tensor(decoded(media / "video.mp4")[::4])
    conversations = [
        ask({"type": "image"}, "Describe this image."),
        ask({"type": "image"}, {"type": "image"}, "What is written in the pictures?"),
        [{"role": "user", "content": "who are you?"}],
        ask({"type": "image"}, {"type": "video"}, "What are the common elements in these medias?"),
    ]
    texts = [processor.apply_chat_template(msg, add_generation_prompt=True) for msg in conversations]
    inputs = processor(
        text=texts,
        images=[image1, image2, image3, image4],
        videos=[video_frames],
        padding=True,
        return_tensors="pt",
    )
    inputs = inputs.to(model.device)
    assert inputs.video_grid_thw.tolist() == [[3, 6, 8]]
    same_as_official(inputs, conversations, [image1, image2, image3, image4], [video_frames])


# --- the classes of the page ------------------------------------------------------------------------------------------


def test_config_snippet():
    """`Qwen2VLConfig()` is the 2B model: its sizes as in the paper, its parameters as many as transformers makes."""
    configuration = Qwen2VLConfig()
    with torch.device("meta"):  # shapes without gigabytes
        model = Qwen2VLForConditionalGeneration(configuration)
        theirs = transformers.Qwen2VLForConditionalGeneration(
            transformers.Qwen2VLConfig.from_dict(model.config.to_dict())
        )
    assert model.config is configuration
    assert (configuration.text_config, configuration.vision_config) == (Qwen2VLTextConfig(), Qwen2VLVisionConfig())
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == sum(parameter.numel() for parameter in theirs.parameters()) == 2_208_985_600
    assert configuration.text_config.head_dim == 128


@torch.no_grad()
@pytest.mark.parametrize("shape", ("gqa1", "gqa3"))
def test_models_from_a_configuration(shape):
    configuration = small_config(**SHAPES[shape])
    model = Qwen2VLForConditionalGeneration(configuration).eval()
    bare = Qwen2VLModel(configuration).eval()
    assert model.config is bare.config is configuration
    assert set(bare.state_dict()) == set(model.state_dict()) - {"lm_head.weight"}
    bare.load_state_dict({name: weight for name, weight in model.state_dict().items() if name != "lm_head.weight"})
    inputs = make_inputs(configuration, [[3, image(4, 6), 2], [5]])
    official = official_twin(model)
    output, expected = bare(**inputs), official.model(**inputs)
    found, reference = (real_tokens(x.last_hidden_state, inputs) for x in (output, expected))
    assert relative_difference(found, reference) < SAME
    assert output.logits is output.loss is None
    logits = real_tokens(model(**inputs).logits, inputs)
    assert relative_difference(logits, real_tokens(official(**inputs).logits, inputs)) < SAME


def test_model_config_of_a_checkpoint(model, official):
    text, vision = model.config.text_config, model.config.vision_config
    theirs = official.config.text_config
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_key_value_heads"):
        assert getattr(text, name) == getattr(theirs, name), name
    assert vision.embed_dim == official.config.vision_config.embed_dim
    assert Qwen2VLConfig.from_pretrained(TINY) == model.config == Qwen2VLModel.from_pretrained("tiny").config
    assert Qwen2VLConfig.from_dict(official.config.to_dict()).text_config.mrope_section == text.mrope_section


@pytest.mark.parametrize(
    "ours, theirs",
    ((Qwen2VLImageProcessor, Qwen2VLImageProcessorPil), (Qwen2VLImageProcessorFast, OfficialTorchvision)),
)
def test_image_processor_classes(media, ours, theirs):
    """`preprocess`, and calling it, and loading it: the official tensors to the last bit."""
    pictures = [Image.open(path).convert("RGB") for path in sorted(media.glob("image?.*"))]
    expected = theirs.from_pretrained(TINY).preprocess(pictures, return_tensors="pt")
    for processor in (ours.from_pretrained("tiny"), ours.from_pretrained(TINY)):
        for found in (processor.preprocess(pictures, return_tensors="pt"), processor(images=pictures)):
            assert torch.equal(found.pixel_values, expected["pixel_values"])
            assert torch.equal(found["image_grid_thw"], expected["image_grid_thw"])


def test_processor_class(processor, official_processor):
    assert AutoProcessor.from_pretrained(TINY).chat_template == processor.chat_template
    assert processor.chat_template == official_processor.chat_template
    assert processor.image_processor.merge_size == official_processor.image_processor.merge_size
    ids = processor.tokenizer.encode("A red circle.")
    assert processor.decode(ids) == processor.batch_decode([ids])[0] == official_processor.decode(ids)


# --- forward ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_labels_give_the_loss(model, official, processor, official_processor, media):
    chat = ask({"type": "image", "path": str(media / "image1.png")}, "Describe this image.")
    chat.append({"role": "assistant", "content": "A red circle and a blue circle."})
    inputs = processor.apply_chat_template(
        chat, tokenize=True, return_dict=True, return_mm_token_type_ids=True, return_tensors="pt"
    ).to(model.device)
    labels = inputs.input_ids.clone()
    labels[inputs.mm_token_type_ids > 0] = -100
    output, expected = model(**inputs, labels=labels), official(**inputs, labels=labels)
    assert output.loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
    shifted = output.logits[0, :-1].log_softmax(-1).gather(1, labels[0, 1:, None].clamp_min(0))[:, 0]
    assert output.loss.item() == pytest.approx(-shifted[labels[0, 1:] >= 0].mean().item(), rel=1e-5)


@pytest.fixture
def eager_twins():
    """(ours, official) with the official attention written out, for the maps."""
    ours, official = twins("gqa2")
    official.set_attn_implementation("eager")
    yield ours, official
    official.set_attn_implementation("sdpa")


MIXED = [[3, image(4, 6), 2, image(2, 4), 1], [6], [2, video(2, 4, 6), 3]]


@torch.no_grad()
@pytest.mark.parametrize("implementation", ("eager", "sdpa", "flash"))
def test_hidden_states_and_attention_maps_are_the_official_ones(eager_twins, implementation):
    """Embeddings with the pictures in them, every layer, the normed end; and softmaxes, whose rows add up to 1."""
    ours, official = eager_twins
    ours.attn_implementation = implementation
    wanted = {"output_hidden_states": True, "output_attentions": True}
    text = ours.config.text_config
    for rows in ([MIXED[0]], [MIXED[2]], MIXED):
        inputs = make_inputs(ours.config, rows)
        found, expected = ours(**inputs, **wanted), official(**inputs, **wanted)
        assert len(found.hidden_states) == len(expected.hidden_states) == text.num_hidden_layers + 1
        for mine, theirs in zip(found.hidden_states, expected.hidden_states):
            assert relative_difference(real_tokens(mine, inputs), real_tokens(theirs, inputs)) < SAME
        assert torch.equal(found.hidden_states[-1], found.last_hidden_state)
        assert len(found.attentions) == len(expected.attentions) == text.num_hidden_layers
        for mine, theirs in zip(found.attentions, expected.attentions):
            B, S = inputs["input_ids"].shape
            assert mine.shape == theirs.shape == (B, text.num_attention_heads, S, S)
            mine, theirs = (real_tokens(maps.transpose(1, 2), inputs) for maps in (mine, theirs))  # (tokens, H, S)
            assert relative_difference(mine, theirs) < SAME
            torch.testing.assert_close(mine.sum(-1), torch.ones(mine.shape[:2]))
    plain = ours(**inputs)
    assert plain.hidden_states is plain.attentions is None
    assert relative_difference(real_tokens(plain.logits, inputs), real_tokens(found.logits, inputs)) < SAME
    ours.attn_implementation = "sdpa"


@torch.no_grad()
def test_image_and_video_features_are_the_official_ones():
    """One tensor for each picture and each clip, in their order."""
    ours, official = twins("gqa3")
    inputs = make_inputs(ours.config, [[image(4, 6), 1, image(2, 8), video(2, 4, 4), 1, video(3, 6, 2)]])
    for name, pixels, grid, sizes in (
        ("get_image_features", inputs["pixel_values"], inputs["image_grid_thw"], [6, 4]),
        ("get_video_features", inputs["pixel_values_videos"], inputs["video_grid_thw"], [8, 9]),
    ):
        found, expected = getattr(ours, name)(pixels, grid), getattr(official, name)(pixels, grid).pooler_output
        assert [len(x) for x in found] == [len(x) for x in expected] == sizes
        for mine, theirs in zip(found, expected):
            assert relative_difference(mine, theirs) < SAME
    embedded = ours(**inputs, output_hidden_states=True).hidden_states[0][0]  # where they enter the decoder
    features = torch.cat(ours.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]))
    assert torch.equal(embedded[inputs["input_ids"][0] == ours.config.image_token_id], features)


@torch.no_grad()
def test_position_ids_are_returned():
    ours, _ = twins("gqa1")
    inputs = make_inputs(ours.config, MIXED)
    found, expected = ours(**inputs).position_ids, official_rope_index(ours.config, inputs)[0]
    assert torch.equal(found, expected)


def test_mm_token_type_ids_are_the_official_ones(model, processor, official_processor, media):
    conversations = [
        ask({"type": "image"}, {"type": "video"}, "Hi"),
        ask("Hi"),
        ask({"type": "video"}, "and", {"type": "image"}, "Hi"),
    ]
    texts = processor.apply_chat_template(conversations, add_generation_prompt=True)
    pictures, clips = [picture(140, 112, n) for n in (1, 2)], [clip_tensor(clip_frames()[:4])] * 2
    found = processor(text=texts, images=pictures, videos=clips, padding=True, return_mm_token_type_ids=True)
    expected = official_processor(text=texts, images=pictures, videos=clips, padding=True, return_tensors="pt")
    assert torch.equal(found.mm_token_type_ids, expected["mm_token_type_ids"].long())
    assert found.mm_token_type_ids.unique().tolist() == [0, 1, 2]
    assert "mm_token_type_ids" not in processor(text=texts, images=pictures, videos=clips, padding=True)
    with torch.no_grad():  # the model takes them as well as not
        found = found.to(model.device)
        assert torch.equal(model(**found).logits, model(**{k: v for k, v in found.items() if k[:2] != "mm"}).logits)


# --- options ----------------------------------------------------------------------------------------------------------

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize("name", known_options.REFUSED)
def test_options_that_mean_something_else_are_refused_by_name(processor, name):
    """Values that ask for nothing are taken, by every call and in the nested dicts; others are named with a reason."""
    allowed, reason = known_options.REFUSED[name]
    text = processor.apply_chat_template(HELLO, add_generation_prompt=True)
    plain, one = processor.apply_chat_template(HELLO, **TEMPLATE_OPTIONS), picture(60, 60, 1)
    pixels = processor.image_processor.preprocess(one).pixel_values
    for value in allowed:
        for options in ({name: value}, {"processor_kwargs": {name: value}}, {"text_kwargs": {name: value}}):
            inputs = processor.apply_chat_template(HELLO, **options, **TEMPLATE_OPTIONS)
            assert torch.equal(inputs.input_ids, plain.input_ids) and inputs.keys() == plain.keys()
            assert torch.equal(processor(text=text, **options).input_ids, plain.input_ids)
            assert torch.equal(processor.image_processor.preprocess(one, **options).pixel_values, pixels)
    for value in ("something else", 7, {"longest_edge": 9}):
        for options in ({name: value}, {"images_kwargs": {name: value}}, {"processor_kwargs": {name: value}}):
            for call in (
                lambda options=options: processor.apply_chat_template(HELLO, **options, **TEMPLATE_OPTIONS),
                lambda options=options: processor(text=text, **options),
                lambda options=options: processor.image_processor.preprocess(one, **options),
            ):
                with pytest.raises(ValueError, match=rf"^{name}=.* is not supported: ") as caught:
                    call()
                if reason:
                    assert reason in str(caught.value)


def test_allowed_values_are_compared_by_kind_too(processor):
    """1 is not True, and 0 is not False: a number asks for something."""
    for name, value in (("truncation", 0), ("padding_side", "right"), ("tools", [{}]), ("do_rescale", False)):
        with pytest.raises(ValueError, match=f"^{name}="):
            processor.apply_chat_template(HELLO, **{name: value}, **TEMPLATE_OPTIONS)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"max_pixel": 3136}, "The option 'max_pixel' is unknown; did you mean max_pixels?"),
        ({"video_fp": 1}, "The option 'video_fp' is unknown; did you mean video_fps?"),
        ({"colour": "red"}, "The option 'colour' is unknown; known are min_pixels, "),
        ({"images_kwargs": {"colour": "red"}}, "The option 'colour' is unknown"),
        ({"processor_kwargs": {"images_kwargs": {"colour": "red"}}}, "The option 'colour' is unknown"),
        ({"padding": "max_length"}, "padding='max_length' is not supported"),
        ({"return_tensors": "np"}, "return_tensors='np' is not supported"),
        ({"max_pixels": 0}, "max_pixels=0 should be a whole number above zero"),
        ({"max_pixels": "big"}, "max_pixels='big' should be a whole number"),
        ({"fps": float("nan")}, "fps=nan should be a number above zero"),
        ({"fps": True}, "fps=True should be a number above zero"),
        ({"nframes": 2.5}, "nframes=2.5 should be a whole number"),
    ],
)
def test_unknown_options_and_values_get_a_sentence(processor, options, words):
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        processor.apply_chat_template(HELLO, **TEMPLATE_OPTIONS | options)
    assert "\n" not in str(caught.value)


def test_unknown_options_of_from_pretrained_get_a_sentence():
    with pytest.raises(ValueError, match="'max_pixel' is unknown"):
        AutoProcessor.from_pretrained("tiny", max_pixel=3136)
    with pytest.raises(ValueError, match="attn_implementation='paged' is not one of eager, sdpa, flash"):
        Qwen2VLForConditionalGeneration.from_pretrained("tiny", attn_implementation="paged")


def test_unequal_rows_need_padding(processor):
    with pytest.raises(ValueError, match="different lengths need padding=True"):
        processor.apply_chat_template([HELLO, ask("Hello, world")], padding=False, **TEMPLATE_OPTIONS)
    for padding in (True, "longest"):
        inputs = processor.apply_chat_template([HELLO, ask("Hello, world")], padding=padding, **TEMPLATE_OPTIONS)
        assert inputs.attention_mask[:, 0].tolist() == [0, 1]


def test_signatures_have_the_official_names():
    """A keyword of the official forward that is accepted here means the same there; ours has none of its own."""
    for ours, theirs in (
        (Qwen2VLModel.forward, transformers.models.qwen2_vl.modeling_qwen2_vl.Qwen2VLModel.forward),
        (AutoProcessor.__call__, transformers.Qwen2VLProcessor.__call__),
    ):
        official = set(inspect.signature(inspect.unwrap(theirs)).parameters)
        if "past_key_values" in official:  # its name until transformers 5.23
            official.add("cache")
        generic = {"output_hidden_states", "output_attentions", "asked"}  # in the official **kwargs
        assert set(inspect.signature(ours).parameters) - generic <= official, ours


def test_rows_of_a_batch_find_their_own_media():
    """`one_row`, with which the batches above are compared elsewhere, cuts a batch as the processor would."""
    config = small_model().config
    inputs = make_inputs(config, MIXED)
    assert one_row(config, inputs, 2)["video_grid_thw"].tolist() == [[2, 4, 6]]
    assert "pixel_values" not in one_row(config, inputs, 1)
