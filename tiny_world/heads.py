"""Training-only heads: linear readings of the model's states, with which so small a model learns so soon.

With the answers' loss alone the tower gets almost no signal until the decoder can already count and point, and the
decoder finds out only by chance where an object is that a sentence speaks of. So at chosen places of the network a
linear head must be able to read off what is needed there. The heads are never saved: what they taught stays.

  * merger, each visual token: what is centred in its 28×28 cell (shapes, colours, characters in their order), and where
    the edges of such a thing are, seen from here;
  * layer 2, each visual token: its column and row, and its object's box in cells. The tower cannot know them (its
    rotary positions are relative, and a picture has no marked border). The decoder can, from M-RoPE's distance to
    <|vision_start|>, but what it finds it must also write down where later layers can read it;
  * layer 3, each visual token: how many characters of a text come before this cell; <|vision_end|>: the columns and
    rows of the picture, which no visual token can know, as none sees those after it;
  * layer 4, each visual token: in a clip, how far its object has come since the frames before, and what has happened
    here; in a second picture, whether its object is in the first one, too, and where;
  * layer 4, words with which a thing has been named: its box in cells; layer 5: the same as shares of the picture, and
    in a list how many things will be named after it; layer 7, before each digit of a box: what remains of its number;
  * layer 5, <|vision_end|>: how many things there are of each shape, of each colour, and in all; what happened in a
    clip; of a second picture, whether it is the same and whether it has more objects;
  * layer 6, words before a thing is named, or a character written: its box in cells. This comes so late because the
    next thing to the right is known only once the last one has been found;
  * layer 6, before "Yes." or "No.": on which side of the first thing the second one is, and which side was asked for.
"""

from __future__ import annotations

