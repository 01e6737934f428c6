"""Official names that we do not have: one sentence with the way out in place of a bare AttributeError."""

from __future__ import annotations

import re
from difflib import get_close_matches

from qwen2vl_io.sentences import shown

INNER = re.compile(r"_|.*__")  # Python's own protocols (copy, pickle, NumPy, IPython) ask for such names
FOR_TRANSFORMERS = "that belongs to transformers' own machinery; save_pretrained, and use it there"

MACHINERY = set(  # public names of the official classes that serve transformers itself
    "SPECIAL_TOKENS_ATTRIBUTES allow_global_per_layer_attribute_access attribute_map base_config_key "
    "base_model_ep_plan base_model_fsdp_plan base_model_pp_plan base_model_tp_plan can_save_slow_tokenizer "
    "chat_control_tokens check_argument_for_proper_class chunk_size_feed_forward clean_up_tokenization "
    "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output convert_added_tokens "
    "convert_rope_params_to_dict convert_to_native_format decoder default_config_fields default_rope_type "
    "default_theta default_to_square deprecation_warnings dict_dtype_to_str disable_grouping extra_config_files "
    "extra_files files_loaded from_args_and_dict get_attributes get_image_processor_dict get_mtp_config "
    "get_possibly_dynamic_module get_processor_dict get_response_parser get_text_with_replacements "
    "get_video_processor_dict ignore_keys_at_rope_validation init_inputs init_kwargs is_custom_code is_heterogeneous "
    "is_remote_code keys_to_ignore_at_inference nested_rope_parameter_keys num_labels id2label label2id "
    "per_layer_attributes per_layer_config post_process_multimodal_output prepare_inputs_layout "
    "pretrained_vocab_files_map problem_type register_for_auto_class response_template "
    "return_text_replacement_offsets serialize_explicit_per_layer_config set_truncation_and_padding "
    "skip_tensor_conversion slow_tokenizer_class standardize_rope_params sub_configs sub_configs_defaults "
    "unused_input_names update_from_string update_post_processor valid_kwargs valid_processor_kwargs validate "
    "validate_architecture validate_init_kwargs validate_inputs validate_layer_type validate_output_attentions "
    "validate_rope validate_token_ids verbose vocab_files_names".split()
)


class AbsentName(AttributeError):
    """An attribute that is not there, and why. An AttributeError, so that hasattr() and getattr() work as always."""


def did_you_mean(name: str, known) -> str:
    """A hint at the known name that is spelled most like it, or at all of them; as the end of a sentence."""
    close = get_close_matches(str(name)[:100], [str(one) for one in known], 1)
    if close:
        return f"did you mean {close[0]}?"
    names = sorted(map(str, known))
    return f"known are {', '.join(names[:20])}{' …' * (len(names) > 20)}."


def absent(owner, name: str, reasons: dict[str, str]) -> AbsentName:
    """The error for an attribute that an object has not."""
    kind = type(owner).__name__
    if INNER.match(name):
        return AbsentName(f"{kind!r} object has no attribute {name!r}")
    if name in reasons:
        return AbsentName(f"{kind} has no {name!r}: {reasons[name]}.")
    if name in MACHINERY:
        return AbsentName(f"{kind} has no {name!r}: {FOR_TRANSFORMERS}.")
    public = [one for one in dir(owner) if not one.startswith("_")]
    close = get_close_matches(name[:100], public, 1)
    hint = f"did you mean {close[0]}?" if close else "it is no name of ours; dir() lists those there are."
    return AbsentName(f"{kind} has no {shown(name)}; {hint}")


class OfficialNames:
    """A class whose `ABSENT` says of official names that it does not have what to do instead."""

    ABSENT: dict[str, str] = {}

    def __getattr__(self, name: str):
        raise absent(self, name, self.ABSENT)
