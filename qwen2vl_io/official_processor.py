"""The official names of the processors, and their files: settings that are read, checked, changed and written.

A setting that a user changes takes effect or is refused by name, on a processor as on its image processor.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from types import SimpleNamespace

from qwen2vl_io.files import inner_dict, json_text, read_json, read_text, write_files, write_json
from qwen2vl_io.limits import as_defaults
from qwen2vl_io.official_names import INNER, OfficialNames, did_you_mean
from qwen2vl_io.options import check_image_processor
from qwen2vl_io.sentences import shorten, shown

LIMITS = ("min_pixels", "max_pixels")
CLIP_LIMITS = (*LIMITS, "total_pixels")
FILE = "preprocessor_config.json"
VIDEO_FILE = "video_preprocessor_config.json"
BOTH_FILE = "processor_config.json"  # of transformers 5, with the two others' contents in it
BICUBIC = (3, "bicubic", "BICUBIC", None)
FIXED = {  # settings of the official processors that have one value here, and why
    "do_resize": ((True, None), "sides must be multiples of 28; resized_height and resized_width set them"),
    "do_rescale": ((True, None), "pass whole bytes, or fractions from 0 to 1"),
    "do_normalize": ((True, None), "the tower was trained on normalised pixels"),
    "do_convert_rgb": ((True, False, None), ""),  # pictures in other colours are converted either way
    "do_center_crop": ((False, None), "crop pictures before"),
    "do_pad": ((False, None), "pictures keep their own sizes"),
    "rescale_factor": ((1 / 255, None), "bytes become fractions from 0 to 1"),
    "crop_size": ((None,), "crop pictures before"),
    "input_data_format": ((None,), "arrays are (height, width, 3), tensors (3, height, width)"),
    "data_format": (("channels_first", None), "patches have one layout only"),
    "return_tensors": (("pt", None), "tensors are PyTorch's"),
    "device": (("cpu", None), "move the inputs with .to(device)"),
    "default_to_square": ((True, False, None), ""),
    "disable_grouping": ((True, False, None), ""),
    "image_processor_type": (None, ""),
    "video_processor_type": (None, ""),
    "processor_class": (None, ""),
}
READ_ONLY = {  # official names of values that are what they are
    **{"do_resize": True, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True, "do_center_crop": False},
    **{"do_pad": False, "rescale_factor": 1 / 255, "image_processor_type": "Qwen2VLImageProcessor"},
    **dict.fromkeys(("crop_size", "input_data_format", "return_tensors", "device")),
    "data_format": "channels_first",
}
PUSH = "save_pretrained(folder), then `hf upload org/name folder`"
IN_PREPROCESS = "it is one of the steps of preprocess(); pixels_of() and patchify() are ours"
ABSENT_IMAGE = {
    "push_to_hub": PUSH,
    **dict.fromkeys("resize rescale normalize rescale_and_normalize convert_to_rgb patchify".split(), IN_PREPROCESS),
    **dict.fromkeys("center_crop pad process_image".split(), IN_PREPROCESS),
    **dict.fromkeys(("pad_size", "image_seq_length"), "pictures keep their own sizes and numbers of tokens"),
    "backend": 'resample says it: "pillow" or "torch"',
    "fetch_images": "preprocess(images) opens paths and URLs itself",
}
ABSENT = {
    "push_to_hub": PUSH,
    "audio_token_ids": "Qwen2-VL does not hear",
    "feature_extractor": "Qwen2-VL does not hear; its image_processor is there",
    "parse_response": "decode the answer with batch_decode; boxes in it with parse_boxes",
    "replace_image_token": "placeholders become ids in expand_placeholders",
    "replace_video_token": "placeholders become ids in expand_placeholders",
    "create_mm_token_type_ids": "ask for return_mm_token_type_ids=True",
    "replace_audio_token": "Qwen2-VL does not hear",
}

# ── Files → settings ────────────────────────────────────────────────────────────────────────────────────────────────


def read_settings(folder: Path) -> tuple[dict, dict, Path]:
    """What the files of a folder say of pictures and of clips, and which file speaks of pictures.

    transformers 5 puts both into processor_config.json, which wins where it speaks of them.
    """
    both = read_json(folder / BOTH_FILE) if (folder / BOTH_FILE).exists() else {}
    file = folder / (BOTH_FILE if "image_processor" in both else FILE)
    images = inner_dict(both, "image_processor", file) if "image_processor" in both else read_json(file)
    clips = inner_dict(both, "video_processor", folder / BOTH_FILE)
    if not clips and (folder / VIDEO_FILE).exists():
        clips = read_json(folder / VIDEO_FILE)
    return images, clips, file


def with_limits(settings: dict, file: Path) -> dict:
    """Settings in which the limits of the area have our names; newer files call the two *areas* "edges"."""
    size = inner_dict(settings, "size", file)
    limits_of(size, f"{shorten(file)}: ")
    edges = {"min_pixels": size.get("shortest_edge"), "max_pixels": size.get("longest_edge")}
    return edges | {name: value for name, value in settings.items() if value is not None}


def check_file(settings: dict, file: Path, images: dict | None = None) -> None:
    """Settings of a file that would change pixels, and that nothing here follows; `images`: those for pictures."""
    kind = settings.get("image_processor_type") or settings.get("video_processor_type") or "Qwen2VL"
    if not str(kind).startswith(("Qwen2VL", "Qwen2_5_VL")):
        raise ValueError(f"{shorten(file)} is of a {shown(kind)}, not of Qwen2-VL's processor.")
    for name in FIXED.keys() & settings.keys():
        check_fixed(name, settings[name], shorten(file))
    if settings.get("resample") not in BICUBIC:
        raise ValueError(
            f"{shorten(file)}: resample = {shown(settings['resample'])} is not supported, only 3, bicubic."
        )
    shared = ("patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std")
    for name in shared if images is not None else ():
        if settings.get(name) is not None and images.get(name) is not None and settings[name] != images[name]:
            raise ValueError(
                f"{shorten(file)}: {name} = {shown(settings[name])} for clips differs from that for pictures."
            )


def check_fixed(name: str, value, where: str) -> None:
    """A setting that has one value here."""
    allowed, reason = FIXED[name]
    if allowed is None:
        return
    same = any(value is one or (type(value) is type(one) and value == one) for one in allowed)
    if not same and not (name == "rescale_factor" and isinstance(value, float) and abs(value * 255 - 1) < 1e-6):
        raise ValueError(f"{where}: {name} = {shown(value)} is not supported: {reason}.")


def processor_options(folder: Path, kind: type, overrides: dict) -> dict:
    """The fields of an image processor of class `kind`: a checkpoint's, then `overrides` that are not None.

    `min_pixels` and `max_pixels` asked for hold for pictures and for frames.
    """
    known = {field.name for field in fields(kind)}
    given = own_pixel_names(known, overrides)
    images, clips, file = read_settings(folder)
    images = with_limits(images, file)
    check_file(images, file)
    options = {name: images[name] for name in known - {"resample"} if images.get(name) is not None}
    if str(images.get("image_processor_type")).endswith("Fast"):
        options["resample"] = "torch"
    if clips:
        clips = with_limits(clips, folder / VIDEO_FILE)
        check_file(clips, folder / VIDEO_FILE, images)
        options |= {f"video_{name}": clips[name] for name in CLIP_LIMITS if clips.get(name) is not None}
    return as_defaults(options) | {f"video_{name}": given[name] for name in LIMITS if name in given} | given


def own_pixel_names(known: Iterable[str], named: dict) -> dict:
    """Official keywords of an image processor → our fields of that name, without those that ask for nothing."""
    own = {}
    for name, value in named.items():
        if name == "size" and value is not None:
            own |= limits_of(value)
        elif name == "resample" and not isinstance(value, bool) and value in BICUBIC:
            continue
        elif name == "use_fast" and isinstance(value, bool | None):
            own |= {} if value is None else {"resample": "torch" if value else "pillow"}
        elif name == "backend" and value in ("pil", "torchvision", None):
            own |= {} if value is None else {"resample": "pillow" if value == "pil" else "torch"}
        elif name in FIXED:
            check_fixed(name, value, "The image processor")
        elif name not in known:
            raise ValueError(f"The option {shown(name)} is unknown; {did_you_mean(name, [*known, 'size', 'use_fast'])}")
        elif value is not None:
            own[name] = value
    return own


def limits_of(size, where: str = "") -> dict:
    """The official `size`, whose "edges" are areas, as limits of our names."""
    names = {"shortest_edge": "min_pixels", "longest_edge": "max_pixels"}
    names |= {"min_pixels": "min_pixels", "max_pixels": "max_pixels"}
    if not isinstance(size, dict) or not size.keys() <= names.keys():
        raise ValueError(
            f"{where}size={shown(size)} should be {{'shortest_edge': pixels, 'longest_edge': pixels}}, two areas."
        )
    return {names[name]: value for name, value in size.items() if value is not None}


def read_chat_template(folder: Path) -> str | None:
    """A checkpoint's chat template (Jinja), from the newest of the places where one may be; None without one."""
    for name in ("chat_template.jinja", "chat_template.json", BOTH_FILE, "tokenizer_config.json"):
        file = folder / name
        if file.exists():
            template = read_text(file) if file.suffix == ".jinja" else read_json(file).get("chat_template")
            if not isinstance(template, str | None):
                raise ValueError(f"{shorten(file)}: chat_template = {shown(template)} should be a text.")
            if template:
                return template
    return None