from collections.abc import Callable

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
        nn.init.constant_(self.names.bias, -4.0)  # nearly all names are absent from nearly all cells
        self.edges = nn.Linear(width, 4)
        self.slots = nn.Linear(width, SLOTS * (1 + len(CHARACTERS)))

    def forward(self, seen: Tensor, names: Tensor, edges: Tensor, slots: Tensor) -> dict[str, Tensor]:
        """Losses of the targets of `batches`: names (M, 18), edges (M, 4) and slots (M, SLOTS)."""
        seen = seen.float()
        names_loss = F.binary_cross_entropy_with_logits(self.names(seen), names, reduction="sum")
        losses = {"names": 4 * names_loss / len(seen)}

        slots = slots.flatten()  # (M·SLOTS)
        if (slots > 0).any():  # without a character, silence about them would drown all else at first
            error = F.cross_entropy(self.slots(seen).view(len(slots), -1), slots, reduction="sum")
            losses["characters"] = error / max(50, (slots > 0).sum())

        has_thing = ~edges[:, 0].isnan()  # (M)
        if has_thing.any():
            losses["edges"] = (self.edges(seen[has_thing]) - edges[has_thing]).abs().mean(0).sum()

        return losses

    @torch.no_grad()
    def claims(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the names (M, 18), and log-probabilities of the characters in each slot (M, SLOTS, 37)."""
        characters = self.slots(seen.float()).view(len(seen), SLOTS, -1)  # (M, SLOTS, 37)
        return self.names(seen.float()), characters.log_softmax(-1)

    @torch.no_grad()
    def right(self, seen: Tensor, names: Tensor, slots: Tensor) -> tuple[float, float]:
        """Share of the characters, and of the cells with a thing, that are read off rightly."""
        read = self.slots(seen.float()).view(*slots.shape, -1).argmax(-1)  # (M, SLOTS)
        characters_right = (read == slots)[slots > 0].float().mean()

        named = self.names(seen.float()) > 0  # (M, 18)
        has_thing = names.any(1)  # (M)
        things_right = (named == names.bool()).all(1)[has_thing].float().mean()

        return characters_right.item(), things_right.item()


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
        self.found = nn.Linear(width, 4)
        self.coming = nn.Linear(width, 4)
        self.left = nn.Linear(width, MAX_THINGS + 1)  # 0 to 6: of six things and a text, one has just been named
        self.shares = nn.Linear(width, 4)
        self.hundreds = nn.Linear(width, 4 * 11)  # 0 to 10, of four coordinates in thousandths
        self.rest = nn.Linear(width, 1)
        self.counts = nn.Linear(width, (len(NAMES) + 1) * 7)  # 0 to 6 of each, and of all
        self.event_sizes = [len(EVENTS), len(SHAPES), len(COLOURS), len(COLOURS)]
        self.events = nn.Linear(width, sum(self.event_sizes))
        self.pairs = nn.Linear(width, 3 + 2)
        self.beside = nn.Linear(width, 2)
        self.relations = nn.Linear(width, len(RELATIONS))

        self.states: dict[int, Tensor] = {}  # layer, counted from 1 → its output (B, S, C) in the last forward pass
        self.seventh = min(7, len(model.model.layers))  # the studies' decoders have fewer
        for layer in range(2, self.seventh + 1):
            model.model.layers[layer - 1].register_forward_hook(self.keeper_of(layer))

    def keeper_of(self, layer: int) -> Callable[..., None]:
        """A forward hook that keeps the output of a layer."""

        def keep(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            self.states[layer] = output

        return keep

    def after(self, layer: int) -> Tensor:
        """Its states (B, S, C), normalised, since they grow from layer to layer."""
        states = self.states[layer].float()
        return F.layer_norm(states, states.shape[-1:])

    def forward(self, is_visual: Tensor, batch: dict) -> dict[str, Tensor]:
        """Losses of a round: `is_visual` (B, S) tells the visual tokens, `batch` is from `batches.make_round`."""
        after = {layer: self.after(layer) for layer in self.states}  # (B, S, C) each
        of_visual = {layer: after[layer][is_visual] for layer in (2, 3, 4)}  # (M, C) each
        losses = self.cell_losses(of_visual, batch)
        losses |= self.size_losses(after, batch)
        losses |= self.thing_losses(after, batch)
        losses |= self.digit_losses(after, batch)
        losses |= self.picture_losses(after, batch)
        losses |= self.relation_losses(after, batch)
        return losses

    def cell_losses(self, after: dict[int, Tensor], batch: dict) -> dict[str, Tensor]:
        """Of each visual token, of which `after` has the states (M, C): its place, object, text, and what happens."""
        known = ~batch["places"].isnan()  # (M, 6), False where there is no object, which may be everywhere
        error = (self.places(after[2]) - batch["places"].nan_to_num()).abs() * known
        losses = {"places": 2 * (error.sum(0) / known.sum(0).clamp(min=1)).sum()}

        for name, states in (("first", after[3]), ("matches", after[4])):
            has = batch[name] >= 0
            if has.any():
                losses[name] = F.cross_entropy(getattr(self, name)(states[has]), batch[name][has])

        for name in ("moves", "partners"):
            has = ~batch[name][:, 0].isnan()
            if has.any():
                losses[name] = 2 * (getattr(self, name)(after[4][has]) - batch[name][has]).abs().mean(0).sum()

        changes = batch["changes"]
        if (changes >= 0).any():  # nothing happens in nearly all cells, so the mean is over the others
            error = F.cross_entropy(self.changes(after[4]), changes, ignore_index=-1, reduction="sum")
            losses["changes"] = error / max(10, (changes > 0).sum())

        return losses

    def size_losses(self, after: dict[int, Tensor], batch: dict) -> dict[str, Tensor]:
        """Of each <|vision_end|>: rows and columns of the picture."""
        row, place = batch["ends"].T  # (E) each
        sizes = self.sizes(after[3][row, place]).view(-1, LARGEST_SIZE)  # (2·E, 16)
        # The largest class stands for all sizes from there on.
        wanted = torch.tensor(batch["size"]).clamp(max=LARGEST_SIZE) - 1
        return {"sizes": F.cross_entropy(sizes, wanted.repeat(len(row)))}

    def thing_losses(self, after: dict[int, Tensor], batch: dict) -> dict[str, Tensor]:
        """Of words: the box of the thing that has been named (found early) or is to be named (found late)."""
        rows, cols = batch["size"]
        row, place = batch["known"][:, :2].long().T  # (K) each
        boxes = batch["known"][:, 2:6]  # (K, 4), in shares
        coming, left = batch["known"][:, 6:].long().T  # (K) each
        in_cells = boxes * torch.tensor([cols, rows, cols, rows]) / 8
        fourth, fifth, sixth = (after[layer][row, place] for layer in (4, 5, 6))  # (K, C) each

        losses = {}
        for name, states, has in (("found", fourth, coming == 0), ("coming", sixth, coming == 1)):
            if has.any():
                error = getattr(self, name)(states[has]) - in_cells[has]
                losses[name] = 8 * error.abs().mean(0).sum()  # a box is wanted to a tenth of a cell
        if (coming == 0).any():
            losses["known"] = self.box_loss(fifth[coming == 0], boxes[coming == 0])
        if (left >= 0).any():
            losses["left"] = F.cross_entropy(self.left(fifth[left >= 0]), left[left >= 0])
        return losses

    def box_loss(self, states: Tensor, boxes: Tensor) -> Tensor:
        """Distance, and cross-entropy of the first digit: states (n, C), boxes (n, 4) as shares."""
        hundreds = (boxes * 1000).round().clamp(0, 1000).long() // 100  # (n, 4)
        loss = F.cross_entropy(self.hundreds(states).view(-1, 11), hundreds.flatten())
        return loss + 10 * (self.shares(states) - boxes).abs().mean(0).sum()

    def digit_losses(self, after: dict[int, Tensor], batch: dict) -> dict[str, Tensor]:
        """Before each digit of a box: what remains of its number."""
        if len(batch["digits"]) == 0:
            return {}
        row, place = batch["digits"][:, :2].long().T
        rest = self.rest(after[self.seventh][row, place])[:, 0]
        return {"rest": 4 * (rest - batch["digits"][:, 2]).abs().mean()}

    def picture_losses(self, after: dict[int, Tensor], batch: dict) -> dict[str, Tensor]:
        """Of each <|vision_end|>: counts of a picture, the event of a clip, a comparison of two pictures."""
        losses = {}
        if len(batch["counts"]):
            row, place = batch["counts"][:, :2].T
            logits = self.counts(after[5][row, place]).view(-1, 7)
            losses["counts"] = 4 * F.cross_entropy(logits, batch["counts"][:, 2:].flatten())
        for name, sizes in (("events", self.event_sizes), ("pairs", [3, 2])):  # classes of each target
            if len(batch[name]):
                row, place = batch[name][:, :2].T
                logits = getattr(self, name)(after[5][row, place]).split(sizes, dim=-1)
                losses[name] = sum(F.cross_entropy(x, y) for x, y in zip(logits, batch[name][:, 2:].T))
        return losses

    def relation_losses(self, after: dict[int, Tensor], batch: dict) -> dict[str, Tensor]:
        """Before "Yes." or "No.": on which sides the second thing is, and which side was asked for."""
        if len(batch["beside"]) == 0:
            return {}
        row, place = batch["beside"][:, :2].T
        states = after[6][row, place]
        sides, asked = batch["beside"][:, 2:].split([2, 1], dim=1)
        return {
            "beside": 2 * F.binary_cross_entropy_with_logits(self.beside(states), sides.float()),
            "relations": F.cross_entropy(self.relations(states), asked[:, 0]),
        }
