"""Training-only heads: linear readings of the model's states that make so small a model learn so soon.

With the answers' loss alone the tower gets almost no signal until the decoder can already count and point, and the
decoder finds out by chance, if at all, where an object is that a sentence speaks of. So at chosen places of the network
a linear head must be able to read off what is needed there. The heads are never saved: what they taught stays.

  * merger, each visual token: what is centred in its 28×28 cell: shapes, colours, characters in their order;
  * layer 2, each visual token: its column and row, and its object's box in cells. The tower cannot know them (its
    rotary positions are relative, and a picture has no marked border); the decoder can, from M-RoPE's distance to
    <|vision_start|>, but what it finds it must also write down where later layers can read it;
  * layer 4, each visual token: its object's box as shares of the picture, in the digits of the answers, and how many
    objects are further left; of a text, how many characters come before this cell; in a clip, how far the object has
    come since the frames before, and what has happened here;
  * layer 5, words that name a thing, or come just before one is named: the box of that thing;
  * layer 5, <|vision_end|>: how many there are of each shape, of each colour, and in all; what happened in a clip;
  * layer 6, before "Yes." or "No.": on which side of the first thing the second one is, and which side was asked for.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwen2vl_mini import Qwen2VLForConditionalGeneration
from tiny_world.batches import EVENTS, NAMES, RELATIONS, SLOTS
from tiny_world.scenes import CHARACTERS, COLOURS, MAX_TEXT_LENGTH, MAX_THINGS, SHAPES


class TowerHeads(nn.Module):
    """Name what is centred in each cell, from the visual token that stands for it (M, C)."""

    def __init__(self, width: int):
        super().__init__()
        self.names = nn.Linear(width, len(NAMES))
        nn.init.constant_(self.names.bias, -4.0)  # nearly every name is absent from nearly every cell
        self.slots = nn.Linear(width, SLOTS * (1 + len(CHARACTERS)))

    def forward(self, seen: Tensor, names: Tensor, slots: Tensor) -> dict[str, Tensor]:
        """Losses of the targets of `batches`: names (M, 18) and slots (M, SLOTS)."""
        seen, slots = seen.float(), slots.flatten()
        characters = F.cross_entropy(self.slots(seen).view(len(slots), -1), slots, reduction="sum")
        return {
            "names": 4 * F.binary_cross_entropy_with_logits(self.names(seen), names, reduction="sum") / len(seen),
            "characters": characters / max(50, (slots > 0).sum()),
        }

    @torch.no_grad()
    def right(self, seen: Tensor, names: Tensor, slots: Tensor) -> tuple[float, float]:
        """Share of the characters, and of the cells with a thing, that are read off rightly."""
        named, read = self.names(seen.float()) > 0, self.slots(seen.float()).view(*slots.shape, -1).argmax(-1)
        things = names.any(1)
        return (
            (read == slots)[slots > 0].float().mean().item(),
            (named == names.bool()).all(1)[things].float().mean().item(),
        )


class DecoderHeads(nn.Module):
    """Read off places, counts and events inside the decoder of `model`."""

    def __init__(self, model: Qwen2VLForConditionalGeneration):
        super().__init__()
        width = model.config.text_config.hidden_size
        self.places = nn.Linear(width, 6)
        self.shares = nn.Linear(width, 4)
        self.digits = nn.Linear(width, 4 * (11 + 10))  # hundreds 0 to 10 and tens 0 to 9 of four coordinates
        self.first = nn.Linear(width, MAX_TEXT_LENGTH)
        self.ranks = nn.Linear(width, MAX_THINGS)
        self.moves = nn.Linear(width, 2)
        self.changes = nn.Linear(width, 1 + len(EVENTS))
        self.counts = nn.Linear(width, (len(NAMES) + 1) * 7)  # 0 to 6 of each, and of all
        self.event_sizes = [len(EVENTS), len(SHAPES), len(COLOURS), len(COLOURS)]
        self.events = nn.Linear(width, sum(self.event_sizes))
        self.beside = nn.Linear(width, 2)
        self.relations = nn.Linear(width, len(RELATIONS))
        self.states: dict[int, Tensor] = {}
        for i in (1, 3, 4, 5):
            model.model.layers[i].register_forward_hook(lambda *call, i=i: self.states.update({i: call[-1]}))

    def read(self, layer: int) -> Tensor:
        """States after a layer (B, S, C), normalised, since they grow from layer to layer."""
        return F.layer_norm(self.states[layer].float(), self.states[layer].shape[-1:])

    def box_loss(self, states: Tensor, boxes: Tensor) -> Tensor:
        """Distance, and cross-entropy of the first two of three digits: states (n, C), boxes (n, 4) as shares."""
        thousandths = (boxes * 1000).round().clamp(0, 1000).long()  # (n, 4)
        hundreds, tens = self.digits(states).view(-1, 4, 21).split([11, 10], dim=-1)
        loss = F.cross_entropy(hundreds.flatten(0, 1), thousandths.flatten() // 100)
        loss = loss + F.cross_entropy(tens.flatten(0, 1), thousandths.flatten() // 10 % 10)
        return loss + 2 * (self.shares(states) - boxes).abs().mean(0).sum()

    def forward(self, is_visual: Tensor, batch: dict) -> dict[str, Tensor]:
        """Losses of a round: `is_visual` (B, S) tells the visual tokens, `batch` is from `batches.make_round`."""
        losses = {}
        places, moves, first = batch["places"], batch["moves"], batch["first"]
        second, fourth, fifth = (self.read(i) for i in (1, 3, 4))
        cells = fourth[is_visual]  # (M, C)
        has_thing, has_text, has_move = ~places[:, -1].isnan(), first >= 0, ~moves[:, 0].isnan()
        error = (self.places(second[is_visual]) - places[:, :6]).abs()  # NaN without object
        losses["places"] = 2 * (error.nanmean(0).nansum())
        if has_thing.any():
            losses["boxes"] = self.box_loss(cells[has_thing], places[has_thing, 6:])
            losses["ranks"] = F.cross_entropy(self.ranks(cells[has_thing]), batch["ranks"][has_thing])
        if has_text.any():
            losses["first"] = F.cross_entropy(self.first(cells[has_text]), first[has_text])
        if has_move.any():
            losses["moves"] = 2 * (self.moves(cells[has_move]) - moves[has_move]).abs().mean(0).sum()
        changes = batch["changes"]
        if (changes >= 0).any():  # nearly nothing happens in nearly every cell, so the mean is over the other ones
            error = F.cross_entropy(self.changes(cells), changes, ignore_index=-1, reduction="sum")
            losses["changes"] = error / max(10, (changes > 0).sum())
        if len(batch["known"]):
            row, place = batch["known"][:, :2].long().T
            losses["known"] = self.box_loss(fifth[row, place], batch["known"][:, 2:])
        if len(batch["counts"]):
            row, place = batch["counts"][:, :2].T
            logits = self.counts(fifth[row, place]).view(-1, 7)
            losses["counts"] = 4 * F.cross_entropy(logits, batch["counts"][:, 2:].flatten())
        if len(batch["events"]):
            row, place = batch["events"][:, :2].T
            parts = self.events(fifth[row, place]).split(self.event_sizes, dim=-1)
            losses["events"] = sum(F.cross_entropy(x, y) for x, y in zip(parts, batch["events"][:, 2:].T))
        if len(batch["beside"]):
            row, place = batch["beside"][:, :2].T
            states, (sides, asked) = self.read(5)[row, place], batch["beside"][:, 2:].split([2, 1], dim=1)
            losses["beside"] = 2 * F.binary_cross_entropy_with_logits(self.beside(states), sides.float())
            losses["relations"] = F.cross_entropy(self.relations(states), asked[:, 0])
        return losses