# ── Settings → files ────────────────────────────────────────────────────────────────────────────────────────────────


def processor_to_dict(image_processor, video: bool = False) -> dict:
    """The content of a preprocessor_config.json, or of a video_preprocessor_config.json."""
    d = {name: value for name, value in asdict(image_processor).items() if name != "resample"}
    frames = {name.removeprefix("video_"): d.pop(name) for name in list(d) if name.startswith("video_")}
    if not video:
        kind = "Qwen2VLImageProcessor" + "Fast" * (image_processor.resample == "torch")  # official names of the two
        return {"image_processor_type": kind, "processor_class": "Qwen2VLProcessor"} | d
    size = {"shortest_edge": frames["min_pixels"], "longest_edge": frames["max_pixels"]}
    frames["size"] = size
    if frames["total_pixels"] == type(image_processor).video_total_pixels:
        del frames["total_pixels"]  # qwen-vl-utils' own, which no released file holds
    return {"video_processor_type": "Qwen2VLVideoProcessor", "processor_class": "Qwen2VLProcessor"} | d | frames


def image_processor_files(image_processor) -> dict[str, dict]:
    return {FILE: processor_to_dict(image_processor), VIDEO_FILE: processor_to_dict(image_processor, video=True)}


def processor_files(processor) -> dict[str, dict]:
    """All files of a processor, in the released layout."""
    files = image_processor_files(processor.image_processor) | processor.tokenizer.files(processor.chat_template)
    if processor.chat_template is not None:
        files["chat_template.json"] = {"chat_template": processor.chat_template}
    return files


