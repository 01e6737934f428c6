"""Training-only heads: linear readings of the model's states that make so small a model learn so soon.

With the answers' loss alone the tower gets almost no signal until the decoder can already count and point, and the
decoder finds out by chance, if at all, where an object is that a sentence speaks of. So at chosen places of the network
a linear head must be able to read off what is needed there. The heads are never saved: what they taught stays.

  * merger, each visual token: what is centred in its 28×28 cell: shapes, colours, characters in their order; and where
    the edges of such a thing are, seen from here;
  * layer 2, each visual token: its column and row, and its object's box in cells. The tower cannot know them (its
    rotary positions are relative, and a picture has no marked border); the decoder can, from M-RoPE's distance to
    <|vision_start|>, but what it finds it must also write down where later layers can read it;
  * layer 3, each visual token: of a text, how many characters come before this cell; <|vision_end|>: the columns and
    rows of the picture, which no visual token can know, as none sees those after it;
  * layer 4, each visual token: in a clip, how far its object has come since the frames before, and what has happened
    here; in a second picture, whether its object is in the first one, too, and where;
  * layer 4, words with which a thing has been named: its box in cells; layer 5: the same as shares of the picture, and
    in a list how many things will be named after it; layer 7, before each digit of a box: what remains of its number;
  * layer 5, <|vision_end|>: how many there are of each shape, of each colour, and in all; what happened in a clip; of a
    second picture, whether it is the same and whether it has more objects;
  * layer 6, words before a thing is named, or a character written: its box in cells. So late, since the next one to the
    right is known only when the last one is found;
  * layer 6, before "Yes." or "No.": on which side of the first thing the second one is, and which side was asked for.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwen2vl_mini import Qwen2VLForConditionalGeneration
from tiny_world.batches import EVENTS, NAMES, SLOTS
from tiny_world.scenes import CHARACTERS, COLOURS, MAX_SIDE, MAX_TEXT_LENGTH, MAX_THINGS, RELATIONS, SHAPES

LARGEST_SIZE = MAX_SIDE // 28  # rows or columns of visual tokens


class TowerHeads(nn.Module):
    """Name what is centred in each cell, from the visual token that stands for it (M, C)."""

    def __init__(self, width: int):
        super().__init__()
        self.names = nn.Linear(width, len(NAMES))
        nn.init.constant_(self.names.bias, -4.0)  # nearly every name is absent from nearly every cell
        self.edges = nn.Linear(width, 4)
        self.slots = nn.Linear(width, SLOTS * (1 + len(CHARACTERS)))

    def forward(self, seen: Tensor, names: Tensor, edges: Tensor, slots: Tensor) -> dict[str, Tensor]:
        """Losses of the targets of `batches`: names (M, 18), edges (M, 4) and slots (M, SLOTS)."""
        seen, slots, has = seen.float(), slots.flatten(), ~edges[:, 0].isnan()
        names_loss = F.binary_cross_entropy_with_logits(self.names(seen), names, reduction="sum")
        losses = {"names": 4 * names_loss / len(seen)}
        if (slots > 0).any():  # where there are none, silence about them would drown all else at first
            error = F.cross_entropy(self.slots(seen).view(len(slots), -1), slots, reduction="sum")
            losses["characters"] = error / max(50, (slots > 0).sum())
        if has.any():
            losses["edges"] = (self.edges(seen[has]) - edges[has]).abs().mean(0).sum()
        return losses

    @torch.no_grad()
    def claims(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the names (M, 18), log-probabilities of the characters in each slot (M, SLOTS, 37)."""
        return self.names(seen.float()), self.slots(seen.float()).view(len(seen), SLOTS, -1).log_softmax(-1)

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
        self.first = nn.Linear(width, MAX_TEXT_LENGTH)
        self.sizes = nn.Linear(width, 2 * LARGEST_SIZE)  # rows and columns, from 1
        self.moves = nn.Linear(width, 2)
        self.changes = nn.Linear(width, 1 + len(EVENTS))
        self.matches = nn.Linear(width, 2)
        self.partners = nn.Linear(width, 2)
        self.found, self.coming = (nn.Linear(width, 4) for _ in range(2))
        self.left = nn.Linear(width, MAX_THINGS + 1)  # six things and a text, but one of them is named
        self.shares = nn.Linear(width, 4)
        self.hundreds = nn.Linear(width, 4 * 11)  # 0 to 10, of four coordinates in thousandths
        self.rest = nn.Linear(width, 1)
        self.counts = nn.Linear(width, (len(NAMES) + 1) * 7)  # 0 to 6 of each, and of all
        self.event_sizes = [len(EVENTS), len(SHAPES), len(COLOURS), len(COLOURS)]
        self.events = nn.Linear(width, sum(self.event_sizes))
        self.pairs = nn.Linear(width, 3 + 2)
        self.beside = nn.Linear(width, 2)
        self.relations = nn.Linear(width, len(RELATIONS))
        self.states: dict[int, Tensor] = {}
        self.seventh = min(7, len(model.model.layers))  # the studies' decoders have but six
        for i in range(1, self.seventh):
            model.model.layers[i].register_forward_hook(lambda *call, i=i: self.states.update({i: call[-1]}))

    def after(self, layer: int) -> Tensor:
        """States after the layer of this number, from 1 (B, S, C), normalised, since they grow from layer to layer."""
        states = self.states[layer - 1].float()
        return F.layer_norm(states, states.shape[-1:])

    def forward(self, is_visual: Tensor, batch: dict) -> dict[str, Tensor]:
        """Losses of a round: `is_visual` (B, S) tells the visual tokens, `batch` is from `batches.make_round`."""
        fourth, fifth, sixth = (self.after(layer) for layer in (4, 5, 6))  # (B, S, C) each
        losses = self.cell_losses(self.after(2)[is_visual], self.after(3)[is_visual], fourth[is_visual], batch)
        rows, cols = batch["size"]
        row, place = batch["ends"].T  # (E) each, of the <|vision_end|>
        sizes = self.sizes(self.after(3)[row, place]).view(-1, LARGEST_SIZE)  # (2·E, 16)
        wanted = torch.tensor([rows, cols]).clamp(max=LARGEST_SIZE) - 1  # the largest class takes what is larger still
        losses["sizes"] = F.cross_entropy(sizes, wanted.repeat(len(row)))

        # The marks: row, place, box (4), coming, left. A thing that has been named is found early, one that comes late.
        (row, place), boxes = batch["known"][:, :2].long().T, batch["known"][:, 2:6]  # (K), (K), (K, 4)
        coming, left = batch["known"][:, 6:].long().T  # (K) each
        in_cells = boxes * torch.tensor([cols, rows, cols, rows]) / 8
        for name, states, has in (("found", fourth, coming == 0), ("coming", sixth, coming == 1)):
            if has.any():
                error = getattr(self, name)(states[row[has], place[has]]) - in_cells[has]
                losses[name] = 8 * error.abs().mean(0).sum()  # a box is wanted to a tenth of a cell
        if (coming == 0).any():
            losses["known"] = self.box_loss(fifth[row, place][coming == 0], boxes[coming == 0])
        if (left >= 0).any():
            losses["left"] = F.cross_entropy(self.left(fifth[row, place][left >= 0]), left[left >= 0])

        if len(batch["digits"]):
            row, place = batch["digits"][:, :2].long().T
            rest = self.rest(self.after(self.seventh)[row, place])[:, 0]
            losses["rest"] = 4 * (rest - batch["digits"][:, 2]).abs().mean()

        if len(batch["counts"]):
            row, place = batch["counts"][:, :2].T
            logits = self.counts(fifth[row, place]).view(-1, 7)
            losses["counts"] = 4 * F.cross_entropy(logits, batch["counts"][:, 2:].flatten())
        for name, parts in (("events", self.event_sizes), ("pairs", [3, 2])):
            if len(batch[name]):
                row, place = batch[name][:, :2].T
                logits = getattr(self, name)(fifth[row, place]).split(parts, dim=-1)
                losses[name] = sum(F.cross_entropy(x, y) for x, y in zip(logits, batch[name][:, 2:].T))
        if len(batch["beside"]):
            row, place = batch["beside"][:, :2].T
            states, (sides, asked) = sixth[row, place], batch["beside"][:, 2:].split([2, 1], dim=1)
            losses["beside"] = 2 * F.binary_cross_entropy_with_logits(self.beside(states), sides.float())
            losses["relations"] = F.cross_entropy(self.relations(states), asked[:, 0])
        return losses

    def cell_losses(self, second: Tensor, third: Tensor, fourth: Tensor, batch: dict) -> dict[str, Tensor]:
        """Of the visual tokens alone: their states after three layers, (M, C) each."""
        error = (self.places(second) - batch["places"]).abs()  # NaN without object
        losses = {"places": 2 * (error.nanmean(0).nansum())}
        for name, states in (("first", third), ("matches", fourth)):
            has = batch[name] >= 0
            if has.any():
                losses[name] = F.cross_entropy(getattr(self, name)(states[has]), batch[name][has])
        for name in ("moves", "partners"):
            has = ~batch[name][:, 0].isnan()
            if has.any():
                losses[name] = 2 * (getattr(self, name)(fourth[has]) - batch[name][has]).abs().mean(0).sum()
        changes = batch["changes"]
        if (changes >= 0).any():  # nothing happens in nearly every cell, so the mean is over the other ones
            error = F.cross_entropy(self.changes(fourth), changes, ignore_index=-1, reduction="sum")
            losses["changes"] = error / max(10, (changes > 0).sum())
        return losses

    def box_loss(self, states: Tensor, boxes: Tensor) -> Tensor:
        """Distance, and cross-entropy of the first digit: states (n, C), boxes (n, 4) as shares."""
        hundreds = (boxes * 1000).round().clamp(0, 1000).long() // 100  # (n, 4)
        loss = F.cross_entropy(self.hundreds(states).view(-1, 11), hundreds.flatten())
        return loss + 10 * (self.shares(states) - boxes).abs().mean(0).sum()
