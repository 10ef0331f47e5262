"""Words that compete with the classes that were asked for, so that a head can say "none of these".

A softmax over the classes alone always finds one. With a bank of background words, pixels that are none of
the classes fall to those.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ovseg.errors import ShapeError
from ovseg.structures import TextBank

#: What things stand on and before, out of doors and indoors. Chosen on validation scenes among four lists
#: with 15 to 36 words, which differ little; these are the names of common stuff, without anything small.
BACKGROUND_NAMES = (
    "background", "sky", "ground", "wall", "floor", "ceiling", "grass", "trees", "road", "building",
    "mountain", "water", "sand", "snow", "rock", "wood", "brick", "metal", "tiles", "carpet", "texture",
)  # fmt: skip
#: Where photographs are taken, of which an image's likeliest compete in it.
SCENE_NAMES = (
    "kitchen", "living room", "bedroom", "bathroom", "office", "classroom", "corridor", "staircase", "shop",
    "supermarket", "restaurant", "bar", "museum", "library", "hospital room", "gym", "stage", "stadium",
    "workshop", "factory floor", "warehouse", "garage", "car interior", "train station", "airport", "harbour",
    "street", "highway", "parking lot", "railway track", "bridge", "city square", "construction site",
    "skyscrapers", "residential area", "garden", "park", "playground", "sports field", "farmland", "meadow",
    "forest", "jungle", "river", "lake", "sea", "beach", "cliff", "valley", "mountain range", "desert",
    "snow field", "cloudy sky", "night sky", "underwater", "studio backdrop", "table top", "shelf",
)  # fmt: skip


def with_background(bank: TextBank, words: TextBank, *, name: str = "background") -> TextBank:
    """The bank with one more class, the last: a background class for which all `words` speak.

    Words that are classes of the bank, be it in the plural, are left out; itself where none is left.

    Args:
        bank: the classes asked for.
        words: encoded background words, of the same text tower.
        name: of the new class; numbered where the bank has it.

    Raises:
        ShapeError: the two are not of one model.
    """
    if words.embeddings.shape[1] != bank.embeddings.shape[1]:
        raise ShapeError(
            f"classes have {bank.embeddings.shape[1]} dimensions and background words "
            f"{words.embeddings.shape[1]}: encode both with one text tower"
        )
    asked = {each.casefold() for each in bank.names}
    singular = {each.rstrip("s") for each in asked}
    kept = [k for k, word in enumerate(words.names) if word.casefold().rstrip("s") not in singular]
    queries = torch.isin(words.class_of_query, torch.tensor(kept, device=words.class_of_query.device))
    if not queries.any():
        return bank
    extra = words.embeddings[queries].to(bank.embeddings)
    new = len(bank.names)
    while name.casefold() in asked:
        name = f"{name} {new}"
    return replace(
        bank,
        embeddings=torch.cat([bank.embeddings, extra]),
        no=None
        if bank.no is None or words.no is None
        else torch.cat([bank.no, words.no[queries].to(bank.no)]),
        class_of_query=torch.cat([bank.class_of_query, bank.class_of_query.new_full((len(extra),), new)]),
        names=(*bank.names, name),
        background=bank.background | {new},
        thresholds=None if bank.thresholds is None else (*bank.thresholds, None),
    )


def joined(first: TextBank, second: TextBank) -> TextBank:
    """The words of both."""
    later = second.class_of_query.to(first.class_of_query.device) + len(first.names)
    return TextBank(
        torch.cat([first.embeddings, second.embeddings.to(first.embeddings)]),
        torch.cat([first.class_of_query, later]),
        (*first.names, *second.names),
        no=None if first.no is None or second.no is None else torch.cat([first.no, second.no.to(first.no)]),
    )


def likely_scenes(image: Float[Tensor, " D"], scenes: TextBank, count: int = 5) -> TextBank:
    """The background words that fit an image best, to compete in that image.

    Source: BIRDet's background information modelling, which takes the likeliest scene names of an image for
    its background.
    Deviations: BIRDet asks a scene recogniser; here it is CLIP's own class token. (Its code is not public.)

    Args:
        image: the class token, unit length (`DenseFeatures.image`).
        scenes: encoded scene names.
        count: how many to take.
    """
    cosine = scenes.embeddings.to(image) @ image
    best = torch.stack([cosine[queries].amax() for queries in scenes.queries_of_class])
    chosen = best.topk(min(count, len(best))).indices.sort().values.tolist()
    queries = torch.cat([scenes.queries_of_class[k] for k in chosen])
    sizes = torch.tensor([len(scenes.queries_of_class[k]) for k in chosen])
    return TextBank(
        scenes.embeddings[queries],
        torch.repeat_interleave(torch.arange(len(chosen)), sizes).to(scenes.class_of_query),
        tuple(scenes.names[k] for k in chosen),
        no=None if scenes.no is None else scenes.no[queries],
    )