OLDER_PROCESSOR_FILES = (BOTH_FILE, "chat_template.jinja")  # which would win over the files that we write


# ── The classes ─────────────────────────────────────────────────────────────────────────────────────────────────────


class OfficialImageProcessor(OfficialNames):
    """The official names of an image processor; settings are checked whenever they are set."""

    ABSENT = ABSENT_IMAGE
    model_input_names = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")

    @classmethod
    def own_names(cls, named: dict) -> tuple[dict, dict]:
        return own_pixel_names([one.name for one in fields(cls)], named), {}

    @classmethod
    def from_dict(cls, content: dict, **changes):
        """From the content of a preprocessor_config.json."""
        names = {one.name for one in fields(cls)}
        content = with_limits(content, Path(FILE))
        check_file(content, Path(FILE))
        chosen = {name: content[name] for name in names - {"resample"} if content.get(name) is not None}
        return cls(**chosen | changes)

    @property
    def size(self) -> dict:
        return {"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels}

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: dict | None = None) -> int:
        """The rows of `pixel_values` that a picture of that size makes."""
        limits = {name: value for name, value in (images_kwargs or {}).items() if name in LIMITS}
        return self.num_image_tokens(height, width, **limits) * self.merge_size**2

    @classmethod
    def from_json_file(cls, json_file):
        """From a preprocessor_config.json, wherever it lies and whatever its name is."""
        return cls.from_dict(read_json(json_file))

    def to_dict(self) -> dict:
        """The content of a preprocessor_config.json."""
        return processor_to_dict(self)

    def to_json_file(self, json_file_path) -> None:
        write_json(json_file_path, self.to_dict())

    def to_json_string(self) -> str:
        return json_text(self.to_dict())

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **asked) -> list[str]:
        """Write preprocessor_config.json, and that for clips, into a folder."""
        refuse_pushing(push_to_hub)
        return write_files(save_directory, image_processor_files(self), stale=(BOTH_FILE,))

    def __getattr__(self, name: str):
        if name in READ_ONLY:
            return READ_ONLY[name]
        return super().__getattr__(name)

    def __setattr__(self, name: str, value) -> None:
        if name == "resample" and not isinstance(value, bool) and value in BICUBIC:
            return
        if name in {one.name for one in fields(self)}:
            check_image_processor(SimpleNamespace(**{"resample": "pillow", name: value}))
            object.__setattr__(self, name, value)
        elif name == "size":
            for limit, pixels in limits_of(value).items():
                setattr(self, limit, pixels)
        elif name in FIXED:
            check_fixed(name, value, type(self).__name__)
        elif INNER.match(name) or hasattr(type(self), name):  # a method that a test or a user replaces
            object.__setattr__(self, name, value)
        else:
            known = [*(one.name for one in fields(self)), "size"]
            raise ValueError(f"{type(self).__name__} has no {shown(name)}; {did_you_mean(name, known)}")


