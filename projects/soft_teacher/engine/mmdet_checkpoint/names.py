"""mmdetection's names of parameters as Detectron2's and this project's, by rule.

Nothing here looks at sizes: a name that no rule knows is reported, never guessed.
"""

import re
from collections.abc import Callable

from soft_teacher.engine.mmdet_checkpoint.reading import State
from soft_teacher.engine.mmdet_checkpoint.swin_names import SWIN_RULES, reorder_merged_patches

Rule = tuple[re.Pattern, Callable[[re.Match], str]]

# Ends of a name: of a plain layer; of a norm; and of mmcv's ConvModule, which holds both.
_PLAIN = r"(?P<param>weight|bias)"
_NORM = r"(?P<param>weight|bias|running_mean|running_var|num_batches_tracked)"
_MODULE = rf"(?:conv|(?P<norm>bn|gn))\.{_NORM}"
# Of the stages of a cascade, absent with a single one.
_STAGE = r"(?P<stage>(?:\d+\.)?)"

NOTHING_IN_IT = ("num_batches_tracked",)
"""Last parts of names of tensors that carry nothing: counters that frozen norms do not have."""


def _end(match: re.Match) -> str:
    return f"norm.{match['param']}" if match["norm"] else match["param"]


def _rule(pattern: str, name: Callable[[re.Match], str]) -> Rule:
    return re.compile(pattern), name


def _numbered(match: re.Match, first: int) -> int:
    """The index in a name, where Detectron2 counts from `first`."""
    return int(match["index"]) + first


_RESNET = "backbone.bottom_up"
_RPN = "proposal_generator.rpn_head"
_RULES: list[Rule] = [
    _rule(rf"backbone\.conv1\.{_PLAIN}", lambda m: f"{_RESNET}.stem.conv1.{m['param']}"),
    _rule(rf"backbone\.bn1\.{_NORM}", lambda m: f"{_RESNET}.stem.conv1.norm.{m['param']}"),
    _rule(
        rf"backbone\.layer(?P<index>[1-4])\.(?P<block>\d+)\.(?P<kind>conv|bn)(?P<n>[123])\.{_NORM}",
        lambda m: (
            f"{_RESNET}.res{_numbered(m, 1)}.{m['block']}.conv{m['n']}."
            f"{'norm.' if m['kind'] == 'bn' else ''}{m['param']}"
        ),
    ),
    _rule(
        rf"backbone\.layer(?P<index>[1-4])\.(?P<block>\d+)\.downsample\.(?P<kind>[01])\.{_NORM}",
        lambda m: (
            f"{_RESNET}.res{_numbered(m, 1)}.{m['block']}.shortcut."
            f"{'norm.' if m['kind'] == '1' else ''}{m['param']}"
        ),
    ),
    *SWIN_RULES,
    _rule(
        rf"neck\.(?P<kind>lateral|fpn)_convs\.(?P<index>\d+)\.{_MODULE}",
        lambda m: (
            f"backbone.fpn_{'lateral' if m['kind'] == 'lateral' else 'output'}"
            f"{_numbered(m, 2)}.{_end(m)}"
        ),
    ),
    _rule(rf"rpn_head\.rpn_conv\.{_PLAIN}", lambda m: f"{_RPN}.conv.{m['param']}"),
    _rule(
        rf"rpn_head\.rpn_conv\.(?P<index>\d+)\.conv\.{_PLAIN}",
        lambda m: f"{_RPN}.conv.conv{m['index']}.{m['param']}",
    ),
    _rule(rf"rpn_head\.rpn_cls\.{_PLAIN}", lambda m: f"{_RPN}.objectness_logits.{m['param']}"),
    _rule(rf"rpn_head\.rpn_reg\.{_PLAIN}", lambda m: f"{_RPN}.anchor_deltas.{m['param']}"),
    _rule(
        rf"roi_head\.bbox_head\.{_STAGE}shared_convs\.(?P<index>\d+)\.{_MODULE}",
        lambda m: f"roi_heads.box_head.{m['stage']}conv{_numbered(m, 1)}.{_end(m)}",
    ),
    _rule(
        rf"roi_head\.bbox_head\.{_STAGE}shared_fcs\.(?P<index>\d+)\.{_PLAIN}",
        lambda m: f"roi_heads.box_head.{m['stage']}fc{_numbered(m, 1)}.{m['param']}",
    ),
    _rule(
        rf"roi_head\.bbox_head\.{_STAGE}fc_(?P<kind>cls|reg)\.{_PLAIN}",
        lambda m: (
            f"roi_heads.box_predictor.{m['stage']}"
            f"{'cls_score' if m['kind'] == 'cls' else 'bbox_pred'}.{m['param']}"
        ),
    ),
    _rule(
        rf"roi_head\.mask_head\.{_STAGE}convs\.(?P<index>\d+)\.{_MODULE}",
        lambda m: f"roi_heads.mask_head.{m['stage']}mask_fcn{_numbered(m, 1)}.{_end(m)}",
    ),
    _rule(
        rf"roi_head\.mask_head\.{_STAGE}conv_res\.conv\.{_PLAIN}",
        lambda m: f"roi_heads.mask_head.{m['stage']}conv_res.{m['param']}",
    ),
    _rule(
        rf"roi_head\.mask_head\.{_STAGE}(?P<kind>upsample|conv_logits)\.{_PLAIN}",
        lambda m: (
            f"roi_heads.mask_head.{m['stage']}"
            f"{'deconv' if m['kind'] == 'upsample' else 'predictor'}.{m['param']}"
        ),
    ),
    _rule(
        rf"roi_head\.semantic_head\.(?P<name>(?:lateral_convs|convs)\.\d+|conv_embedding)\.conv\."
        rf"{_PLAIN}",
        lambda m: f"roi_heads.semantic_head.{m['name']}.{m['param']}",
    ),
    _rule(
        rf"roi_head\.semantic_head\.conv_logits\.{_PLAIN}",
        lambda m: f"roi_heads.semantic_head.conv_logits.{m['param']}",
    ),
]


def convert_name(name: str) -> str | None:
    """This project's name of a parameter; None if no rule knows it."""
    for pattern, make in _RULES:
        match = pattern.fullmatch(name)
        if match:
            return make(match)
    return None


def convert_state(state: State) -> State:
    """A state dict, or a part of one, by this project's names; tensors are the same objects.

    Exception: where mmdetection's Swin Transformer merges patches, channels change their order.

    Raises:
        ValueError: names that no rule knows, all of which it lists, or two that become the same.
    """
    names = {name: convert_name(name) for name in state}
    unknown = [name for name, converted in names.items() if converted is None]
    if unknown:
        raise ValueError(
            f"{len(unknown)} weights are of parts that this project does not have, or by names "
            f"that it does not know; nothing was converted: {', '.join(unknown)}"
        )
    converted = {
        names[name]: reorder_merged_patches(name, tensor) for name, tensor in state.items()
    }
    if len(converted) < len(state):
        raise ValueError("Two weights of the file have the same name in this project.")
    return converted


def without_counters(state: State, wanted: State) -> tuple[State, list[str]]:
    """A state dict without those tensors of `NOTHING_IN_IT` that a model of this project lacks.

    Args:
        state: by mmdetection's names.
        wanted: of the model, by this project's.

    Returns:
        The rest, and the names of what was left out, mmdetection's.
    """
    kept, dropped, known = {}, [], {None, *wanted}
    for name, tensor in state.items():
        is_nothing = name.rpartition(".")[2] in NOTHING_IN_IT
        if is_nothing and convert_name(name) not in known:
            dropped.append(name)
        else:
            kept[name] = tensor
    return kept, dropped
