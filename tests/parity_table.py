"""The README's parity table, measured anew: `python -m tests.parity_table` (a minute).

The tests assert the limits; this prints how far below them we are, the worst over all shapes, layouts of the prompt and
attention implementations of the parity tests.
"""

import copy

import tests.conftest  # noqa: F401  (quiet libraries, one thread)
from tests.layer_debugger import compare_records, record
from tests.official import official_name, twins
from tests.small_models import SHAPES, make_inputs, relative_difference
from tests.test_parity_model import IMPLEMENTATIONS, LAYOUTS, SAME, SAME_GRADIENT, with_labels


def worst_differences() -> dict[str, float]:
    """The largest relative difference of each kind of output."""
    worst = dict.fromkeys(("vision tower and merger", "decoder layers", "logits", "gradients of the loss"), 0.0)
    for shape in SHAPES:
        ours, official = (copy.deepcopy(model) for model in twins(shape))
        for layout in LAYOUTS.values():
            inputs = make_inputs(ours.config, layout)
            expected = record(official, inputs)
            for ours.attn_implementation in IMPLEMENTATIONS:
                for row in compare_records(record(ours, inputs), expected):
                    kind = "logits" if row.layer == "logits" else "decoder layers"
                    in_tower = row.layer in ("patch embed", "merger") or row.layer.startswith("vision")
                    kind = "vision tower and merger" if in_tower else kind
                    worst[kind] = max(worst[kind], row.relative)
        inputs = with_labels(make_inputs(ours.config, LAYOUTS["mixed-batch"]))
        official(**inputs).loss.backward()
        reference = dict(official.named_parameters())
        for ours.attn_implementation in IMPLEMENTATIONS:
            ours.zero_grad()
            ours(**inputs).loss.backward()
            for name, parameter in ours.named_parameters():
                difference = relative_difference(parameter.grad, reference[official_name(name)].grad)
                worst["gradients of the loss"] = max(worst["gradients of the loss"], difference)
    return worst


if __name__ == "__main__":
    print(f"worst of {len(SHAPES)} shapes × {len(LAYOUTS)} prompts × {len(IMPLEMENTATIONS)} implementations")
    for kind, difference in worst_differences().items():
        print(f"| {kind} | {difference:.1e} | {SAME_GRADIENT if 'gradient' in kind else SAME:.0e} |")