class VideoSettings(OfficialNames):
    """The official `video_processor`, which here is a part of the image processor: its limits for clips."""

    ABSENT = ABSENT_IMAGE | dict.fromkeys(
        ("cap_pixels_per_frame", "max_video_tokens"), "total_pixels is the limit of a whole clip"
    )
    ABSENT |= dict.fromkeys(("from_pretrained", "from_dict", "from_json_file"), "it comes with the image processor")
    ABSENT |= {"resample": "clips are resampled bicubically, as officially by torchvision"}
    ABSENT |= dict.fromkeys(
        ("return_metadata", "video_metadata", "sample_frames", "fetch_videos"),
        "qwen2vl_io.videos.load_video tells frames and time stamps",
    )
    ABSENT |= dict.fromkeys(
        ("fps", "num_frames", "min_frames", "max_frames", "do_sample_frames"),
        "frames are chosen by a call's fps, nframes, min_frames and max_frames, or by those of a message's item",
    )
    shared = ("patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std")
    own = ("min_pixels", "max_pixels", "total_pixels")
    model_input_names = ("pixel_values_videos", "video_grid_thw")
    video_processor_type = "Qwen2VLVideoProcessor"

    def __init__(self, image_processor):
        object.__setattr__(self, "image_processor", image_processor)

    def __call__(self, videos=None, **asked):
        return self.image_processor.preprocess(videos=videos, **asked)

    preprocess = __call__

    @property
    def size(self) -> dict:
        return {"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels}

    def get_num_of_video_patches(
        self, num_frames: int, height: int, width: int, videos_kwargs: dict | None = None
    ) -> int:
        """The rows of `pixel_values_videos` that a clip of that size makes."""
        limits = {name: value for name, value in (videos_kwargs or {}).items() if name in CLIP_LIMITS}
        return self.image_processor.num_video_tokens(num_frames, height, width, **limits) * self.merge_size**2

    def to_dict(self) -> dict:
        return processor_to_dict(self.image_processor, video=True)

    def to_json_file(self, json_file_path) -> None:
        write_json(json_file_path, self.to_dict())

    def to_json_string(self) -> str:
        return json_text(self.to_dict())

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **asked) -> list[str]:
        """Write video_preprocessor_config.json into a folder."""
        refuse_pushing(push_to_hub)
        return write_files(save_directory, {VIDEO_FILE: self.to_dict()})

    def __getattr__(self, name: str):
        if name in self.own:
            return getattr(self.image_processor, f"video_{name}")
        if name in self.shared:
            return getattr(self.image_processor, name)
        if name in READ_ONLY:
            return READ_ONLY[name]
        return super().__getattr__(name)

    def __setattr__(self, name: str, value) -> None:
        if name in self.own:
            setattr(self.image_processor, f"video_{name}", value)
        elif name == "size":
            for limit, pixels in limits_of(value).items():
                setattr(self, limit, pixels)
        elif name in FIXED:
            check_fixed(name, value, "The video processor")
        elif name in self.shared:
            raise ValueError(f"{name} of clips is that of pictures; set it on processor.image_processor.")
        else:
            reason = self.ABSENT.get(name)
            hint = f"{reason}." if reason else did_you_mean(name, [*self.own, "size"])
            raise ValueError(f"The video processor has no {shown(name)}; {hint}")


