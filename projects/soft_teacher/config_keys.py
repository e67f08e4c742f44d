"""Every configuration key that Soft Teacher adds to Detectron2's, with its unit and its source.

"Official" is the code that produced the published numbers (github.com/microsoft/SoftTeacher);
equations, sections and tables are the paper's (Xu et al., ICCV 2021).
"""

from detectron2.config import CfgNode as CN

from soft_teacher.config_model_keys import add_model_keys


def add_soft_teacher_config(cfg: CN) -> None:
    """Add the keys of this project to a Detectron2 config, in place."""
    _add_data_keys(cfg)
    _add_augmentation_keys(cfg)
    _add_method_keys(cfg)
    add_model_keys(cfg)


def _add_data_keys(cfg: CN) -> None:
    # Unlabeled sets, by name; their annotations, if there are any, never reach training.
    cfg.DATASETS.UNLABELED = ()
    # Fold of the partially labeled protocol, 1-5 (sec. 4.1). It replaces "{fold}" in the names
    # in DATASETS.TRAIN and DATASETS.UNLABELED.
    cfg.DATASETS.FOLD = 1
    # Your own sets in COCO format: a list of [name, annotation_json, image_root].
    cfg.DATASETS.CUSTOM = []
    # Folder with a map of semantic labels for each labeled image, of the same name with the suffix
    # .png, for MODEL.ROI_HTC.SEMANTIC_ON: COCO-stuff's stuffthingmaps/train2017, say. Records that
    # name theirs as `sem_seg_file_name`, as Detectron2's do, keep it.
    cfg.DATASETS.SEMANTIC_ROOT = ""
    # Largest image that is decoded, in pixels (height times width), by the head of its file: a file
    # of a few bytes may claim billions. 12,000 x 12,000 is 144 million. Our own choice.
    cfg.INPUT.MAX_PIXELS = 200_000_000
    # With DATALOADER.ASPECT_RATIO_GROUPING: groups of like aspect ratio whose images share batches.
    # 2 tells upright images from others (official and Detectron2); more leave less padding, if
    # INPUT.AUG.SCALE_PER_STEP, see docs/performance.md.
    cfg.DATALOADER.ASPECT_RATIO_GROUPS = 2
    # Unlabeled images per step, over all GPUs. SOLVER.IMS_PER_BATCH counts the labeled ones, as
    # everywhere in Detectron2. Both counts are exact in every step; the official code draws
    # them at random (mean 1.33 labeled : 3.67 unlabeled per GPU in the partial setting).
    cfg.SOLVER.IMS_PER_BATCH_UNLABELED = 32
    # Forward and backward passes, each on a part of a GPU's images, whose gradients make up one
    # step (official: 1). Both counts of images above, iterations, EMA and checkpoints count whole
    # steps: with k here, a GPU holds IMS_PER_BATCH / (GPUs * k) labeled images at a time, and the
    # step is that of k times as many GPUs.
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    # Checkpoints kept beside the final one, the oldest go first (official: 20).
    cfg.SOLVER.CHECKPOINTS_TO_KEEP = 20
    # "SGD", as Detectron2 builds it, or "ADAMW" with betas 0.9 and 0.999, as Swin's authors train
    # detectors (BASE_LR 0.0001 at 16 images, WEIGHT_DECAY 0.05, WEIGHT_DECAY_NORM 0). With the
    # latter relative and absolute position embeddings have no weight decay, nor has what timm says
    # of its networks (docs/backbones.md).
    cfg.SOLVER.OPTIMIZER = "SGD"


