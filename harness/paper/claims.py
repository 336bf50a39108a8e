"""What the paper prints, as data: the one place of each of its numbers, with the section that it stands in.

Krizhevsky, Sutskever, Hinton 2012. Errors in per cent; changes of an error in points, below zero where it falls.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Printed:
    """A line of Table 1 or 2; None where the paper has a dash.

    Table 1: top-1 and top-5 on ILSVRC-2010's test set. Table 2: both on ILSVRC-2012's validation set, and top-5 on its test set.
    """

    name: str
    top1_error_pct: float | None
    top5_error_pct: float | None
    test_top5_error_pct: float | None = None


SPARSE_CODING = Printed("Sparse coding", 47.1, 28.2)
SIFT_2010 = Printed("SIFT + FVs", 45.7, 25.7)
CNN_2010 = Printed("CNN", 37.5, 17.0)
# The paper's footnote 5: without averaging over ten views.
CNN_2010_CENTRE = Printed("CNN, centre crop", 39.0, 18.3)
TABLE_1 = (SPARSE_CODING, SIFT_2010, CNN_2010, CNN_2010_CENTRE)

SIFT_2012 = Printed("SIFT + FVs", None, None, 26.2)
CNN_1 = Printed("1 CNN", 40.7, 18.2)
CNNS_5 = Printed("5 CNNs", 38.1, 16.4, 16.4)
CNN_1_PRETRAINED = Printed("1 CNN*", 39.0, 16.6)
CNNS_7_PRETRAINED = Printed("7 CNNs*", 36.7, 15.4, 15.3)
TABLE_2 = (SIFT_2012, CNN_1, CNNS_5, CNN_1_PRETRAINED, CNNS_7_PRETRAINED)


@dataclass(frozen=True)
class Claim:
    """A finding in our words, and its numbers where the paper gives them.

    `top1_points`, `top5_points`: what the thing named changes the test error by. `times`: a ratio. `before_pct`, `after_pct`: two
    errors on CIFAR-10.
    """

    section: str
    says: str
    top1_points: float | None = None
    top5_points: float | None = None
    times: float | None = None
    before_pct: float | None = None
    after_pct: float | None = None


CLAIMS = {
    "relu": Claim(
        "3.1, Figure 1",
        "with ReLU a four-layer CNN comes to 25 % training error on CIFAR-10 six times faster than with tanh, each with its own "
        "learning rate and without regularisation",
        times=6.0,
    ),
    "two_gpus": Claim(
        "3.2",
        "the net of two GPUs errs less than one of half the kernels on one GPU, and trains in slightly less time",
        top1_points=-1.7,
        top5_points=-1.2,
    ),
    "lrn": Claim("3.3", "response normalisation lowers the test error", top1_points=-1.4, top5_points=-1.2),
    "lrn_cifar": Claim(
        "3.3",
        "on CIFAR-10 a four-layer CNN goes from 13 % test error without normalisation to 11 % with it",
        top1_points=-2.0,
        before_pct=13.0,
        after_pct=11.0,
    ),
    "overlapping_pooling": Claim(
        "3.4", "pools of 3 every 2 lower the error against pools of 2 every 2", top1_points=-0.4, top5_points=-0.3
    ),
    "colour_noise": Claim("4.1", "colour noise lowers the top-1 error by more than one point", top1_points=-1.0),
    "dropout": Claim(
        "4.2", "dropout about doubles the iterations to converge, and without it the net overfits much", times=2.0
    ),
    "weight_decay": Claim("5", "a weight decay of 0.0005 lowers the training error too"),
    "figure3": Claim(
        "6.1, Figure 3",
        "conv1's kernels on GPU 1 are largely without colour and those on GPU 2 largely about colour, in every run but for which GPU is called 1",
    ),
    "figure4": Claim(
        "6.1, Figure 4",
        "most of the five likeliest classes of a test image are reasonable, and the six training images whose fc7 activations "
        "are nearest by Euclidean distance show the same kind of thing, though often not the same pixels",
    ),
    "middle_layers": Claim(
        "7", "removing any middle convolutional layer costs about two points of top-1", top1_points=2.0
    ),
}

# Figure 1: the training error to which epochs are counted.
FIGURE_1_TRAIN_ERROR_PCT = 25.0
# Figure 4: so many test images, likeliest classes of each, and nearest training images.
FIGURE_4_IMAGES, FIGURE_4_CLASSES, FIGURE_4_NEIGHBOURS = 8, 5, 6