class OfficialProcessor(OfficialNames):
    """The official names of a processor; what is set on it takes effect or is refused."""

    ABSENT = ABSENT
    image_token = "<|image_pad|>"
    video_token = "<|video_pad|>"
    return_mm_token_type_ids = False  # unless a call asks for them
    model_input_names = (
        *("input_ids", "attention_mask", "pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw"),
        "mm_token_type_ids",
    )

    @classmethod
    def own_names(cls, named: dict) -> tuple[dict, dict]:
        """The official constructor's keywords → our fields."""
        named = dict(named)
        clips = named.pop("video_processor", None)
        if clips is not None and not isinstance(clips, VideoSettings):
            raise ValueError("video_processor is a part of the image processor here; leave it out.")
        for name in named:
            if name not in {one.name for one in fields(cls)}:
                known = [one.name for one in fields(cls)]
                raise ValueError(f"{cls.__name__} has no {shown(name)}; {did_you_mean(name, known)}")
        return named, {}

    @property
    def image_token_id(self) -> int:
        return self.tokenizer.special_ids[self.image_token]

    @property
    def video_token_id(self) -> int:
        return self.tokenizer.special_ids[self.video_token]

    @property
    def image_token_ids(self) -> list[int]:
        return [self.image_token_id]

    @property
    def video_token_ids(self) -> list[int]:
        return [self.video_token_id]

    @property
    def all_special_multimodal_tokens(self) -> list[str]:
        return [self.image_token, self.video_token]

    @property
    def video_processor(self) -> VideoSettings:
        return VideoSettings(self.image_processor)

    def media_patches(self, item: dict, **asked):
        """One media item → patches (N, 1176) and grid (t, h, w), as the image processor makes them."""
        return self.image_processor.media_patches(item, **asked)

    def decode(self, *ids, **how):
        """Ids → text, as the tokenizer does."""
        return self.tokenizer.decode(*ids, **how)

    def batch_decode(self, *rows, **how) -> list[str]:
        """One text for each row of ids, as the tokenizer does."""
        return self.tokenizer.batch_decode(*rows, **how)

    def post_process_image_text_to_text(
        self, generated_outputs, skip_special_tokens: bool = True, clean_up_tokenization_spaces: bool = False, **how
    ) -> list[str]:
        """The texts of what `generate` gave, rows (B, S) or one (S,)."""
        rows = [generated_outputs] if getattr(generated_outputs, "ndim", 2) == 1 else generated_outputs
        return self.batch_decode(rows, skip_special_tokens=skip_special_tokens, **how)

    def get_chat_template(self, chat_template=None, tools=None) -> str | None:
        return self.chat_template

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **asked) -> list[str]:
        """Write the files of a processor into a folder: those of pixels, of words, and the chat template."""
        refuse_pushing(push_to_hub)
        return write_files(save_directory, processor_files(self), stale=OLDER_PROCESSOR_FILES)

    def to_dict(self) -> dict:
        pixels = processor_to_dict(self.image_processor)
        clips = processor_to_dict(self.image_processor, video=True)
        return {"processor_class": "Qwen2VLProcessor", "image_processor": pixels, "video_processor": clips}

    def to_json_file(self, json_file_path) -> None:
        write_json(json_file_path, self.to_dict())

    def to_json_string(self) -> str:
        return json_text(self.to_dict())

    def __setattr__(self, name: str, value) -> None:
        if name in {one.name for one in fields(self)}:
            object.__setattr__(self, name, value)
            if name == "chat_template" and hasattr(self.tokenizer, name):
                self.tokenizer.chat_template = value
        elif name in LIMITS or name == "size":  # as in from_pretrained, for pictures and for clips
            setattr(self.image_processor, name, value)
            setattr(self.video_processor, name, value)
        elif name == "padding_side":
            self.tokenizer.padding_side = value
        elif INNER.match(name) or callable(getattr(type(self), name, None)):
            object.__setattr__(self, name, value)
        elif hasattr(type(self), name):
            raise ValueError(f"{type(self).__name__}.{name} follows from its tokenizer and cannot be set.")
        else:
            known = [*(one.name for one in fields(self)), *LIMITS, "size"]
            raise ValueError(f"{type(self).__name__} has no {shown(name)}; {did_you_mean(name, known)}")

    def __getattr__(self, name: str):
        if name in LIMITS or name == "size":
            return getattr(self.image_processor, name)
        if name == "padding_side":
            return self.tokenizer.padding_side
        return super().__getattr__(name)


def refuse_pushing(push_to_hub) -> None:
    if push_to_hub:
        raise ValueError(f"push_to_hub is not supported: {PUSH}.")