def _add_augmentation_keys(cfg: CN) -> None:
    # Augmentations of the labeled, weak and strong views. The scale jitter is
    # INPUT.MIN_SIZE_TRAIN (official: 400 to 1200, sampled as a "range"), the flip
    # INPUT.RANDOM_FLIP; each view draws its own.
    cfg.INPUT.AUG = CN()
    # True: one scale for all images of a step in each view, on all GPUs, instead of one an image
    # (official). Batches have less padding, so steps are faster.
    cfg.INPUT.AUG.SCALE_PER_STEP = False
    # How many operations change a view: "one_of", exactly one of nine color operations and one of
    # four geometric ones (official, as STAC), or "independent", each of them by itself with the
    # probabilities below, so that several or none may change it. So it was done for the paper, says
    # its author (github.com/microsoft/SoftTeacher, issue 98). Its supplement, whose numbers are
    # known here at second hand, also has 1 to 5 erased patches.
    cfg.INPUT.AUG.MODE = "one_of"
    # Of each color operation, if "independent" (the paper's supplement: 0.25).
    cfg.INPUT.AUG.COLOR_PROBABILITY = 0.25
    # Of each geometric operation, if "independent" (the paper's supplement: 0.3).
    cfg.INPUT.AUG.GEOMETRY_PROBABILITY = 0.3
    # Color operations on the labeled and strong views.
    cfg.INPUT.AUG.COLOR = True
    # False: labeled views keep their colors (STAC).
    cfg.INPUT.AUG.LABELED_COLOR = True
    # Geometric operations on the strong view.
    cfg.INPUT.AUG.GEOMETRY = True
    # True: on half of the strong views the operation is done inside one pseudo box alone, at most
    # half as far and a third of the angles below (STAC). For SOFT_TEACHER.PSEUDO_LABELS.FILES only.
    cfg.INPUT.AUG.BOX_GEOMETRY = False
    # Largest shift, as a fraction of the side (official: 0.1).
    cfg.INPUT.AUG.MAX_TRANSLATE = 0.1
    # Largest rotation, in degrees (official: 30).
    cfg.INPUT.AUG.MAX_ROTATE = 30.0
    # Largest shear angle, in degrees (official: 30).
    cfg.INPUT.AUG.MAX_SHEAR = 30.0
    # Number of erased patches on the strong view, lowest and highest (official: 1 to 4).
    cfg.INPUT.AUG.ERASE_PATCHES = (1, 4)
    # Smallest side of an erased patch, as a fraction of the image side (official: 0; the paper's
    # supplement: 0.05).
    cfg.INPUT.AUG.ERASE_MIN_SIZE = 0.0
    # Largest side of an erased patch, as a fraction of the image side (official: 0.2).
    cfg.INPUT.AUG.ERASE_MAX_SIZE = 0.2
    # Value of pixels that come from outside the image or are erased (official: 125).
    cfg.INPUT.AUG.FILL = 125


