"""A detector of some classes becomes the start of one of others: rows of shared classes are kept.

Shape shorthand: K_old and K_new classes; class K is the background.

This is what "pre-trained on Objects365" can mean for COCO (paper, tables 1 and 4; how it was done
there is not said). Backbone, pyramid, RPN and trunks of the heads do not depend on the classes and
are kept as they are; a classifier has a row for each class, which goes where the class goes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from detectron2.config import CfgNode
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from torch import Tensor, nn

State = Mapping[str, Tensor]

ALIASES = {
    "bird": "wild bird",
    "bowl": "bowl/basin",
    "dining table": "dinning table",
    "hair drier": "hair dryer",
    "handbag": "handbag/satchel",
    "orange": "orange/tangerine",
    "suitcase": "luggage",
    "teddy bear": "stuffed toy",
    "tv": "moniter/tv",
}
"""Names of COCO that Objects365 spells otherwise, by its own spelling.

Two tables of these classes agree on them: LW-DETR's (github.com/Atten4Vis/LW-DETR,
util/obj365_to_coco_model.py; D-FINE and RT-DETR have the same numbers) and that of
github.com/vghost2008/wml, iotoolkit/o365_to_coco.py. On "skis" and "sports ball" they do not.
"""


@dataclass(frozen=True)
class ClassRows:
    """How a layer's rows belong to classes.

    Attributes:
        per_class: rows of each class, next to each other.
        background: whether another row for the background follows.
    """

    per_class: int
    background: bool

    def count(self, num_classes: int) -> int:
        return num_classes * self.per_class + self.background


@dataclass(frozen=True)
class ClassMatch:
    """A class of the new detector.

    Attributes:
        name: its name.
        old: number of the old class whose rows it gets; None if there is none.
        by_alias: whether the old class is called otherwise.
    """

    name: str
    old: int | None
    by_alias: bool = False


@dataclass(frozen=True)
class Transferred:
    """The start of a new detector.

    Attributes:
        state: all its tensors.
        fresh: names of those that the old detector has nothing of, as the model had them.
    """

    state: dict[str, Tensor]
    fresh: list[str]


def match_classes(old: Sequence[str], new: Sequence[str]) -> list[ClassMatch]:
    """Find for each new class the old one of the same name, or the one that `ALIASES` names.

    Case and spaces around a name do not count: Objects365 writes "Person", COCO "person".

    Raises:
        ValueError: two classes of a detector have the same name.
    """
    numbers = _numbers(old, "old")
    _numbers(new, "new")
    matches = []
    for name in new:
        number = numbers.get(_plain(name))
        other = numbers.get(ALIASES.get(_plain(name)))
        by_alias = number is None and other is not None
        matches.append(ClassMatch(name, other if by_alias else number, by_alias))
    return matches


def transfer_classes(
    old: State, model: nn.Module, cfg: CfgNode, matches: Sequence[ClassMatch], num_old: int
) -> Transferred:
    """Put the tensors of an old detector into a new one.

    Args:
        old: the old detector's state.
        model: the new one, of whose values remain those that nothing old takes the place of.
        cfg: its config.
        matches: K_new classes.
        num_old: K_old.

    Raises:
        ValueError: the detectors differ in more than their classes and in heads that the old one
            lacks as a whole.
    """
    layers, new = class_layers(cfg, model), model.state_dict()
    wrong = [f"{name} is in it alone" for name in old if name not in new]
    state, fresh = {}, []
    for name, value in new.items():
        rows = layers.get(name.rpartition(".")[0])
        if name not in old:
            fresh.append(name)
            state[name] = value
        elif rows is None:
            state[name] = old[name]
            if old[name].shape != value.shape:
                wrong.append(f"{name} is {tuple(old[name].shape)}, not {tuple(value.shape)}")
        elif old[name].shape != (rows.count(num_old), *value.shape[1:]):
            wrong.append(
                f"{name} is {tuple(old[name].shape)} and not that of {num_old} classes, "
                f"{(rows.count(num_old), *value.shape[1:])}"
            )
        else:
            state[name] = _with_rows(value, old[name], rows, matches)
    wrong += [f"{name} is not in it" for name in _not_whole(fresh, old)]
    if wrong:
        raise ValueError(
            f"The old weights are not of the detector that the config describes, {len(wrong)} "
            f"tensors differ: {'; '.join(wrong[:3])}. Only classes, and masks or the semantic "
            "branch as a whole, may; give the config of the same detector and the old classes."
        )
    return Transferred(state, fresh)


def class_layers(cfg: CfgNode, model: nn.Module) -> dict[str, ClassRows]:
    """The layers of an R-CNN that have rows for classes, by name.

    Raises:
        ValueError: the model is none.
    """
    boxes_by_class = not cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG
    masks_by_class = not cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, FastRCNNOutputLayers):
            layers[f"{name}.cls_score"] = ClassRows(1, background=True)
            if boxes_by_class:
                layers[f"{name}.bbox_pred"] = ClassRows(4, background=False)
        elif isinstance(module, MaskRCNNConvUpsampleHead) and masks_by_class:
            layers[f"{name}.predictor"] = ClassRows(1, background=False)
    if not layers:
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}, which has no RoI heads; "
            "classes are transferred between R-CNN detectors alone."
        )
    return layers


def _with_rows(
    value: Tensor, old: Tensor, rows: ClassRows, matches: Sequence[ClassMatch]
) -> Tensor:
    """A layer's tensor (rows, ...), in which matched classes and the background have old rows."""
    value = value.clone()
    for number, match in enumerate(matches):
        if match.old is not None:
            there = slice(number * rows.per_class, (number + 1) * rows.per_class)
            here = slice(match.old * rows.per_class, (match.old + 1) * rows.per_class)
            value[there] = old[here]
    if rows.background:
        value[-1] = old[-1]
    return value


# Parts of RoI heads that boxes can do without.
_OPTIONAL_PARTS = ("roi_heads.mask_head.", "roi_heads.semantic_head.")


def _not_whole(fresh: Sequence[str], old: State) -> list[str]:
    """Those new tensors that are no part which the old detector lacks as a whole."""
    lacking = tuple(p for p in _OPTIONAL_PARTS if not any(name.startswith(p) for name in old))
    return [name for name in fresh if not name.startswith(lacking)]


def _numbers(names: Sequence[str], which: str) -> dict[str, int]:
    numbers: dict[str | None, int] = {}
    for number, name in enumerate(names):
        if _plain(name) in numbers:
            raise ValueError(
                f"Two of the {which} classes are called {name!r}; give each a name of its own."
            )
        numbers[_plain(name)] = number
    return numbers


def _plain(name: str) -> str:
    return " ".join(name.casefold().split())