def _add_method_keys(cfg: CN) -> None:
    cfg.SOFT_TEACHER = st = CN()
    # False: supervised training on the labeled images alone, the baseline of tables 2-5.
    st.ENABLED = True
    # alpha of eq. 1 (official: 4.0 with few labels, 2.0 with train2017 fully labeled). It
    # multiplies the RPN's losses on unlabeled images too.
    st.UNSUP_LOSS_WEIGHT = 4.0
    # Steps of supervised training (the EMA teacher follows) before unlabeled images are used.
    # Paper and official: 0.
    st.BURN_IN_ITERS = 0
    # Iterations at the end of training over which the unlabeled images of a step become fewer, in
    # equal parts, until there is none; 0: none at all (official). The paper's supplement lets the
    # sampling ratio s_r fall to 0 over the last 10,000 iterations with few labels and 20,000 with
    # train2017 fully labeled; its author says that unlabeled images are what becomes fewer, and
    # that it shortens training without a higher final AP (github.com/microsoft/SoftTeacher,
    # issue 49). Labeled images stay as many. Counts fall on all GPUs alike, in whole images of
    # each, see engine/schedule.py.
    st.UNLABELED_DECAY_ITERS = 0
    # What the unlabeled RoI losses are divided by (see BACKGROUND.NORMALIZER and
    # REGRESSION.NORMALIZER): "rank" sums over the unlabeled images of one GPU and batch
    # (official), "global" over those of all GPUs, so that the losses on unlabeled images do not
    # depend on how the images are shared out. Labeled losses are Detectron2's, per GPU, always.
    st.NORMALIZER_SCOPE = "rank"
    # Stop with an error after this many consecutive steps skipped for a non-finite value.
    st.MAX_SKIPPED_STEPS = 50
    # True: --resume goes on although batch sizes, the number of processes, the sets or other
    # settings that a checkpoint depends on are no longer those it was saved with (never with
    # other classes, nor where SOLVER.REFERENCE_WORLD_SIZE counts iterations for another number of
    # GPUs). Each change is logged; what has no meaning after it starts afresh: positions
    # in the sets, random generators, the gradient scaler or the best metric.
    st.RESUME_WITH_CHANGES = False
    # Warn after this many consecutive steps without a pseudo box for classification in those that
    # are logged: all of a single process, every 20th of several.
    st.WARN_NO_PSEUDO_BOX_ITERS = 1000

    # The teacher: exponential moving average of the student, updated after each step (sec. 3.1).
    st.EMA = CN()
    # False: the teacher equals the student ("E2E" in table 5).
    st.EMA.ENABLED = True
    # Share of the teacher kept in each update, min(MOMENTUM, 1 - 1/(t+1)) at update t
    # (official: 0.999; the teacher is the mean of all students so far for the first 1000).
    st.EMA.MOMENTUM = 0.999

    # True: the teacher detects objects in mixed precision even where SOLVER.AMP.ENABLED is False.
    # It judges boxes in float32, always.
    st.AMP_TEACHER = False

    # Which of the teacher's detections teach (sec. 3.1 and 3.3); all comparisons are strict.
    st.PSEUDO_LABELS = CN()
    # Files of pseudo labels that take the teacher's place (multi-stage training, table 5): one for
    # each set in DATASETS.UNLABELED, in the same order, as tools/pseudo_label.py writes them;
    # "{fold}" is replaced by DATASETS.FOLD. Empty: the teacher labels the images in training.
    st.PSEUDO_LABELS.FILES = ()
    # Foreground score that a detection needs to be considered at all (sec. 3.3: 0.5).
    st.PSEUDO_LABELS.MIN_SCORE = 0.5
    # Foreground score above which it teaches the RPN (official: 0.9; the paper is silent).
    st.PSEUDO_LABELS.RPN_SCORE = 0.9
    # Foreground score above which it teaches RoI classification (table 8: 0.9).
    st.PSEUDO_LABELS.CLS_SCORE = 0.9
    # Box regression variance below which it teaches RoI regression (table 9: 0.02). Unused
    # when JITTER.ENABLED is False: then CLS_SCORE decides for regression too (table 6). A cascade
    # needs a smaller one, 0.003 as measured in docs/cascade.md.
    st.PSEUDO_LABELS.REG_VARIANCE = 0.02
    # What encloses a pseudo box in a view that is rotated or sheared, and a box of such a view that
    # the teacher judges: "corners", the box around its four corners (official), or "ellipse", the
    # box around the ellipse inside it, which fits objects better that do not fill the corners
    # (docs/method.md).
    st.PSEUDO_LABELS.OUTLINE = "corners"

    # Instance masks on unlabeled images, with MODEL.MASK_ON (docs/masks.md). The paper trains them
    # (table 4) and says nothing of how; the keys and their defaults are our own.
    st.MASK = CN()
    # What the mask head learns: "hard", the teacher's probabilities cut once at THRESHOLD, or
    # "soft", the probabilities themselves.
    st.MASK.TARGET = "hard"
    # Probability from which on a cell of the student's mask is foreground (Detectron2's at test).
    st.MASK.THRESHOLD = 0.5
    # Foreground score above which a pseudo box that teaches classification also teaches its mask;
    # 0 means that all of them do.
    st.MASK.SCORE = 0.0
    # Multiplies the mask loss on unlabeled images, beside UNSUP_LOSS_WEIGHT.
    st.MASK.LOSS_WEIGHT = 1.0

    # Weights of background RoIs in the classification loss (sec. 3.2).
    st.BACKGROUND = CN()
    # Reliability r_j of a background RoI, the indicators of table 7: "teacher" is the teacher's
    # background score (BG-T), "student" the student's own (BG-S), "pred_diff" how well the two
    # agree (eq. 6), "iou" the IoU with the nearest pseudo box, "reverse_iou" 1 minus that, and
    # "none" weighs all alike (table 6 without soft teacher).
    st.BACKGROUND.RELIABILITY = "teacher"
    # "joint": one weighted mean over all RoIs of the GPU's unlabeled images, foreground weight 1
    # (official; its author calls eq. 4 as printed wrong). "paper": eq. 4-5 to the letter, the
    # mean over foreground plus the weighted mean over background, per image.
    st.BACKGROUND.NORMALIZER = "joint"

    # Detectors with a cascade of RoI heads (docs/cascade.md); paper and official code have none.
    st.CASCADE = CN()
    # What of the teacher scores the boxes that stage k of the student learns from: "stage", its
    # stage k alone and the boxes as they are (our choice: what counts as background differs from
    # stage to stage), or "ensemble", the mean of all stages with the boxes moved on from stage to
    # stage, as in inference (9 passes of the teacher's heads a step instead of 5; it was better on
    # digits with one seed, docs/cascade.md).
    st.CASCADE.JUDGE = "stage"

    # Box jittering (sec. 3.3).
    st.JITTER = CN()
    st.JITTER.ENABLED = True
    # N_jitter, jittered copies per pseudo box (table 10: 10).
    st.JITTER.NUM = 10
    # Offset of each coordinate as a fraction of the box's side: standard deviation if
    # "gaussian", largest value if "uniform" (official: gaussian, 0.06).
    st.JITTER.SCALE = 0.06
    st.JITTER.DISTRIBUTION = "gaussian"
    # "per_axis": deviations divided by width and height of the mean refined box (official).
    # "paper": eq. 9, all four divided by the mean of the pseudo box's width and height.
    st.JITTER.VARIANCE = "per_axis"

    # One-stage detectors have no RoI head to jitter boxes with. In place of box jittering stands
    # the spread of the teacher's own dense predictions around a pseudo box (docs/one_stage.md; our
    # own choice, the paper is silent). JITTER.ENABLED and JITTER.VARIANCE hold for it too.
    st.SPREAD = CN()
    # IoU with the pseudo box above which a prediction of its class, before NMS, counts.
    st.SPREAD.IOU = 0.6
    # Predictions, its own included, below which a pseudo box has no spread and is not reliable.
    st.SPREAD.MIN_BOXES = 3

    # Box regression on unlabeled images (eq. 10).
    st.REGRESSION = CN()
    # "sampled": the sum over foreground RoIs divided by all sampled RoIs (official and
    # Detectron2). "foreground": divided by the foreground RoIs of each image (eq. 10).
    st.REGRESSION.NORMALIZER = "sampled"
